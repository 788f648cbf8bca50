"""The real worker process on a tiny model."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from autopeft.errors import RunFolderError, WorkerError
from autopeft.profiling.dataset import hash_files
from autopeft.specs import Candidate, Job, RungReport, ScoreRequest, TrainRequest, to_json
from autopeft.training.client import WorkerRunner
from autopeft.training.process import worker_environment

LORA = Candidate(
    method="lora",
    r=4,
    lora_alpha=4.0,
    target_modules=("down_proj", "q_proj", "v_proj"),
    dtype="float32",
    learning_rate=1e-2,
    per_device_batch_size=8,
    max_length=32,
    trainer="transformers",
)
ADALORA = replace(LORA, method="adalora", lora_alpha=6.0, options={"init_r": 6}, learning_rate=3e-2)


def always(report: RungReport) -> bool:
    return True


def job_for(model: Path, data: Path, cache: Path) -> Job:
    return Job(
        model=str(model),
        revision=None,
        data_files=(str(data),),
        data_hash=hash_files((str(data),)),
        data_format="prompt_completion",
        columns={"prompt": "prompt", "completion": "completion"},
        max_length=32,
        device="cpu",
        memory_limit_bytes=8 * 2**30,
        cache_folder=str(cache),
        choose_rows=20,
        test_rows=30,
        seed=0,
    )


@pytest.fixture(scope="module")
def job(tiny_model: Path, number_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job_for(tiny_model, number_data, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def runner(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerRunner]:
    runner = WorkerRunner(tmp_path_factory.mktemp("log") / "worker.log")
    runner.prepare(job)
    yield runner
    runner.close()


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., TrainRequest]:
    def make(
        candidate: Candidate = LORA, steps: int = 12, rungs: tuple[int, ...] = (), name: str = "t"
    ) -> TrainRequest:
        folder = tmp_path / name
        folder.mkdir()
        return TrainRequest(name=name, candidate=candidate, steps=steps, rungs=rungs, seed=3, output_folder=str(folder))

    return make


def worker_of(runner: WorkerRunner) -> psutil.Process:
    return psutil.Process(runner._ready()._process.pid)


def test_a_training_learns_and_its_saved_adapter_scores_the_same(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    base = runner.score(ScoreRequest(name="base", split="choose", candidate=LORA, adapter_folder=None))
    outcome = runner.train(request_for(steps=40, rungs=(10, 20)), always)
    assert outcome.status == "complete", outcome.error
    assert outcome.scores is not None
    assert outcome.scores.eval_loss < base.eval_loss - 0.3
    assert [report.step for report in outcome.curve] == [10, 20, 40]
    assert outcome.curve[0].tokens < outcome.curve[1].tokens < outcome.tokens
    assert outcome.measured_peak_kind == "resident"
    assert outcome.measured_peak_bytes is not None
    assert outcome.measured_peak_bytes > 2**27
    again = runner.score(
        ScoreRequest(name="again", split="choose", candidate=LORA, adapter_folder=outcome.adapter_folder)
    )
    assert again.eval_loss == pytest.approx(outcome.scores.eval_loss, abs=1e-5)
    assert again.losses == pytest.approx(outcome.scores.losses, abs=1e-3)


def test_a_training_that_is_told_to_stop_at_a_rung_is_pruned(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    outcome = runner.train(request_for(steps=30, rungs=(5, 10)), lambda report: report.step < 10)
    assert (outcome.status, outcome.steps) == ("pruned", 10)
    assert [report.step for report in outcome.curve] == [5, 10]


def test_a_loss_that_is_no_number_fails_with_the_learning_rate_named(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    # The first step makes every weight so large that squares overflow.
    full = replace(LORA, method="full", r=None, lora_alpha=None, target_modules=(), adapter_dtype=None)
    outcome = runner.train(request_for(replace(full, learning_rate=1e30), steps=30), always)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "with learning_rate 1e+30 in float32" in outcome.error


def test_a_time_limit_ends_a_training_with_that_status(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    outcome = runner.train(replace(request_for(steps=2000), seconds_limit=0.2), always)
    assert outcome.status == "timeout"
    assert 0 < outcome.steps < 2000


@pytest.mark.parametrize("candidate", [LORA, ADALORA], ids=lambda candidate: candidate.method)
def test_the_same_seed_trains_the_same_adapter(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest], candidate: Candidate
) -> None:
    first = runner.train(request_for(candidate, steps=20, name="first"), always)
    second = runner.train(request_for(candidate, steps=20, name="second"), always)
    assert first.scores is not None
    assert second.scores is not None
    assert first.scores.losses == second.scores.losses
    assert first.details == second.details


def test_adalora_ends_with_the_rank_budget_and_unequal_layers(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    outcome = runner.train(request_for(ADALORA, steps=40), always)
    pattern = outcome.details["rank_pattern"]
    assert isinstance(pattern, dict)
    assert len(pattern) == 6  # three modules in each of two layers
    assert sum(pattern.values()) == 4 * 6
    assert len(set(pattern.values())) > 1


def test_gradient_accumulation_equals_one_large_batch(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    whole = runner.train(request_for(steps=5, name="whole"), always)
    halves = replace(LORA, per_device_batch_size=4, gradient_accumulation_steps=2)
    split = runner.train(request_for(halves, steps=5, name="split"), always)
    assert whole.scores is not None
    assert split.scores is not None
    assert split.tokens == whole.tokens
    assert split.scores.eval_loss == pytest.approx(whole.scores.eval_loss, rel=1e-3)


def test_full_fine_tuning_saves_a_model_that_scores_the_same(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    full = replace(LORA, method="full", r=None, lora_alpha=None, target_modules=(), adapter_dtype=None)
    outcome = runner.train(request_for(full, steps=12), always)
    assert outcome.scores is not None, outcome.error
    again = runner.score(ScoreRequest(name="f", split="choose", candidate=full, adapter_folder=outcome.adapter_folder))
    assert again.eval_loss == pytest.approx(outcome.scores.eval_loss, abs=1e-5)


def test_a_killed_worker_fails_its_training_and_is_replaced(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    def kill(report: RungReport) -> bool:
        worker_of(runner).send_signal(signal.SIGKILL)
        return True

    outcome = runner.train(request_for(steps=20, rungs=(5,), name="killed"), kill)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "signal 9" in outcome.error
    assert runner.train(request_for(steps=12, name="next"), always).status == "complete"


def with_tight_worker(runner: WorkerRunner) -> None:
    """Gives the present worker 1 MiB more than it holds now; the one after it has the job's limit again."""
    runner._ready().watch._limit_bytes = worker_of(runner).memory_info().rss + 2**20


