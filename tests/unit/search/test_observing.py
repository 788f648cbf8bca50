"""Trials leave what they measured in the store that later predictions are calibrated with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.memory.calibration_store import CalibrationStore
from autopeft.memory.closed_form import estimate_memory
from autopeft.recommend.advice import advise
from autopeft.search import RunFolder, RunSettings, run_search
from autopeft.specs import Job, JobFacts, Recommendation, RungReport, TrainOutcome, TrainRequest
from autopeft.training.fake import FakeRunner, FakeWorld

MEASURED_BYTES = 123 * 2**20


class MeasuringRunner(FakeRunner):
    """A simulated runner that pretends to watch a process with real libraries, as on the plan's host processor."""

    def prepare(self, job: Job) -> JobFacts:
        return replace(super().prepare(job), versions={"torch": "2.13.0", "peft": "0.21.2", "numpy": "2.0"})

    def train(self, request: TrainRequest, go_on: Callable[[RungReport], bool]) -> TrainOutcome:
        outcome = super().train(request, go_on)
        return replace(outcome, measured_peak_bytes=MEASURED_BYTES, measured_peak_kind="resident")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CalibrationStore:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return CalibrationStore()


def search(folder: Path, plan: Recommendation, runner: FakeRunner) -> list[str]:
    """Returns the statuses of all trainings of one search."""
    with RunFolder.create(folder, plan, RunSettings(trials=6, dry_run=False)) as opened:
        run_search(plan, RunSettings(trials=6), opened, runner, on_event=lambda _: None)
        return [result.status for result in opened.load_results()]


def test_every_measured_training_is_an_observation(
    plan: Recommendation, tmp_path: Path, store: CalibrationStore
) -> None:
    world = FakeWorld(failures={"dora": "oom", "adalora": "failed"})
    statuses = search(tmp_path / "run", plan, MeasuringRunner(world))
    rows = store.read()
    measured = [row for row in rows if row.measured_bytes is not None]
    too_small = [row for row in rows if row.oom_at_bytes is not None]
    assert len(measured) == statuses.count("complete") + statuses.count("pruned") > 0
    assert len(too_small) == statuses.count("oom") > 0
    assert statuses.count("failed") > 0
    assert {row.measured_bytes for row in measured} == {MEASURED_BYTES}
    assert {row.traits["method"] for row in too_small} == {"dora"}
    assert {row.oom_at_bytes for row in too_small} == {plan.candidates[0].available_bytes}
    assert {(row.device, row.data, row.source) for row in rows} == {
        (plan.hardware.device.name, plan.data.content_hash, "trial")
    }
    assert {tuple(row.versions) for row in rows} == {("torch", "peft")}


def test_the_prediction_is_the_uncorrected_one_of_the_plan_s_row_length(
    plan: Recommendation, tmp_path: Path, store: CalibrationStore
) -> None:
    wrong = [
        replace(entry, estimate=replace(entry.estimate, source="calibrated", required_bytes=1))
        for entry in plan.candidates
    ]
    search(tmp_path / "run", replace(plan, candidates=tuple(wrong)), MeasuringRunner())
    length = advise(plan.model, plan.data, plan.inputs).sequence_length
    known = {
        estimate_memory(entry.candidate, plan.model, plan.hardware.device, sequence_length=length).required_bytes
        for entry in plan.candidates
    }
    first = store.read()[0]
    assert first.sequence_length == length
    assert first.predicted_bytes in known


def test_a_simulated_run_teaches_nothing(plan: Recommendation, tmp_path: Path, store: CalibrationStore) -> None:
    search(tmp_path / "run", plan, FakeRunner(FakeWorld(failures={"dora": "oom"})))
    assert store.read() == ()


def test_a_store_that_cannot_be_written_does_not_end_the_run(
    plan: Recommendation, tmp_path: Path, store: CalibrationStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.path.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert "complete" in search(tmp_path / "run", plan, MeasuringRunner())
    assert "cannot write the calibration store" in caplog.text
