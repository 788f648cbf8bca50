"""The rule that turns the untouched base's figures into advice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopeft.recommend.untouched import distance_finding, untouched_advice
from autopeft.specs import BaseScores, Score, ScoredTask, ShotScores

LOSS = Score(name="loss", value=1.56, low=1.48, high=1.64, interval="bootstrap", per_example=(1.5,) * 128)


def share(value: float, low: float, high: float, name: str = "accuracy") -> Score:
    return Score(name=name, value=value, low=low, high=high, interval="wilson", per_example=(1.0,) * 128)


GOOD, BAD = share(0.94, 0.88, 0.97), share(0.40, 0.32, 0.49)
F1 = Score(name="macro_f1", value=0.93, low=0.87, high=0.97, interval="bootstrap")


def scores(
    zero: Score | None, few: Score | None = None, *, task: ScoredTask = "labels", loss: Score = LOSS, f1: Score = F1
) -> BaseScores:
    def round_(shots: int, deciding: Score | None) -> ShotScores:
        metrics = () if deciding is None else (deciding, f1) if task == "labels" else (deciding,)
        return ShotScores(shots=shots, shot_rows=(), loss=loss, supervised_tokens=(10,) * 128, metrics=metrics)

    rounds = (round_(0, zero), *([round_(4, few)] if few else []))
    return BaseScores(model="m", task=task, seed=0, rows=tuple(range(128)), shots=rounds, vocabulary=49152, seconds={})


def test_a_base_that_is_good_already_needs_no_fine_tuning() -> None:
    advice = untouched_advice(scores(GOOD, share(0.96, 0.91, 0.98)))
    assert advice.verdict == "keep-base"
    assert advice.sentence == (
        "Do not fine-tune: the base model already scores accuracy 0.94 (95 %: 0.88 to 0.97) on 128 rows, "
        "and with 4 examples in the prompt 0.96 (95 %: 0.91 to 0.98)"
    )


def test_a_base_that_a_prompt_makes_good_gets_the_prompt_first() -> None:
    advice = untouched_advice(scores(BAD, GOOD))
    assert advice.verdict == "prompt-first"
    assert "with 4 examples the base model scores accuracy 0.94" in advice.sentence
    assert advice.sentence.endswith("without 0.40")


def test_a_base_that_is_not_good_leaves_room() -> None:
    gain = Score(name="accuracy", value=0.12, low=0.05, high=0.2, interval="bootstrap")
    advice = untouched_advice(replace(scores(BAD, share(0.52, 0.43, 0.6)), prompt_gain=gain))
    assert advice.verdict == "fine-tune"
    assert any("what is trained must beat 0.52, not 0.40" in reason for reason in advice.reasons)


def test_a_good_score_on_few_rows_is_not_believed() -> None:
    advice = untouched_advice(scores(share(0.93, 0.70, 0.98)))
    assert (advice.verdict, advice.sentence.startswith("Too few rows")) == ("unclear", True)


def test_a_likeness_or_a_loss_of_two_rows_is_told_without_an_interval() -> None:
    loss = Score(
        name="loss", value=0.1, low=None, high=None, interval="too few rows for an interval", per_example=(1, 1)
    )
    advice = untouched_advice(scores(None, task="loss", loss=loss))
    assert advice.verdict == "unclear"
    assert "loss of 0.10 (too few rows for an interval) on 2 rows" in advice.sentence


def test_accuracy_that_always_guessing_reaches_too_is_not_good() -> None:
    majority = replace(scores(share(0.92, 0.86, 0.96)), trivial=share(0.91, 0.85, 0.95))
    assert untouched_advice(majority).verdict != "keep-base"


def test_accuracy_without_the_rare_label_is_not_good() -> None:
    assert untouched_advice(scores(GOOD, f1=replace(F1, value=0.49))).verdict == "fine-tune"


@pytest.mark.parametrize("task", ["texts", "loss"])
def test_a_likeness_alone_never_spares_the_training_but_a_loss_near_zero_does(task: ScoredTask) -> None:
    deciding = share(0.99, 0.98, 1.0, "chrf") if task == "texts" else None
    assert untouched_advice(scores(deciding, task=task)).verdict == "fine-tune"
    near = Score(name="loss", value=0.1, low=0.05, high=0.2, interval="bootstrap", per_example=(1.0,) * 128)
    assert untouched_advice(scores(deciding, task=task, loss=near)).verdict == "keep-base"


def test_a_better_base_never_turns_the_advice_towards_training() -> None:
    order = ("fine-tune", "unclear", "keep-base")
    places = []
    for hundredths in range(0, 101, 5):
        value = hundredths / 100
        score = share(value, max(0.0, value - 0.06), min(1.0, value + 0.05))
        places.append(order.index(untouched_advice(scores(score, task="numbers")).verdict))
    assert places == sorted(places)
    assert set(places) == {0, 1, 2}


@pytest.mark.parametrize(
    ("loss", "severity", "words"),
    [
        (0.1, "warning", "it knows these answers already"),
        (1.56, "info", "perplexity 4.76"),
        (4.0, "warning", "far from what it writes"),
        (10.5, "warning", "hardly better than guessing"),  # ln 49152 = 10.8
    ],
)
def test_the_loss_says_how_far_the_data_is(loss: float, severity: str, words: str) -> None:
    measured = Score(name="loss", value=loss, low=loss - 0.05, high=loss + 0.05, interval="bootstrap")
    finding = distance_finding(scores(BAD, task="texts", loss=measured))
    assert finding is not None
    assert finding.severity == severity
    assert words in finding.message


@pytest.mark.parametrize(
    ("loss", "severity", "words"),
    [
        (0.1, "info", "predicts a token of the right label with loss 0.10"),
        (4.0, "warning", "it would not word the labels so"),
        (10.5, "warning", "hardly better than guessing"),
    ],
)
def test_of_labels_the_loss_says_how_they_are_worded_and_the_score_whether_they_are_known(
    loss: float, severity: str, words: str
) -> None:
    measured = Score(name="loss", value=loss, low=loss - 0.05, high=loss + 0.05, interval="bootstrap")
    finding = distance_finding(scores(BAD, task="labels", loss=measured))
    assert finding is not None
    assert finding.severity == severity
    assert words in finding.message
    assert "it knows these answers" not in finding.message


def test_an_encoder_has_no_distance_and_must_be_trained() -> None:
    nothing = replace(scores(BAD), shots=(), trivial=share(0.87, 0.86, 0.88))
    assert distance_finding(nothing) is None
    advice = untouched_advice(nothing)
    assert advice.verdict == "fine-tune"
    assert "always guessing the most frequent label scores 0.87" in advice.sentence
