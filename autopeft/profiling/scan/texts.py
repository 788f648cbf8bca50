"""What texts are like: their scripts, whether they are code or calculations, and what the tokenizer cannot say."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, field

from autopeft.profiling._example import Example

_LOOKED_AT_CHARACTERS = 20_000
"""Of one text; what is behind them is not looked at."""
_CODE = re.compile(
    r"^```|^\s*(?:def \w+\(|class \w+[:({]|import \w|from [\w.]+ import |#include\s*<|(?:public|private|static) \w"
    r"|(?:const|let|var) \w+ = |function \w*\(|SELECT .+ FROM |fn \w+\(|func \w+\(|return .*;$)|[;{}]\s*$",
    re.MULTILINE,
)
_CODE_LINES = 2
_CALCULATION = re.compile(r"\d\s*[-+*/\u00d7\u00f7]\s*[\d($\u20ac].*=")
_CALCULATIONS = 2
_WORKED_OUT = re.compile(r"####|\\boxed|<think>|step by step|\btherefore\b.*=", re.IGNORECASE)


@dataclass(slots=True)
class TextFacts:
    """Facts about the looked-at rows, which add up.

    Attributes:
        rows: looked at.
        scripts: main script of a row ("latin", "cyrillic", ...) -> rows; rows without letters are under "none".
        languages: ISO 639-1 code or "unsure" -> rows; told in a full pass only.
        mixed: rows of which a tenth of the letters or more are of another script than the main one.
        code: rows whose learnt text is code.
        reasoning: rows whose learnt text works something out.
        words: words of the learnt texts.
        tokens: tokens of the rows that were counted for the two figures below.
        unknown_tokens: of them, those that stand for "unknown".
        byte_tokens: of them, those that are a single byte of a character.
    """

    rows: int = 0
    scripts: Tally[str] = field(default_factory=Tally)
    languages: Tally[str] = field(default_factory=Tally)
    mixed: int = 0
    code: int = 0
    reasoning: int = 0
    words: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    byte_tokens: int = 0

    def add(self, example: Example) -> None:
        """Takes in one row."""
        learnt = example.learnt_text[:_LOOKED_AT_CHARACTERS]
        main, mixed = main_script("\n".join([example.text or "", *(content for _, content in example.messages)]))
        self.rows += 1
        self.scripts[main] += 1
        self.mixed += mixed
        self.code += is_code(learnt)
        self.reasoning += is_worked_out(learnt)
        self.words += learnt.count(" ") + 1

    def merge(self, other: TextFacts) -> None:
        """Takes in the facts of other rows."""
        self.scripts.update(other.scripts)
        self.languages.update(other.languages)
        for name in ("rows", "mixed", "code", "reasoning", "words", "tokens", "unknown_tokens", "byte_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def is_code(text: str) -> bool:
    """Returns whether a text reads like code: lines that begin or end as code does."""
    lines = [match for match, _ in zip(_CODE.finditer(text), range(_CODE_LINES), strict=False)]
    return len(lines) == _CODE_LINES


def is_worked_out(text: str) -> bool:
    """Returns whether a text works something out: calculations, a marked result, or steps."""
    if _WORKED_OUT.search(text):
        return True
    steps = [match for match, _ in zip(_CALCULATION.finditer(text), range(_CALCULATIONS), strict=False)]
    return len(steps) == _CALCULATIONS


def main_script(text: str) -> tuple[str, bool]:
    """Returns the script of most letters, "none" without letters, and whether a tenth of them are of another."""
    text = text[:_LOOKED_AT_CHARACTERS]
    if text.isascii():
        return ("latin" if any(character.isalpha() for character in text) else "none"), False
    scripts: Tally[str] = Tally()
    for character, count in Tally(text).items():
        if character.isalpha():
            scripts[script_of(character)] += count
    if not scripts:
        return "none", False
    main, count = min(scripts.items(), key=lambda item: (-item[1], item[0]))
    return main, count < 0.9 * scripts.total()


@functools.lru_cache(maxsize=100_000)
def script_of(letter: str) -> str:
    """Returns a letter's script: the first word of its Unicode name, with the scripts of Japanese as one."""
    name = unicodedata.name(letter, "unknown").partition(" ")[0].lower()
    return {"cjk": "han", "hiragana": "kana", "katakana": "kana", "fullwidth": "latin"}.get(name, name)


def count_special(facts: TextFacts, ids: Sequence[int], unknown: int | None, single_bytes: frozenset[int]) -> int:
    """Adds a row's tokens to the facts; returns how many of them stand for "unknown"."""
    unknown_tokens = 0 if unknown is None else ids.count(unknown)
    facts.tokens += len(ids)
    facts.unknown_tokens += unknown_tokens
    facts.byte_tokens += sum(map(single_bytes.__contains__, ids)) if single_bytes else 0
    return unknown_tokens