def test_over_the_memory_limit_the_micro_batch_is_halved_and_the_steps_stay_the_same(
    job: Job, runner: WorkerRunner, tmp_path: Path, request_for: Callable[..., TrainRequest]
) -> None:
    whole = runner.train(request_for(steps=12, name="whole"), always)
    tight = WorkerRunner(tmp_path / "worker.log")
    tight.prepare(job)
    try:
        with_tight_worker(tight)
        outcome = tight.train(request_for(steps=12), always)
    finally:
        tight.close()
    assert outcome.status == "complete", outcome.error
    assert outcome.trained == replace(LORA, per_device_batch_size=4, gradient_accumulation_steps=2)
    ladder = outcome.details["memory_ladder"]
    assert isinstance(ladder, list)
    assert [(rung["lever"], rung["before"], rung["after"]) for rung in ladder] == [("per_device_batch_size", 8, 4)]
    assert "memory budget" in ladder[0]["error"]
    assert whole.scores is not None
    assert outcome.scores is not None
    assert outcome.tokens == whole.tokens
    assert outcome.scores.eval_loss == pytest.approx(whole.scores.eval_loss, rel=1e-3)


def test_memory_over_the_limit_at_the_bottom_of_the_ladder_is_out_of_memory(
    job: Job, tmp_path: Path, request_for: Callable[..., TrainRequest]
) -> None:
    smallest = replace(LORA, per_device_batch_size=1, activation_checkpointing=True, optimizer="sgd")
    runner = WorkerRunner(tmp_path / "worker.log")
    runner.prepare(job)
    try:
        with_tight_worker(runner)
        outcome = runner.train(request_for(smallest, steps=200), always)
    finally:
        runner.close()
    assert outcome.status == "oom"
    assert outcome.error is not None
    assert "memory budget" in outcome.error


