"""What follows from the untouched base model's scores: whether there is anything to fine-tune for."""

from __future__ import annotations

import math

from autopeft.specs import BaseAdvice, BaseScores, Finding, Score, ShotScores

GOOD_SCORE = 0.90
"""A judgement: what fine-tuning can still win is at most what is left to 1, and some of that are wrong references: at
least 3.3 % of the labels on average in ten much used test sets (arXiv 2103.14749, abstract read 2026-11-27)."""

CERTAIN_SCORE = 0.85
"""Lower end of the 95 % interval from which on a good score is believed: with 128 rows it takes 0.92."""

NEAR_LOSS = 0.3
"""Nats of a supervised token (perplexity 1.35) up to which the answers are as good as known. A judgement."""

FAR_LOSS = 3.0
"""Nats of a supervised token (perplexity 20) from which on data is unlike what the model writes. A judgement."""

GUESSED_SHARE = 0.9
"""Share of the loss of a uniform guess over the vocabulary from which on the model reads the data as noise."""

LABEL_F1 = "macro_f1"


def untouched_advice(scores: BaseScores) -> BaseAdvice:
    """Returns whether to fine-tune, to try a prompt first, or to leave the base as it is.

    A score is good from GOOD_SCORE on, if the lower end of its interval reaches CERTAIN_SCORE and lies above what an
    answer scores that takes no model. Of labels, macro F1 must reach CERTAIN_SCORE as well: with one class in front,
    accuracy alone flatters. Likenesses of texts (chrF, ROUGE) have no such bar, for several answers are right; there
    and for plain text the loss decides, and only near zero.

    Args:
        scores: with at least the zero-shot round; an encoder's have none, and it can only be trained.
    """
    if not scores.shots:
        return _untrained_head(scores)
    zero, few = scores.shots[0], scores.shots[-1]
    if _is_good(zero, scores):
        sentence = f"Do not fine-tune: the base model already {_scores(zero, scores)}{_and_prompt(few, scores)}"
        return BaseAdvice(verdict="keep-base", sentence=sentence, reasons=_reasons(scores))
    if _is_good(few, scores):
        sentence = f"Try a prompt before you fine-tune: with {_examples(few)} the base model {_scores(few, scores)}"
        sentence += f", without {_value(_figure(zero, scores))}"
        return BaseAdvice(verdict="prompt-first", sentence=sentence, reasons=_reasons(scores))
    if _looks_good(zero, scores) or _looks_good(few, scores):
        sentence = f"Too few rows to say: the base model {_scores(zero, scores)}{_and_prompt(few, scores)}; score more"
        return BaseAdvice(verdict="unclear", sentence=sentence, reasons=_reasons(scores))
    sentence = f"Fine-tuning has room: the base model {_scores(zero, scores)}{_and_prompt(few, scores)}"
    return BaseAdvice(verdict="fine-tune", sentence=sentence, reasons=_reasons(scores))


def distance_finding(scores: BaseScores) -> Finding | None:
    """Returns how far the data is from what the model already writes, by its zero-shot loss; None without one.

    Of labels the loss tells whether the model would word them so, not whether it knows which one is right: that is what
    the score says.
    """
    if not scores.shots:
        return None
    loss = scores.shots[0].loss
    of_labels = scores.task == "labels"
    token = "token of the right label" if of_labels else "supervised token"
    known = f"the untouched base model predicts a {token} with loss {_interval(loss)}, "
    known += f"perplexity {math.exp(loss.value):.3g}"
    guess = GUESSED_SHARE * math.log(scores.vocabulary) if scores.vocabulary else math.inf
    if loss.value >= guess:
        return _finding("warning", f"{known}: hardly better than guessing", scores, _GUESSED)
    if loss.value >= FAR_LOSS:
        if of_labels:
            return _finding("warning", f"{known}: it would not word the labels so", scores, _FAR_LABELS)
        return _finding("warning", f"{known}: far from what it writes", scores, _FAR)
    if loss.value <= NEAR_LOSS and not of_labels:
        return _finding("warning", f"{known}: it knows these answers already", scores, _NEAR)
    return _finding("info", known, scores, "")


_GUESSED = "check the columns, the encoding of the text and whether model and tokenizer belong together"
_FAR = (
    "check that prompt and completion are the right columns; if they are, expect to need a higher rank and more data, "
    "and keep a general text at hand to see what is forgotten"
)
_FAR_LABELS = (
    "check that the column of the labels is the right one, and name them in the prompt; a training learns their "
    "wording first, so that a falling loss need not mean better answers"
)
_NEAR = "do not expect much of a training; if the data is public, the model may have been trained on it"


