"""The fake runner is a small real implementation of the Runner protocol."""

from __future__ import annotations

import dataclasses
import math

import pytest

from autopeft.errors import DataError, WorkerError
from autopeft.specs import Candidate, Job, Runner, ScoreRequest, TrainRequest
from autopeft.training.fake import FakeRunner, FakeWorld

CANDIDATE = Candidate(method="lora", r=16, lora_alpha=16.0, learning_rate=4e-4, per_device_batch_size=8)
JOB = Job(
    model="toy",
    revision=None,
    data_files=(),
    data_hash="0",
    data_format="text",
    columns={},
    max_length=128,
    device="cpu",
    memory_limit_bytes=None,
    cache_folder="",
    choose_rows=40,
    test_rows=60,
    seed=1,
)


def _runner(world: FakeWorld | None = None) -> Runner:
    runner = FakeRunner(world)
    runner.prepare(JOB)
    return runner


def _train(runner, folder, candidate=CANDIDATE, *, name="trial-0000", steps=30, rungs=(10, 20), go_on=lambda _: True):
    request = TrainRequest(name=name, candidate=candidate, steps=steps, rungs=rungs, seed=1, output_folder=str(folder))
    return runner.train(request, go_on)


def test_preparing_splits_all_rows():
    facts = FakeRunner(FakeWorld(rows=400)).prepare(JOB)
    assert facts.rows == {"train": 300, "choose": 40, "test": 60}
    assert facts.split_hash == FakeRunner(FakeWorld(rows=400)).prepare(JOB).split_hash
    with pytest.raises(DataError, match="100 rows are too few to hold out 100"):
        FakeRunner(FakeWorld(rows=100)).prepare(JOB)


def test_a_training_has_one_report_for_each_rung_and_the_last_step(tmp_path):
    outcome = _train(_runner(), tmp_path)
    assert outcome.status == "complete"
    assert [report.step for report in outcome.curve] == [10, 20, 30]
    assert outcome.tokens == 30 * 8 * 60
    assert outcome.scores.eval_loss == outcome.curve[-1].eval_loss
    assert len(outcome.scores.losses) == 40


def test_false_at_a_rung_prunes_there(tmp_path):
    outcome = _train(_runner(), tmp_path, go_on=lambda report: report.step < 20)
    assert (outcome.status, outcome.steps) == ("pruned", 20)


def test_the_clock_counts_load_steps_and_scoring(tmp_path):
    runner = FakeRunner(FakeWorld(seconds_per_step=2.0, fixed_seconds=3.0, seconds_per_scored_row=0.1))
    runner.prepare(JOB)
    assert runner.clock() == 3.0
    outcome = _train(runner, tmp_path, steps=10, rungs=())
    # 3 s around it, 10 steps of 2 s, 40 rows of 0.1 s.
    assert outcome.seconds == pytest.approx(27.0)
    assert outcome.train_seconds == pytest.approx(20.0)
    assert runner.clock() == pytest.approx(30.0)


def test_a_dearer_method_takes_longer(tmp_path):
    dora = dataclasses.replace(CANDIDATE, method="dora")
    runner = _runner()
    # DoRA's step_time_ratio in search_spaces/dora.yaml is 1.05.
    ratio = _train(runner, tmp_path, dora).train_seconds / _train(runner, tmp_path).train_seconds
    assert ratio == pytest.approx(1.05)


def test_another_process_gives_the_same_scores(tmp_path):
    first = _train(_runner(), tmp_path)
    request = ScoreRequest(name="trial-0000", split="choose", candidate=CANDIDATE, adapter_folder=str(tmp_path))
    assert _runner().score(request).losses == first.scores.losses


def test_training_helps_more_steps_help_more_and_a_wrong_rate_helps_less(tmp_path):
    runner = _runner()
    untouched = runner.score(
        ScoreRequest(name="base", split="choose", candidate=CANDIDATE, adapter_folder=None)
    ).eval_loss
    short = _train(runner, tmp_path, steps=30).scores.eval_loss
    long = _train(runner, tmp_path, steps=300).scores.eval_loss
    wrong = _train(runner, tmp_path, dataclasses.replace(CANDIDATE, learning_rate=4e-6)).scores.eval_loss
    assert long < short < wrong < untouched + 0.05


def test_the_surface_follows_learning_rate_times_scaling(tmp_path):
    runner = FakeRunner(FakeWorld(row_noise=0.0))
    runner.prepare(JOB)
    halved = dataclasses.replace(CANDIDATE, learning_rate=CANDIDATE.learning_rate * 2, lora_alpha=8.0)
    assert _train(runner, tmp_path, halved).scores.eval_loss == pytest.approx(_train(runner, tmp_path).scores.eval_loss)


@pytest.mark.parametrize("failure", ["failed", "oom", "timeout"])
@pytest.mark.parametrize("key", ["lora", "trial-0000"])
def test_failures_come_by_method_or_by_name(tmp_path, failure, key):
    outcome = _train(_runner(FakeWorld(failures={key: failure})), tmp_path)
    assert (outcome.status, outcome.scores, outcome.adapter_folder) == (failure, None, None)
    assert outcome.error == f"simulated: {failure}"


def test_a_diverged_training_reports_no_number(tmp_path):
    outcome = _train(_runner(FakeWorld(failures={"lora": "diverged"})), tmp_path, go_on=lambda _: False)
    assert outcome.status == "pruned"
    assert math.isnan(outcome.curve[0].eval_loss)


def test_a_real_adapter_cannot_be_scored_by_the_fake(tmp_path):
    request = ScoreRequest(name="x", split="test", candidate=CANDIDATE, adapter_folder=str(tmp_path))
    with pytest.raises(WorkerError, match="holds no simulated adapter"):
        _runner().score(request)
