"""The published rows are well-formed, name their source, and nothing of what was collected got lost."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import InvalidInputError
from autopeft.profiling.model import load_model
from autopeft.resources import yaml_files
from autopeft.units import GIB

COLLECTED_NUMBERS = 1196
"""Numbers in the collection that rows and exclusions were taken from (2026-11-22)."""

COLLECTED_SOURCES = 50
NO_PEAK = {"allocated_after_step", "reserved_p99_per_step", "reserved_mean_per_step"}


def records() -> Any:
    return importlib.import_module("accuracy.records")


@pytest.fixture(scope="module")
def rows() -> list[Any]:
    return list(records().load_rows())


@pytest.fixture(scope="module")
def sources() -> list[Any]:
    return list(records().load_sources())


def numbers_of(source: Any) -> list[str]:
    """Names of the collected numbers that a source accounts for; ``#`` marks one that is part of another's notes."""
    measured = [item.id for row in source.rows for item in row.measurements if "#" not in item.id]
    out_of_memory = [row.id for row in source.rows if row.outcome == "out_of_memory"]
    return measured + out_of_memory + [name for group in source.excluded for name in group.ids]


def test_every_collected_number_is_a_row_or_excluded_with_a_reason(sources: list[Any]) -> None:
    excluded = records().load_excluded_sources()
    assert sum(len(numbers_of(source)) for source in sources) + sum(e.numbers for e in excluded) == COLLECTED_NUMBERS
    assert len(sources) + len(excluded) == COLLECTED_SOURCES
    assert len({e.source for e in excluded} | {s.key for s in sources}) == COLLECTED_SOURCES
    assert all(len(e.reason) > 10 and e.licence and e.location for e in excluded)


def test_every_number_of_a_source_is_accounted_for_once(sources: list[Any]) -> None:
    for source in sources:
        numbers = numbers_of(source)
        assert len(numbers) == source.published_numbers, source.key
        assert [name for name, count in Counter(numbers).items() if count > 1] == []
        assert all(name.startswith(f"{source.key}-") for name in numbers)
        assert all(len(group.reason) > 10 and group.ids for group in source.excluded)
        assert source.licence
        assert source.location
        assert source.rules


def test_rows_have_unique_ids_and_a_measurement_or_ran_out_of_memory(rows: list[Any]) -> None:
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert (row.outcome == "measured") == bool(row.measurements), row.id
        assert (row.seconds_per_step is None) == (row.time_scope is None), row.id


