"""A training that was killed goes on to the same loss curve."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autopeft.profiling.dataset import hash_files
from autopeft.specs import Candidate, Job, RungReport, TrainOutcome, TrainRequest
from autopeft.training.checkpoint import checkpoint_steps, fingerprint, open_checkpoints
from autopeft.training.client import WorkerRunner

DROPPING = Candidate(
    method="lora",
    r=4,
    lora_alpha=4.0,
    lora_dropout=0.2,
    target_modules=("down_proj", "q_proj", "v_proj"),
    dtype="float32",
    learning_rate=1e-2,
    per_device_batch_size=4,
    gradient_accumulation_steps=2,
    max_length=32,
    trainer="transformers",
)
ADALORA = replace(DROPPING, method="adalora", lora_alpha=6.0, options={"init_r": 6})
RUNGS = (8, 17, 24, 29, 35)


@pytest.fixture(scope="module")
def job(tiny_model: Path, number_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(
        model=str(tiny_model),
        revision=None,
        data_files=(str(number_data),),
        data_hash=hash_files((str(number_data),)),
        data_format="prompt_completion",
        columns={"prompt": "prompt", "completion": "completion"},
        max_length=32,
        device="cpu",
        memory_limit_bytes=8 * 2**30,
        cache_folder=str(tmp_path_factory.mktemp("cache")),
        choose_rows=20,
        test_rows=30,
        seed=0,
    )


@pytest.fixture(scope="module")
def runner(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerRunner]:
    runner = WorkerRunner(tmp_path_factory.mktemp("log") / "worker.log")
    runner.prepare(job)
    yield runner
    runner.close()


def request_of(candidate: Candidate, folder: Path, *, checkpointed: bool) -> TrainRequest:
    folder.mkdir()
    return TrainRequest(
        name=folder.name,
        candidate=candidate,
        steps=40,
        rungs=RUNGS,
        seed=3,
        output_folder=str(folder),
        checkpoint_folder=str(folder / "checkpoints") if checkpointed else None,
    )


def always(report: RungReport) -> bool:
    return True


def kill_at(runner: WorkerRunner, step: int) -> Callable[[RungReport], bool]:
    def go_on(report: RungReport) -> bool:
        if report.step == step:
            psutil.Process(runner._ready()._process.pid).send_signal(signal.SIGKILL)
        return True

    return go_on


def curve_of(outcome: TrainOutcome) -> list[tuple[int, int, float, float]]:
    return [(each.step, each.tokens, each.eval_loss, each.train_loss) for each in outcome.curve]


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_curve_scores_and_ranks_in_ci(
    runner: WorkerRunner, tmp_path: Path
) -> None:
    """Killed at step 29, in the second of its epochs of 19 steps; the last whole checkpoint is of step 20."""
    whole = runner.train(request_of(ADALORA, tmp_path / "whole", checkpointed=False), always)
    request = request_of(ADALORA, tmp_path / "killed", checkpointed=True)
    killed = runner.train(request, kill_at(runner, 29))
    assert killed.status == "failed"
    outcome = runner.train(request, always)
    assert outcome.status == "complete", outcome.error
    assert outcome.details.pop("resumed_at_step") == 20
    assert curve_of(outcome) == [pytest.approx(point, rel=1e-6) for point in curve_of(whole)]
    assert outcome.scores is not None
    assert whole.scores is not None
    assert outcome.scores.losses == pytest.approx(whole.scores.losses, rel=1e-5)
    assert outcome.details == whole.details
    assert outcome.first_step_seconds is not None


def test_checkpoints_of_another_training_are_not_gone_on_from(job: Job, tmp_path: Path) -> None:
    request = request_of(DROPPING, tmp_path / "t", checkpointed=True)
    folder = tmp_path / "t" / "checkpoints"
    assert open_checkpoints(folder, fingerprint(job, request)) is None
    whole = folder / "checkpoint-10"
    whole.mkdir()
    (whole / "progress.json").write_text("{}", encoding="utf-8")
    (folder / "checkpoint-20").mkdir()  # killed while it was being written
    assert open_checkpoints(folder, fingerprint(job, request)) == whole
    other = replace(request, candidate=replace(DROPPING, learning_rate=2e-2))
    assert open_checkpoints(folder, fingerprint(job, other)) is None
    assert not whole.exists()


def test_a_killed_training_loses_at_most_a_tenth() -> None:
    assert [checkpoint_steps(steps) for steps in (5, 100, 1000, 1001)] == [10, 10, 100, 101]
