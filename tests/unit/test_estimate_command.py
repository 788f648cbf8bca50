"""What `autopeft estimate` offers beyond figures: data, explanation, picture, another environment, another loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import autopeft
from autopeft.cli import cli
from autopeft.errors import InvalidInputError
from autopeft.specs import StepStyle

CARD = {"model": "llama-3.1-8b", "hardware": "rtx-4090"}


def call(*arguments: object):
    return CliRunner().invoke(cli, ["estimate", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Forty short rows and one that is fifty times as long."""
    path = tmp_path / "rows.jsonl"
    texts = ["a short line of text"] * 40 + ["a short line of text " * 50]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_a_data_set_says_which_batch_sets_the_peak(rows: Path) -> None:
    found = autopeft.estimate(data=rows, batch_size=4, **CARD)
    peaks = found.epoch_peaks
    assert peaks is not None
    assert peaks.peak_memory_bytes["largest"] == found.peak_memory_bytes
    assert peaks.peak_memory_bytes["0.5"] < found.peak_memory_bytes


def test_without_data_nothing_is_said_of_batches() -> None:
    assert autopeft.estimate(**CARD).epoch_peaks is None


def test_an_explanation_names_what_dominates_and_what_would_make_it_fit() -> None:
    found, why = autopeft.explain(method="full", batch_size=8, sequence_length=4096, **CARD)
    assert not why.fits
    assert found.required_bytes > why.available_bytes
    assert why.levers
    assert all(lever.saved_bytes > 0 for lever in why.levers)


def test_the_command_draws_explains_and_says_so_in_json(tmp_path: Path) -> None:
    picture = tmp_path / "peak.svg"
    fixed = ("--model", "llama-3.1-8b", "--hardware", "rtx-4090")
    shown = call(*fixed, "--explain", "--plot", picture)
    assert shown.exit_code == 0
    assert "What sets the peak" in shown.output
    assert picture.read_text().startswith("<?xml")
    content = json.loads(call(*fixed, "--explain", "--json").stdout)
    assert content["explanation"]["levers"]
    assert content["phase_components"]["load"]["base_weights"] > 0


def test_another_loop_is_traced_and_says_why(tiny_config: Path) -> None:
    options = {"model": tiny_config, "hardware": "rtx-4090", "sequence_length": 64, "trainer": "transformers"}
    own = autopeft.estimate(trace=True, **options)
    held = autopeft.estimate(style=StepStyle(outputs_held=True), **options)
    assert (own.source, held.source) == ("traced", "traced")
    assert held.assumptions[0].startswith("traced, since")
    assert held.peak_memory_bytes >= own.peak_memory_bytes
    shown = call("--model", tiny_config, "--hardware", "rtx-4090", "--sequence-length", 64, "--trainer", "transformers",
                 "--habit", "outputs-held", "--json")  # fmt: skip
    assert json.loads(shown.stdout)["peak_memory_bytes"] == held.peak_memory_bytes


def test_an_environment_is_traced_in_and_its_versions_are_named(tiny_config: Path) -> None:
    options = {"model": tiny_config, "hardware": "rtx-4090", "sequence_length": 32}
    there = autopeft.estimate(environment=sys.executable, **options)
    assert there.peak_memory_bytes == autopeft.estimate(trace=True, **options).peak_memory_bytes
    assert there.versions["transformers"]


def test_required_covers_the_peak_and_the_context_whatever_is_reserved(tiny_config: Path) -> None:
    found = autopeft.estimate(
        model=tiny_config, hardware="rtx-4090", batch_size=16, sequence_length=512, trainer="transformers", trace=True
    )
    assert found.context_bytes is not None
    assert found.peak_memory_bytes <= found.required_bytes - found.context_bytes <= found.peak_reserved_bytes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"columns": {"text": "a"}}, "belongs to data"),
        ({"style": StepStyle(reentrant_checkpointing=True)}, "way of activation checkpointing"),
        ({"style": StepStyle(padded=True), "packing": True}, "exclude each other"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        autopeft.estimate(**CARD, **options)


def test_an_encoder_is_not_traced_beyond_its_longest_input() -> None:
    with pytest.raises(InvalidInputError, match="reads at most 512 tokens, not 1024"):
        autopeft.estimate(model="roberta-base", hardware="rtx-4090", sequence_length=1024, trace=True)


def test_rows_are_no_longer_than_the_model_reads_unless_asked_for() -> None:
    found = autopeft.estimate(model="roberta-base", hardware="rtx-4090")
    assert "every row has 512 tokens, none of them padding" in found.assumptions


def test_suggest_refuses_an_environment_without_a_trace(tiny_config: Path, rows: Path) -> None:
    with pytest.raises(InvalidInputError, match="trace=N"):
        autopeft.suggest(model=tiny_config, data=rows, environment=sys.executable)


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
