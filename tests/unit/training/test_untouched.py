"""The untouched base on a tiny model with random weights: each task, in the worker's own code."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from autopeft.errors import DataError
from autopeft.profiling.dataset import hash_files
from autopeft.specs import BaseRequest, BaseScores, Candidate, Job
from autopeft.training.session import Session
from autopeft.training.untouched import score_base

CANDIDATE = Candidate(method="lora", r=None, lora_alpha=None, dtype="float32")
Rows = Sequence[Mapping[str, str]]
NUMBERS = [{"prompt": f"{n} + 1 = ", "completion": str(n + 1)} for n in range(40)]
PARITY = [{"text": f"number {n}", "label": "odd" if n % 2 else "even"} for n in range(40)]
STYLE = [{"prompt": f"Say it well: {n} of it", "completion": f"It is {n} of it and so say we all"} for n in range(40)]
PLAIN = [{"text": f"Line {n} of a text without a question."} for n in range(40)]


@pytest.fixture
def score(tiny_model: Path, tmp_path: Path) -> Callable[..., BaseScores]:
    def run(rows: Rows, shots: int = 2, max_length: int = 256, seed: int = 0, count: int | None = 12) -> BaseScores:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        names = tuple(rows[0])
        data_format = {"prompt": "prompt_completion"}.get(names[0], "classification" if "label" in names else "text")
        job = Job(
            model=str(tiny_model),
            revision=None,
            data_files=(str(path),),
            data_hash=hash_files((str(path),)),
            data_format=data_format,
            columns={name: name for name in names},
            max_length=max_length,
            device="cpu",
            memory_limit_bytes=None,
            cache_folder=str(tmp_path),
            choose_rows=12,
            test_rows=2,
            seed=0,
        )
        told: list[tuple[str, int, int]] = []
        request = BaseRequest(candidate=CANDIDATE, rows=count, shots=shots, seed=seed)
        found = score_base(Session(job), request, lambda *step: told.append(step))
        assert told[-1][1] == told[-1][2]
        return found

    return run


@pytest.mark.parametrize(
    ("rows", "task", "metrics", "trivial"),
    [
        (NUMBERS, "numbers", ["numeric_match", "exact_match"], None),
        (PARITY, "labels", ["accuracy", "macro_f1"], "accuracy"),
        (STYLE, "texts", ["chrf", "rouge_l", "token_f1"], "chrf"),
        (PLAIN, "loss", [], None),
    ],
    ids=["numbers", "labels", "texts", "loss"],
)
def test_each_task_has_its_metrics(
    score: Callable[..., BaseScores], rows: Rows, task: str, metrics: list[str], trivial: str | None
) -> None:
    found = score(rows)
    assert found.task == task
    assert [each.shots for each in found.shots] == ([0] if task == "loss" else [0, 2])
    for each in found.shots:
        assert [metric.name for metric in each.metrics] == metrics
        # A random model of 260 tokens is about as good as guessing.
        assert each.loss.low is not None
        assert each.loss.high is not None
        assert each.loss.low < each.loss.value < each.loss.high
        assert each.loss.value == pytest.approx(5.56, abs=0.3)
        assert len(each.loss.per_example) == len(each.supervised_tokens) == len(found.rows) == 12
        assert not set(each.shot_rows) & set(found.rows)
    assert (found.trivial.name if found.trivial else None) == trivial
    assert (found.prompt_gain is None) == (task == "loss")


def test_the_same_seed_gives_the_same_scores_and_another_seed_other_examples(
    score: Callable[..., BaseScores],
) -> None:
    first, again, other = score(PARITY), score(PARITY), score(PARITY, seed=1)
    assert first.shots == again.shots
    assert first.shots[1].shot_rows != other.shots[1].shot_rows


def test_examples_that_do_not_fit_are_left_out_and_that_is_said(score: Callable[..., BaseScores]) -> None:
    found = score(STYLE, shots=4, max_length=170)
    assert len(found.shots[-1].shot_rows) < 4
    assert any("examples fit into the prompt" in note for note in found.notes)


def test_rows_longer_than_the_context_cannot_be_scored(score: Callable[..., BaseScores]) -> None:
    with pytest.raises(DataError, match="only 0 of 12 sampled rows"):
        score(STYLE, max_length=40)


def test_where_no_number_is_asked_for_time_decides_and_that_number_gives_the_same_figures(
    score: Callable[..., BaseScores], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopeft.training.pacing.TARGET_SECONDS", 0.0)
    hurried = score(NUMBERS, count=None)
    assert len(hurried.rows) == 4
    assert any(note.startswith("4 of 12 sampled rows were scored, 2 of them by generation") for note in hurried.notes)
    assert hurried.shots == score(NUMBERS, count=4).shots
    monkeypatch.setattr("autopeft.training.pacing.TARGET_SECONDS", 1000.0)
    patient = score(NUMBERS, count=None)
    assert patient.rows[:4] == hurried.rows
    assert patient.shots == score(NUMBERS, count=12).shots


def test_the_most_frequent_label_is_the_trivial_answer(score: Callable[..., BaseScores]) -> None:
    rare = [{"text": f"number {n}", "label": "rare" if n % 10 == 0 else "often"} for n in range(60)]
    found = score(rare, count=2)
    assert found.trivial is not None
    # 6 of 60 rows are rare, and two rows are held out for the test split: counted on all others, not on two.
    assert len(found.trivial.per_example) == 58
    assert found.trivial.value == pytest.approx(0.9, abs=0.04)
