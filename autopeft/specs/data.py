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

CountsSource = Literal["tokenizer.json", "characters"]
Severity = Literal["info", "warning", "error"]
TaskKind = Literal["classification", "chat", "instruction", "reasoning", "code", "continued_pretraining", "preference"]
SplitBy = Literal["prompt", "template"]
"""Rows with the same prompt, or with prompts that differ in numbers and names alone, stay on one side of a split."""

Coverage = Literal["sample", "all"]
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
    severity: Severity
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
        rows_without_labels_share: share of rows that lose all their supervised tokens, 0 to 1; no training uses them.
    """

    max_length: int
    rows_truncated_share: float
    supervised_tokens_lost_share: float
    rows_without_labels_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddingPoint:
    """What padding costs at one batch size; packing has none.

    Attributes:
        random_padding_share: share of the positions of a batch that hold no token, where rows come at random, 0 to 1.
        grouped_padding_share: the same, where rows of like length come together.
    """

    per_device_batch_size: int
    random_padding_share: float
    grouped_padding_share: float


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
        coverage: "all" rows were read, or a "sample", from which ``example_count`` is an estimate.
        split_by: what rows that stay on one side of a split share, where no column was named for it.
        task_kind: what the data trains, told by its texts as well.
        task_evidence: what ``task_kind`` was told by, in a sentence.
        scripts: main script of a row -> share of the looked-at rows, the most frequent first.
        languages: ISO 639-1 code ("en"), or "unsure", -> share of the looked-at rows; empty for a sample.
        padding: what padding costs for some batch sizes.
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
    token_counts_source: CountsSource
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
    coverage: Coverage = "all"
    split_by: SplitBy = "prompt"
    task_kind: TaskKind | None = None
    task_evidence: str = ""
    scripts: dict[str, float] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)
    padding: tuple[PaddingPoint, ...] = ()
    findings: tuple[Finding, ...] = ()
    base_scores: BaseScores | None = None
