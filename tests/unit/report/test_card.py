"""README.md of the adapter, as the hub reads it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from autopeft.errors import RunFolderError
from autopeft.report import RunRecord, model_card


def on_the_hub(record: RunRecord) -> RunRecord:
    model = replace(record.plan.model, format="hub", id="HuggingFaceTB/SmolLM2-135M-Instruct", path=None)
    return replace(record, plan=replace(record.plan, model=model))


def test_the_hub_reads_the_metadata_back(finished: RunRecord) -> None:
    card = ModelCard(model_card(on_the_hub(finished)), ignore_metadata_errors=False)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (card.data.library_name, card.data.license) == ("peft", "apache-2.0")
    assert card.data.pipeline_tag == "text-generation"
    assert {"autopeft", "rslora", "lora"} <= set(card.data.tags)


def test_a_local_base_is_no_name_on_the_hub(finished: RunRecord) -> None:
    assert ModelCard(model_card(finished)).data.base_model is None


def test_the_card_says_what_was_made_of_what_and_how_well(finished: RunRecord) -> None:
    text = model_card(finished)
    plan, verdict = finished.plan, finished.verdict
    assert verdict is not None
    assert plan.data.content_hash in text
    assert verdict.winner_reason in text
    assert "| plain-lora | 0.9221 | -0.0310 [-0.0422, -0.0198] |" in text
    assert "AMD EPYC 7B13" in text
    assert "PeftModel.from_pretrained(base, './adapter')" in text
    assert "| data | style.jsonl, 1,500 rows" in text
    assert "licence of the data | unknown to autopeft" in text
    assert "energy | unknown to autopeft" in text


def test_energy_is_power_times_time_where_the_power_is_known(finished: RunRecord) -> None:
    hardware = finished.plan.hardware
    device = replace(hardware.device, power_watts=360.0)
    record = replace(finished, plan=replace(finished.plan, hardware=replace(hardware, devices=(device,))))
    # 360 W for the 466 s of the search are 0.0466 kWh.
    assert "at most 0.0466 kWh" in model_card(record)


def test_a_whole_model_is_no_adapter(finished: RunRecord) -> None:
    assert finished.verdict is not None
    winner = replace(finished.verdict.winner, method="full", r=None, lora_alpha=None, target_modules=())
    record = replace(on_the_hub(finished), verdict=replace(finished.verdict, winner=winner))
    card = ModelCard(model_card(record))
    assert card.data.library_name == "transformers"
    assert card.data.base_model_relation == "finetune"


def test_a_run_without_a_verdict_has_no_card(finished: RunRecord) -> None:
    with pytest.raises(RunFolderError, match="no verdict yet"):
        model_card(replace(finished, verdict=None))