def test_a_measurement_lies_between_a_gibibyte_and_the_device(rows: list[Any]) -> None:
    for row in rows:
        for item in row.measurements:
            small = item.kind == "allocated_after_step"
            assert (GIB // 2 if small else GIB) < item.bytes < row.device_bytes, row.id
            assert 0 <= item.resolution_bytes < GIB // 2, row.id


def test_a_run_never_reserves_less_than_it_allocates(rows: list[Any]) -> None:
    for row in rows:
        sizes = {item.kind: item.bytes for item in row.measurements}
        peaks = [sizes[kind] for kind in ("allocated_after_step", "max_allocated", "max_reserved") if kind in sizes]
        assert peaks == sorted(peaks), row.id


def test_what_a_source_does_not_state_is_written_down(rows: list[Any]) -> None:
    for row in rows:
        assert row.versions.transformers is not None or row.assumed, row.id


def test_rows_for_the_one_percent_goal_have_exact_lengths(rows: list[Any]) -> None:
    exact = [row for row in rows if row.suite == "fixed_tokens"]
    assert len(exact) >= 10
    assert all(row.length_kind == "exact" and row.model_code == "record" for row in exact)


def test_the_method_comparison_is_complete(rows: list[Any]) -> None:
    suite = [row for row in rows if row.suite == "method_comparison"]
    assert len(suite) == 36
    assert sum(row.peft_config is None for row in suite) == 1, "only full fine-tuning has no adapter"
    assert all({item.kind for item in row.measurements} == {"max_reserved"} | NO_PEAK for row in suite)
    plain = next(row for row in suite if row.location.endswith("/lora--llama-3.2-3B-rank32.json"))
    # accelerator_memory_max of huggingface/peft at 5d602fdbff04, results/lora--llama-3.2-3B-rank32.json
    assert plain.measured("max_reserved") == 22_292_725_760
    assert plain.candidate.target_modules == ("q_proj", "v_proj")


def test_the_mistral_lora_row_holds_the_published_run(rows: list[Any]) -> None:
    row = next(row for row in rows if row.id == "fms_accel-053")
    # fms-acceleration at 876e2ed6fc4e, a100_80gb.csv, line 36: 36.0821 GiB allocated, 42.2188 by nvidia-smi, 977.0384 s
    assert row.measured("max_allocated") == pytest.approx(36.0821 * GIB, abs=1)
    assert row.measured("nvidia_smi") == pytest.approx(42.2188 * GIB, abs=1)
    assert row.measured("max_reserved") is None
    assert row.seconds_per_step == pytest.approx(9.770384)
    assert (row.candidate.r, row.candidate.per_device_batch_size, row.sequence_length) == (16, 8, 4096)
    assert row.candidate.activation_checkpointing


def test_a_candidate_says_what_its_method_needs(rows: list[Any]) -> None:
    for row in rows:
        candidate = row.candidate
        if candidate.method == "full":
            assert candidate.r is None, row.id
            assert candidate.adapter_dtype is None, row.id
            assert candidate.target_modules == (), row.id
        elif row.peft_config is None:
            assert candidate.r, row.id
            assert candidate.target_modules, row.id
        else:
            assert row.peft_config["peft_type"], row.id
        assert candidate.double_quantization <= (candidate.quantization == "nf4"), row.id
        assert candidate.max_length >= row.sequence_length, row.id


def test_every_row_names_a_model_and_an_environment_that_exist(rows: list[Any]) -> None:
    models = records().load_models()
    environments = importlib.import_module("accuracy.environments").load_environments()
    assert {row.model for row in rows} == set(models)
    assert {row.environment for row in rows} == set(environments)


def test_every_device_is_in_the_catalogue_or_known_to_be_missing(rows: list[Any]) -> None:
    catalogue = set(yaml_files("profiles/hardware"))
    assert {row.hardware for row in rows} - catalogue == {None}
    assert {row.gpu for row in rows if row.hardware is None} == {"NVIDIA H800 80GB"}


def test_model_configs_have_the_published_parameter_counts(tmp_path: Path) -> None:
    counted = 0
    for name, model in records().load_models().items():
        assert model.source, name
        if model.parameters is None:
            continue
        folder = tmp_path / name.replace("/", "--")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(model.config))
        assert load_model(str(folder)).parameter_count == model.parameters, name
        counted += 1
    assert counted >= 14


def test_an_unknown_key_names_file_and_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (records().ROWS / "fms_accel.yaml").read_text()
    (tmp_path / "fms_accel.yaml").write_text(content.replace("    sequence_length: 2048", "    seq_len: 2048", 1))
    monkeypatch.setattr(records(), "ROWS", tmp_path)
    with pytest.raises(InvalidInputError, match=r"fms_accel\.yaml, row fms_accel-001: unknown keys seq_len"):
        records().load_rows()


def test_provenance_names_every_source_and_shortens_ids() -> None:
    provenance = importlib.import_module("accuracy.provenance")
    page = provenance.render_provenance()
    for source in [s.key for s in records().load_sources()] + [e.source for e in records().load_excluded_sources()]:
        assert f"| {source} |" in page
    assert provenance.shorten(["a-003", "a-004", "a-005", "a-009"]) == "003-005, 009"
    assert provenance.shorten(["a-120"]) == "120"
