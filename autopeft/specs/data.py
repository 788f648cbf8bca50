"""What is known of the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autopeft.specs.base_scores import BaseScores

DataFormat = Literal[
    "messages",
    "sharegpt",
    "preference",
    "prompt_completion",
    "alpaca",
    "question_answer",
    "text_pair",
    "classification",
    "text",
]

OnBadRow = Literal["error", "skip"]
"""What happens where a row cannot be read or does not fit the format: an error, or the row is left out and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing about the data that changes a decision.

    Attributes:
        code: stable name: "exact-duplicates".
        severity: "error" stops a run, "warning" is printed, "info" is reported.
        message: one sentence: what was found.
        count: rows concerned.
        examples: a few of them, shortened, as "line N: ...".
        advice: what to do.
    """

    code: str
    severity: Literal["info", "warning", "error"]
    message: str
    count: int
    examples: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncationPoint:
    """What one ``max_length`` would cut.

    Attributes:
        max_length: tokens kept of a row.
        rows_truncated_share: share of rows that lose tokens, 0 to 1.
        supervised_tokens_lost_share: share of supervised tokens lost, 0 to 1.
    """

    max_length: int
    rows_truncated_share: float
    supervised_tokens_lost_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetProfile:
    """A data set's size and shape.

    Attributes:
        source: path or hub id as given.
        files: the files read, in order.
        content_hash: SHA-256 over the bytes of the files.
        format: what the rows were understood as.
        columns: role -> column name ("prompt" -> "question").
        task: what the data trains.
        example_count: rows that can be used.
        total_characters: of all texts of all rows.
        token_counts_source: "tokenizer.json", or "characters" where lengths are estimated from characters.
        sampled_examples: rows whose tokens were counted (all, or a seeded sample).
        mean_tokens: per row, chat template included.
        max_tokens: the longest counted row.
        token_quantiles: quantile ("0.5", "0.9", "0.95", "0.99") -> tokens of a row.
        length_histogram: tokens of a row -> counted rows of that length, ascending. Lengths within 1 % of each other
            share the longest one's entry, so no row is longer than its entry, and the longest is exact.
        total_tokens: of all rows, extrapolated from the sample.
        supervised_ratio: share of tokens on which the loss counts.
        truncation: what common values of max_length would cut.
        duplicate_count: rows that are exact copies of an earlier one.
        label_counts: label -> rows, for classification.
        on_bad_row: what a run does with rows that cannot be read or do not fit the format: as was done here.
        skipped_rows: rows that were left out for it.
        findings: worst first.
        base_scores: what the untouched model already does on a sample of the data; None unless asked for.
    """

    source: str
    files: tuple[str, ...]
    content_hash: str
    format: DataFormat
    columns: dict[str, str]
    task: Literal["chat", "instruction", "continued_pretraining", "classification"]
    example_count: int
    total_characters: int
    token_counts_source: Literal["tokenizer.json", "characters"]
    sampled_examples: int
    mean_tokens: float
    max_tokens: int
    token_quantiles: dict[str, int]
    length_histogram: dict[str, int] = field(default_factory=dict)
    total_tokens: int
    supervised_ratio: float
    truncation: tuple[TruncationPoint, ...] = ()
    duplicate_count: int = 0
    label_counts: dict[str, int] = field(default_factory=dict)
    on_bad_row: OnBadRow = "error"
    skipped_rows: int = 0
    findings: tuple[Finding, ...] = ()
    base_scores: BaseScores | None = None
