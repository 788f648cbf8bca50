"""Findings about what the texts are written in, and how the model's tokenizer and template take them."""

from __future__ import annotations

from autopeft.profiling.scan.languages import UNSURE
from autopeft.profiling.scan.scanner import UNKNOWN
from autopeft.profiling.scan.survey import Survey
from autopeft.specs.data import DatasetProfile, Finding

MIXED_SHARE = 0.02
"""Share of rows in other scripts than the main one from which on it is worth a word."""
MIXED_LANGUAGES_SHARE = 0.05
"""The same of languages, which are told with less certainty."""
SHOWN_LANGUAGES = 5
UNKNOWN_SHARE = 0.001
BYTE_SHARE = 0.05
"""Share of tokens that are single bytes from which on a tokenizer spells the language out."""


def text_findings(survey: Survey, profile: DatasetProfile) -> tuple[Finding | None, ...]:
    """Returns the findings about texts."""
    written = _mixed_scripts(survey, profile), _mixed_languages(survey, profile)
    return _no_chat_template(survey), _unknown_tokens(survey), _spelled_out(survey), *written


def _no_chat_template(survey: Survey) -> Finding | None:
    model = survey.source.model
    plain = survey.source.reader.data_format in ("text", "classification", "text_pair")
    if model is None or model.has_chat_template or plain:
        return None
    # A profile or hub id brings no tokenizer, so nothing is known of its template.
    if model.path is None or model.kind != "causal_lm":
        return None
    return Finding(
        code="no-chat-template",
        severity="info",
        message=f"{model.id} has no chat template; prompt and completion are joined as plain text",
        count=survey.rows,
        advice="use the instruction-tuned variant of the model for conversations",
    )


def _unknown_tokens(survey: Survey) -> Finding | None:
    texts, noted = survey.facts.texts, survey.facts.noted.get(UNKNOWN)
    if noted is None or not texts.unknown_tokens:
        return None
    share = texts.unknown_tokens / texts.tokens
    return Finding(
        code="unknown-tokens",
        severity="warning" if share >= UNKNOWN_SHARE else "info",
        message=f"the tokenizer cannot represent parts of {noted.count:,} of {texts.rows:,} rows: {share:.2%} of their "
        "tokens stand for the unknown",
        count=noted.count,
        examples=tuple(noted.shown),
        advice="what is unknown can be neither read nor written; take a model whose tokenizer knows these characters",
    )


def _spelled_out(survey: Survey) -> Finding | None:
    texts = survey.facts.texts
    if not texts.tokens or texts.byte_tokens < BYTE_SHARE * texts.tokens:
        return None
    return Finding(
        code="spelled-out-in-bytes",
        severity="warning",
        message=f"{texts.byte_tokens / texts.tokens:.0%} of the tokens are single bytes of characters that the "
        "tokenizer has no tokens for",
        count=texts.rows,
        advice="rows become long and hard to learn; take a model whose tokenizer was made for this language",
    )


def _mixed_scripts(survey: Survey, profile: DatasetProfile) -> Finding | None:
    written = {script: share for script, share in profile.scripts.items() if script != "none"}
    if not written:
        return None
    main, share = next(iter(written.items()))
    others = sum(written.values()) - share
    if others < MIXED_SHARE:
        return None
    rows = survey.facts.texts.rows
    listed = ", ".join(f"{name} {part:.0%}" for name, part in written.items())
    return Finding(
        code="mixed-scripts",
        severity="info",
        message=f"{others:.0%} of the rows are written in another script than {main}: {listed}",
        count=round(others * rows),
        advice="check that the model knows these languages; hold out rows of each script to see how it does on them",
    )


def _mixed_languages(survey: Survey, profile: DatasetProfile) -> Finding | None:
    told = {code: share for code, share in profile.languages.items() if code != UNSURE}
    others = sum(told.values()) - max(told.values(), default=0.0)
    if others < MIXED_LANGUAGES_SHARE:
        return None
    listed = ", ".join(f"{code} {share:.0%}" for code, share in list(told.items())[:SHOWN_LANGUAGES])
    return Finding(
        code="mixed-languages",
        severity="info",
        message=f"{others:.0%} of the looked-at rows are in another language than {next(iter(told))}: {listed}",
        count=round(others * survey.facts.texts.rows),
        advice="check that the model knows them, and that rows of each are held out; short and technical rows "
        "are easily mistaken",
    )