_SMALL_DEVICE = """
import torch

embedding = torch.nn.functional.embedding

def limited(input, *args, **kwargs):
    if torch.is_grad_enabled() and input.numel() > {tokens}:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return embedding(input, *args, **kwargs)

torch.nn.functional.embedding = limited
"""


@pytest.mark.slow
def test_a_device_that_raises_out_of_memory_is_led_down_the_whole_ladder(
    job: Job, tmp_path: Path, request_for: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes 64 tokens in training: less than the longest row has, until that may be cut."""
    (tmp_path / "sitecustomize.py").write_text(_SMALL_DEVICE.format(tokens=64), encoding="utf-8")
    long_rows = tmp_path / "long.jsonl"
    lines = [json.dumps({"prompt": f"{n}:", "completion": "y" * (50 + n % 60)}) for n in range(120)]
    long_rows.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runner = WorkerRunner(tmp_path / "worker.log")
    long_job = replace(job, data_files=(str(long_rows),), data_hash=hash_files((str(long_rows),)), max_length=128)
    candidate = replace(LORA, per_device_batch_size=2, max_length=128)
    try:
        runner.prepare(long_job)
        outcome = runner.train(replace(request_for(candidate, steps=3), allow_shorter=True), always)
    finally:
        runner.close()
    ladder = outcome.details["memory_ladder"]
    assert isinstance(ladder, list)
    levers = [rung["lever"] for rung in ladder]
    assert levers == ["per_device_batch_size", "activation_checkpointing", "optimizer", "max_length"]
    assert "ran out of memory" in ladder[0]["error"]
    assert outcome.trained is not None
    assert outcome.trained.effective_batch_size == 2
    assert outcome.status == "complete", outcome.error


def test_the_longest_row_is_in_the_first_batch_of_every_epoch() -> None:
    from autopeft.training.trainer import RowSampler

    lengths = [5, 9, 3, 40, 8, 7, 6, 5] * 20
    for epoch in range(3):
        sampler = RowSampler(4, lengths, seed=epoch)
        sampler.set_epoch(epoch)
        assert lengths[next(iter(sampler))] == 40


def test_a_candidate_that_packs_is_refused_and_not_trained_without(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    outcome = runner.train(request_for(replace(LORA, packing=True), steps=2), always)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "no training packs them yet" in outcome.error


def test_changed_data_is_refused_by_its_hash(job: Job, tmp_path: Path) -> None:
    runner = WorkerRunner(tmp_path / "worker.log")
    with pytest.raises(RunFolderError, match="data has changed since the plan was made"):
        runner.prepare(replace(job, data_hash="0" * 64))
    runner.close()


def test_a_model_that_is_not_there_is_told_with_the_log(job: Job, tmp_path: Path) -> None:
    empty = tmp_path / "nothing"
    empty.mkdir()
    runner = WorkerRunner(tmp_path / "worker.log")
    with pytest.raises(Exception, match=r"config\.json"):
        runner.prepare(replace(job, model=str(empty)))
    runner.close()


def test_a_worker_ends_when_its_parent_is_gone(job: Job, tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from autopeft.specs import Job, from_json\n"
        "from autopeft.training.process import WorkerProcess\n"
        "worker = WorkerProcess(Path(sys.argv[1]), from_json(sys.argv[2], Job, 'job'))\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log"), to_json(job)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, alive = psutil.wait_procs([worker], timeout=30)
    assert not alive, "the worker outlived its parent"
    assert gone


def test_a_worker_that_cannot_start_is_an_error_with_the_log(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "torch.py"
    broken.write_text("raise SystemExit(9)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runner = WorkerRunner(tmp_path / "worker.log")
    with pytest.raises(WorkerError, match=r"exit code 9.*worker\.log"):
        runner.prepare(job)
    runner.close()


def test_closing_twice_is_safe(tmp_path: Path) -> None:
    runner = WorkerRunner(tmp_path / "worker.log")
    runner.close()
    runner.close()
    assert not (tmp_path / "worker.log").exists()


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [
        ({}, "cuda", {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ({"CUDA_VISIBLE_DEVICES": "3, 1"}, "cuda", {"CUDA_VISIBLE_DEVICES": "3"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-4a,GPU-7b"}, "cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-4a"}),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, "cpu", {"CUDA_VISIBLE_DEVICES": "3,1"}),
    ],
)
def test_a_worker_sees_one_gpu_alone(given: dict[str, str], device: str, expected: dict[str, str]) -> None:
    environment = worker_environment(given, device)
    assert {name: value for name, value in environment.items() if name.startswith("CUDA_")} == expected


def test_the_users_thread_settings_stand() -> None:
    assert worker_environment({"OMP_WAIT_POLICY": "ACTIVE"}, "cpu")["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_adapter_of_a_quantized_base_is_trained_and_saved_in_the_dtype_that_was_asked_for(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    """trl would store it in bfloat16."""
    from safetensors.torch import load_file

    candidate = replace(LORA, method="loftq", quantization="nf4", double_quantization=True, dtype="bfloat16")
    outcome = runner.train(request_for(candidate, steps=3), always)
    assert outcome.status == "complete", outcome.error
    saved = load_file(Path(str(outcome.adapter_folder)) / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in saved.values()} == {"torch.float32"}


def test_a_held_out_loss_that_is_no_number_is_a_failed_training(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    full = replace(LORA, method="full", r=None, lora_alpha=None, target_modules=(), adapter_dtype=None)
    outcome = runner.train(request_for(replace(full, learning_rate=1e30), steps=2), always)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "held-out loss became nan" in outcome.error


def test_dropout_does_not_change_the_order_of_the_rows(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest]
) -> None:
    """150 rows, 19 steps an epoch: the rungs lie in three epochs."""
    rungs = tuple(range(1, 50, 4))
    plain = runner.train(request_for(LORA, steps=52, rungs=rungs, name="plain"), always)
    dropping = runner.train(request_for(replace(LORA, lora_dropout=0.3), steps=52, rungs=rungs, name="drop"), always)
    assert [report.tokens for report in plain.curve] == [report.tokens for report in dropping.curve]


@pytest.mark.parametrize("candidate", [LORA, replace(LORA, quantization="nf4")], ids=["16-bit", "nf4"])
def test_both_losses_score_alike(
    runner: WorkerRunner, request_for: Callable[..., TrainRequest], candidate: Candidate
) -> None:
    fused = replace(candidate, trainer="trl")
    scores = [
        runner.score(ScoreRequest(name="base", split="choose", candidate=each, adapter_folder=None))
        for each in (candidate, fused)
    ]
    assert scores[0].losses == pytest.approx(scores[1].losses, rel=1e-3)
    trained = runner.train(request_for(fused, steps=5), always)
    assert trained.status == "complete", trained.error


def test_the_memory_limit_of_a_gpu_is_given_by_its_index(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses the device "cuda" without an index; this machine stands in for one GPU of 24 GiB."""
    import torch

    from autopeft.training.session import _limit_memory

    limits = []
    monkeypatch.setattr("torch.cuda.memory._lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=24 * 2**30))
    monkeypatch.setattr(
        torch._C, "_cuda_setMemoryFraction", lambda fraction, index: limits.append((fraction, index)), raising=False
    )
    _limit_memory(replace(job, device="cuda", memory_limit_bytes=12 * 2**30 + 2**29))
    assert limits == [(0.5, 0)]