def _finding(severity: str, message: str, scores: BaseScores, advice: str) -> Finding:
    assert severity in ("info", "warning")
    return Finding(
        code="distance-from-the-base",
        severity="warning" if severity == "warning" else "info",
        message=message,
        count=len(scores.rows),
        advice=advice,
    )


def _untrained_head(scores: BaseScores) -> BaseAdvice:
    always = f"; always guessing the most frequent label scores {_interval(scores.trivial)}" if scores.trivial else ""
    return BaseAdvice(
        verdict="fine-tune",
        sentence=f"Fine-tuning is needed: an encoder has no trained head for these labels{always}",
        reasons=("what is trained must beat the most frequent label, in macro F1 above all",),
    )


def _is_good(round_: ShotScores, scores: BaseScores) -> bool:
    if scores.task in ("texts", "loss"):
        return round_.loss.high is not None and round_.loss.high <= NEAR_LOSS
    score = round_.deciding
    assert score is not None, "these tasks have a deciding metric"
    trivial = scores.trivial.value if scores.trivial else 0.0
    return _looks_good(round_, scores) and score.low is not None and score.low >= max(CERTAIN_SCORE, trivial)


def _looks_good(round_: ShotScores, scores: BaseScores) -> bool:
    """Returns whether the figures themselves are good, however wide their intervals."""
    if scores.task in ("texts", "loss"):
        return round_.loss.value <= NEAR_LOSS
    rare = next((metric.value for metric in round_.metrics if metric.name == LABEL_F1), 1.0)
    return round_.deciding is not None and round_.deciding.value >= GOOD_SCORE and rare >= CERTAIN_SCORE


def _figure(round_: ShotScores, scores: BaseScores) -> Score:
    """Returns the figure that the advice names: the deciding metric where there is a bar for it, else the loss."""
    if scores.task in ("texts", "loss") or round_.deciding is None:
        return round_.loss
    return round_.deciding


def _scores(round_: ShotScores, scores: BaseScores) -> str:
    score = _figure(round_, scores)
    verb = "has a" if score.name == "loss" else "scores"
    name = "loss of" if score.name == "loss" else f"{score.name.replace('_', ' ')}"
    return f"{verb} {name} {_interval(score)} on {_rows(score)} rows"


def _and_prompt(few: ShotScores, scores: BaseScores) -> str:
    if not few.shots:
        return ""
    return f", and with {_examples(few)} in the prompt {_interval(_figure(few, scores))}"


def _examples(round_: ShotScores) -> str:
    return f"{round_.shots} example{'s' if round_.shots > 1 else ''}"


def _rows(score: Score) -> int:
    return len(score.per_example)


def _value(score: Score) -> str:
    return f"{score.value:.2f}"


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return f"{score.value:.2f} ({score.interval})"
    return f"{score.value:.2f} (95 %: {score.low:.2f} to {score.high:.2f})"


def _reasons(scores: BaseScores) -> tuple[str, ...]:
    few = scores.shots[-1]
    reasons = [_rule(scores)]
    if scores.trivial is not None:
        reasons.append(_trivial_reason(scores, scores.trivial))
    if scores.prompt_gain is not None and (scores.prompt_gain.low or 0.0) > 0:
        better = f"{_examples(few)} in the prompt help: what is trained must beat {_value(_figure(few, scores))}"
        reasons.append(f"{better}, not {_value(_figure(scores.shots[0], scores))}")
    return tuple(reasons)


def _rule(scores: BaseScores) -> str:
    if scores.task in ("texts", "loss"):
        return (
            f"several answers are right, so only a loss of at most {NEAR_LOSS} would say that nothing is left to learn"
        )
    also = f" and macro F1 {CERTAIN_SCORE}" if scores.task == "labels" else ""
    return (
        f"good means {GOOD_SCORE:.2f} or more{also}, with at least {CERTAIN_SCORE} at the lower end of the interval: "
        "beyond that wrong references hide what a training wins"
    )


def _trivial_reason(scores: BaseScores, trivial: Score) -> str:
    what = "always guessing the most frequent label" if scores.task == "labels" else "copying the prompt"
    name = trivial.name.replace("_", " ")
    return f"{what} scores {name} {_interval(trivial)}"
