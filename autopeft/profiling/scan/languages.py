"""Which language a text is written in, by py3langid's model of 97 languages, which its package carries."""

from __future__ import annotations

import functools
from typing import Any

from autopeft.profiling._example import Example

UNSURE = "unsure"
READ_CHARACTERS = 500
"""Of the learnt text, or of the whole row where that is short: enough to tell a language by, and quick."""
FEWEST_LETTERS = 20
CONFIDENCE = 0.8
"""Normalized probability below which a language is not claimed; short and technical texts reach less."""


def language_of(example: Example) -> str:
    """Returns the ISO 639-1 code of a row's language, or "unsure": too few letters, or no clear answer."""
    text = _told_by(example)
    if sum(map(str.isalpha, text)) < FEWEST_LETTERS:
        return UNSURE
    code, confidence = _identifier().classify(text)
    return str(code) if confidence >= CONFIDENCE else UNSURE


def _told_by(example: Example) -> str:
    learnt = example.learnt_text[:READ_CHARACTERS]
    if sum(map(str.isalpha, learnt)) >= FEWEST_LETTERS:
        return learnt
    return "\n".join([example.text or "", *(content for _, content in example.messages)])[:READ_CHARACTERS]


@functools.cache
def _identifier() -> Any:
    """Loads the model on first use: a third of a second, which only a full pass over the data spends."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
