"""What the untouched base model already does on the data: asked, measured, and what follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopeft.specs.candidate import Candidate

ScoredTask = Literal["labels", "numbers", "answers", "texts", "loss"]
"""How the base is scored: "labels" by the likeliest of few answers, "numbers" by the final number and "answers" by
short exact answers of a greedy generation, "texts" by the likeness of one, "loss" by nothing else (plain text)."""

BaseVerdict = Literal["keep-base", "prompt-first", "fine-tune", "unclear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One figure with its 95 % interval.

    Attributes:
        name: a metric of ``training.metrics``; "loss" is mean negative log-likelihood of a supervised token, in nats.
        low: lower end; None where there is no interval.
        high: upper end; None where there is no interval.
        interval: "wilson" for shares of rows, "bootstrap" (expanded percentile, over rows) for everything else; or why
            there is none.
        per_example: the value of each scored row; empty for figures of all rows together (macro F1).
    """

    name: str
    value: float
    low: float | None
    high: float | None
    interval: Literal["wilson", "bootstrap", "too few rows for an interval", "no interval: the rows score alike"]
    per_example: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotScores:
    """What the base scores with so many examples in its prompt.

    Attributes:
        shots: examples before each row; 0 is zero-shot.
        shot_rows: their 0-based numbers in the data set, in the order of the prompt.
        loss: of the rows in ``BaseScores.rows``; ``per_example`` is each row's summed loss.
        supervised_tokens: of each of these rows.
        metrics: the deciding one first; over ``BaseScores.rows`` for labels, else over ``generated_rows``. Empty where
            only the loss is known.
    """

    shots: int
    shot_rows: tuple[int, ...]
    loss: Score
    supervised_tokens: tuple[int, ...]
    metrics: tuple[Score, ...] = ()

    @property
    def deciding(self) -> Score | None:
        """The metric that the advice goes by; None where only the loss is known."""
        return self.metrics[0] if self.metrics else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseAdvice:
    """What follows from the figures.

    Attributes:
        sentence: what to do and the figure that says so, with its interval.
        reasons: the rule that was applied, and what it cannot see.
    """

    verdict: BaseVerdict
    sentence: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseScores:
    """The untouched base model on a seeded sample of the data.

    Attributes:
        model: as the user named it; "" where nothing but the trivial answer was scored (an encoder).
        task: how it was scored.
        seed: of sample, examples and resampling.
        rows: 0-based numbers of the scored rows in the data set, in the order of the scores.
        generated_rows: the first so many of them were answered by generation; 0 where none was.
        shots: zero-shot first, then with examples in the prompt where they fit.
        trivial: what an answer that looks at nothing (the most frequent label), or at nothing but the prompt (its
            copy), scores in the deciding metric, labels on all sampled rows; None where there is none.
        prompt_gain: paired difference, examples in the prompt minus zero-shot, positive where they help: of the
            deciding metric, else of the loss (whose fall counts as gain); None without few-shot scores.
        vocabulary: tokens that the model tells apart; None where it was not loaded.
        device: what computed it.
        dtype: type that it was computed in.
        quantization: storage of the base.
        seconds: stage -> seconds; the only figures that differ between two calls on one machine.
        notes: conditions that a reader must know, one sentence each.
    """

    model: str
    task: ScoredTask
    seed: int
    rows: tuple[int, ...]
    generated_rows: int = 0
    shots: tuple[ShotScores, ...] = ()
    trivial: Score | None = None
    prompt_gain: Score | None = None
    vocabulary: int | None = None
    device: str = ""
    dtype: str = ""
    quantization: str = ""
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
    advice: BaseAdvice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRequest:
    """Scores the untouched base on the prepared job: rows of "choose" are scored, rows of "train" are the examples.

    Attributes:
        candidate: its quantization, dtype and attention load the base.
        rows: the first so many of "choose" are scored; None means as many as ``training.pacing`` finds time for.
        shots: examples in the prompt at most; 0 scores zero-shot alone.
        labels: all labels of the data set where they are known; empty means those that the rows hold.
        tokens_per_forward: padded tokens of one forward at most, so that memory stays bounded.
    """

    candidate: Candidate
    rows: int | None
    shots: int
    seed: int
    labels: tuple[str, ...] = ()
    tokens_per_forward: int = 4096
