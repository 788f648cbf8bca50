"""Scores of predicted texts and labels against their references, from 0 to 1 (MCC: from -1 to 1); higher is better.

Those of single texts are kept per example, so that two models can be compared in pairs; those of labels need all rows.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

TextMetric = Callable[[str, str], float]
"""``(prediction, reference) -> score``."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARKED_ANSWER = re.compile(r"####\s*\$?\s*(-?[\d.,]*\d)")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, reference: str) -> float:
    """Returns 1.0 if the two are equal but for case, ASCII punctuation, English articles and white space, else 0.0.

    The rule of SQuAD's evaluation script (recalled, unverified). It forgives what a person would, and also what matters
    in code: score that otherwise.
    """
    return float(_normalized(prediction) == _normalized(reference))


def numeric_match(prediction: str, reference: str) -> float:
    """Returns 1.0 if the two end in the same number, else 0.0; 0.0 where either has none.

    The final number is the one after ``####``, as GSM8K marks it (grade_school_math/dataset.py of
    https://github.com/openai/grade-school-math at 2909d34), else the last of the text. Unlike there, a prediction
    without the mark is read too, and 3.0 equals 3: the question is whether the model can compute, not whether it knows
    the mark. Fractions (1/2) and powers are not understood.
    """
    found, wanted = final_number(prediction), final_number(reference)
    return float(found is not None and found == wanted)


def final_number(text: str) -> float | None:
    """Returns the number that a text ends in: the one after the first ``####``, else its last; None if it has none."""
    marked = _MARKED_ANSWER.search(text)
    numbers = [marked[1]] if marked else _NUMBER.findall(text)
    try:
        return float(numbers[-1].replace(",", "")) if numbers else None
    except ValueError:  # "#### 1.2.3"
        return None


def token_f1(prediction: str, reference: str) -> float:
    """Returns the harmonic mean of precision and recall over words, after the normalization of ``exact_match``.

    The rule of SQuAD's evaluation script (recalled, unverified); two texts without a word are equal.
    """
    found, wanted = _normalized(prediction).split(), _normalized(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def rouge_l(prediction: str, reference: str) -> float:
    """Returns ROUGE-L's F-measure (package rouge-score): the longest common subsequence of words, without stemming."""
    return float(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure)


def chrf(prediction: str, reference: str) -> float:
    """Returns chrF of one text, as a share (package sacrebleu: character n-grams up to 6, beta 2).

    A mean of it over rows weighs rows equally; the corpus score that papers print weighs long ones more.
    """
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(prediction, [reference]).score) / 100


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of equal labels."""
    from sklearn.metrics import accuracy_score

    _check_lengths(predictions, references)
    return float(accuracy_score(references, predictions))


def macro_f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Returns the unweighted mean of the labels' F1 (scikit-learn): a rare label counts as much as a frequent one.

    Over the labels that occur on either side; one that is never predicted has F1 0.
    """
    from sklearn.metrics import f1_score

    _check_lengths(predictions, references)
    return float(f1_score(references, predictions, average="macro", zero_division=0))


def matthews_correlation(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Returns Matthews' correlation coefficient (scikit-learn), from -1 to 1; 0 for a constant prediction."""
    from sklearn.metrics import matthews_corrcoef

    _check_lengths(predictions, references)
    if len({*predictions, *references}) < 2:  # scikit-learn warns of a confusion matrix of one entry
        return 0.0
    return float(matthews_corrcoef(references, predictions))


TEXT_METRICS: dict[str, TextMetric] = {
    "exact_match": exact_match,
    "numeric_match": numeric_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "chrf": chrf,
}
"""Metrics of one text and its reference, by name."""

LABEL_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "mcc": matthews_correlation,
}
"""Metrics of all predicted labels and theirs, by name."""


def _normalized(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


class _Words:
    """Splits a text into words of any script; rouge-score's own tokenizer keeps ASCII alone."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def _check_lengths(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references) or not references:
        raise ValueError(f"{len(predictions)} predictions cannot be scored against {len(references)} references")
