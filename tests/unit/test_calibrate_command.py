"""`autopeft calibrate` with a real worker on a tiny model, and what later predictions make of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.api import CalibrationResult, estimate
from autopeft.cli import main
from autopeft.errors import AutoPeftError, DataError, InvalidInputError
from autopeft.memory.calibration import calibrated
from autopeft.memory.calibration_store import CalibrationStore
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model
from autopeft.specs import TrainOutcome

OPTIONS: dict[str, Any] = {"dtype": "float32", "trainer": "transformers", "batch_size": 4, "sequence_length": 96}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="module")
def result(tiny_model: Path, cache: Path) -> CalibrationResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_CACHE", str(cache))
        return autopeft.calibrate(model=tiny_model, **OPTIONS)


@pytest.fixture
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(cache))
    return cache


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", *map(str, arguments)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err  # type: ignore[return-value]


def test_the_allocator_of_the_host_is_measured_as_predicted(result: CalibrationResult) -> None:
    """Torch's profiler counts the real allocations; the closed form promises 5 % (docs/memory-model.md)."""
    allocated = next(row for row in result.observations if row.kind == "max_allocated")
    assert allocated.measured_bytes == pytest.approx(allocated.predicted_bytes, rel=0.05)
    assert allocated.sequence_length == result.sequence_length == 96
    assert (allocated.batch_size, allocated.model_type, allocated.data) == (4, "llama", None)


def test_the_process_is_measured_beside_its_own_prediction(result: CalibrationResult) -> None:
    """A process with torch and its libraries takes hundreds of MiB, which no tensor of this model does."""
    resident = next(row for row in result.observations if row.kind == "resident")
    assert resident.measured_bytes is not None
    assert 200 * 2**20 < resident.measured_bytes < 2 * resident.predicted_bytes
    assert resident.measured_seconds is not None
    assert resident.measured_seconds > 0


def test_what_was_measured_is_stored(result: CalibrationResult, cache: Path) -> None:
    assert Path(result.store) == cache / "calibration.jsonl"
    assert CalibrationStore(cache / "calibration.jsonl").read()[:2] == result.observations


def test_a_later_estimate_is_calibrated_and_says_so(
    result: CalibrationResult, own_cache: Path, tiny_model: Path
) -> None:
    allocated = next(row for row in result.observations if row.kind == "max_allocated")
    plain = estimate(model=tiny_model, **OPTIONS)
    found = calibrated(plain, result.candidate, load_model(str(tiny_model)), load_hardware("auto"))
    assert found.source == "calibrated"
    assert any("calibrated with 1 run of this kind on this device: allocated" in text for text in found.assumptions)
    assert allocated.measured_bytes is not None
    before = abs(allocated.predicted_bytes - allocated.measured_bytes)
    assert abs(found.peak_memory_bytes - allocated.measured_bytes) <= before
    assert abs(found.peak_memory_bytes / allocated.measured_bytes - 1) <= found.relative_error


def test_a_catalogue_device_is_estimated_alike_on_every_machine(
    result: CalibrationResult, own_cache: Path, tiny_model: Path
) -> None:
    found = estimate(model=tiny_model, hardware="a100-80gb", **OPTIONS)
    assert found.source == "closed_form"


def test_the_longest_rows_of_the_data_are_measured(
    own_cache: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token is a byte here: the longest row has 100 + 7 tokens, the end token included, and the others 15 or 16."""
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{n:03d} + 1 = ", "completion": str(n + 1)} for n in range(20)]
    rows.append({"prompt": "x" * 100, "completion": "answer"})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, err = call(
        capsys, "--model", tiny_model, "--data", data, "--dtype", "float32", "--batch-size", 2, "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["sequence_length"] == 107
    assert {row["data"] for row in found["observations"]} != {None}
    assert {row["kind"] for row in found["observations"]} == {"resident", "max_allocated"}
    before = CalibrationStore().read()
    assert [row["measured_bytes"] for row in found["observations"]] == [row.measured_bytes for row in before[-2:]]


class OutOfMemoryRunner:
    """Stands for a worker that is ended over its limit, which tests/unit/training/test_worker.py shows of the real one.

    It offers what is called of a WorkerRunner.
    """

    def __init__(self, log_file: Path, on_step: object) -> None:
        del log_file, on_step

    def prepare(self, job: Any) -> None:
        self.limit_bytes = job.memory_limit_bytes

    def measure(self, request: Any, *, watch_allocations: bool) -> TrainOutcome:
        return TrainOutcome(
            status="oom",
            steps=0,
            tokens=0,
            seconds=1.0,
            train_seconds=0.0,
            scores=None,
            curve=(),
            measured_peak_bytes=self.limit_bytes + 1,
            measured_peak_kind="resident",
            error="it used more than the memory budget",
        )

    def close(self) -> None:
        pass


def test_running_out_of_memory_is_a_result_and_a_lower_bound(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr("autopeft.training.client.WorkerRunner", OutOfMemoryRunner)
    code, out, err = call(capsys, "--model", tiny_model, "--sequence-length", 64, "--budget-memory", "700MiB")
    assert code == 0, err
    assert "the steps ran out of memory; the limit is stored as a lower bound" in out
    (row,) = CalibrationStore().read()
    assert (row.kind, row.measured_bytes, row.oom_at_bytes) == ("resident", None, 700 * 2**20)


def test_steps_that_fail_for_another_reason_are_an_error_and_store_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(OutOfMemoryRunner):
        def measure(self, request: Any, *, watch_allocations: bool) -> TrainOutcome:
            ended = super().measure(request, watch_allocations=watch_allocations)
            return replace(ended, status="failed", error="no such kernel")

    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr("autopeft.training.client.WorkerRunner", Failing)
    with pytest.raises(AutoPeftError, match="the 2 steps could not be measured: no such kernel"):
        autopeft.calibrate(model=tiny_model, sequence_length=64)
    assert CalibrationStore().read() == ()


def test_impossible_lengths_and_labelled_texts_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"sequence_length 999999 is not possible: .* 2 to 2048 tokens"):
        autopeft.calibrate(model=tiny_model, sequence_length=999_999)
    labelled = tmp_path / "labels.jsonl"
    rows = [{"text": f"text number {n}", "label": "good" if n % 2 else "bad"} for n in range(30)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match="--column prompt=TEXT_COLUMN"):
        autopeft.calibrate(model=tiny_model, data=labelled)


def test_options_shared_with_estimate_are_the_same_options() -> None:
    from autopeft.cli import cli

    known = {parameter.name: parameter for parameter in cli.commands["estimate"].params}
    shared = [parameter for parameter in cli.commands["calibrate"].params if parameter.name in known]
    assert {"model", "method", "r", "quantization", "batch_size", "trainer"} <= {each.name for each in shared}
    different = [each.name for each in shared if each is not known[each.name]]
    assert set(different) == {"data", "columns", "sequence_length", "as_json"}
