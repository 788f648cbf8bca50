"""Tells what data trains, and by what."""

from __future__ import annotations

from autopeft.profiling.scan.survey import Survey
from autopeft.specs.data import TaskKind

_MOST = 0.5
"""Share of the looked-at rows from which on code or calculations are what the data trains."""
_DIALOGUE_SHARE = 0.1


def task_kind(survey: Survey) -> tuple[TaskKind, str]:
    """Returns what the data trains and the evidence for it, in a sentence."""
    facts, texts = survey.facts, survey.facts.texts
    data_format = survey.source.reader.data_format
    if data_format == "preference":
        return "preference", "the rows hold a chosen and a rejected answer"
    if facts.labels:
        return "classification", f"every row has one of {len(facts.labels):,} labels"
    plain = data_format == "text"
    if texts.rows and texts.code >= _MOST * texts.rows:
        return "code", f"{texts.code:,} of {texts.rows:,} texts to be learnt read like code"
    if plain:
        return "continued_pretraining", "the rows are plain texts, without prompts"
    if texts.rows and texts.reasoning >= _MOST * texts.rows:
        return "reasoning", f"{texts.reasoning:,} of {texts.rows:,} answers work something out or mark a result"
    if facts.dialogues >= _DIALOGUE_SHARE * facts.rows:
        return "chat", f"in {facts.dialogues:,} of {facts.rows:,} rows a user speaks more than once"
    return "instruction", f"one prompt and one answer a row, of {texts.words / max(1, texts.rows):.0f} words on average"
