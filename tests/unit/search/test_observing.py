"""Trials leave what they measured in the store that later predictions are calibrated with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autopeft.memory.calibration_store import CalibrationStore
from autopeft.memory.closed_form import estimate_memory
from autopeft.recommend import CandidateFactory
from autopeft.recommend.advice import advise
from autopeft.search import RunFolder, RunSettings, run_search
from autopeft.specs import Job, JobFacts, MemoryEstimate, Recommendation, RungReport, TrainOutcome, TrainRequest
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


def test_the_stored_prediction_is_the_one_from_before_a_correction(
    plan: Recommendation, tmp_path: Path, store: CalibrationStore
) -> None:
    corrected = [
        replace(
            entry,
            estimate=replace(entry.estimate, source="calibrated", required_bytes=1, uncorrected=entry.estimate),
        )
        for entry in plan.candidates
    ]
    search(tmp_path / "run", replace(plan, candidates=tuple(corrected)), MeasuringRunner())
    first = store.read()[0]
    assert first.sequence_length == advise(plan.model, plan.data, plan.inputs).sequence_length
    assert first.predicted_bytes in {entry.estimate.required_bytes for entry in plan.candidates}
    assert first.predicted_by == "closed_form"


def test_a_trial_that_was_priced_by_a_trace_stores_the_trace_s_figure(
    plan: Recommendation, tmp_path: Path, store: CalibrationStore
) -> None:
    def traced(*args: Any, **kwargs: Any) -> MemoryEstimate:
        found = estimate_memory(*args, **kwargs)
        return replace(found, source="traced", required_bytes=found.required_bytes + 1)

    known = [entry.candidate for entry in plan.candidates]
    settings = RunSettings(trials=6, dry_run=False)
    with RunFolder.create(tmp_path / "run", plan, settings) as folder:
        source = CandidateFactory.from_plan(plan, traced)
        run_search(plan, settings, folder, MeasuringRunner(), on_event=lambda _: None, source=source)
        sampled = [each.candidate for each in folder.load_results() if each.candidate not in known]
    assert sampled
    length = advise(plan.model, plan.data, plan.inputs).sequence_length
    expected = [traced(each, plan.model, plan.hardware.device, sequence_length=length) for each in sampled]
    stored = {row.predicted_bytes for row in store.read() if row.predicted_by == "traced"}
    assert {estimate.required_bytes for estimate in expected} <= stored


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
