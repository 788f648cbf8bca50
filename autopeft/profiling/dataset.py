"""Profiles a data set: size, shape, lengths in tokens, and what would spoil a training on it. Needs no torch."""

from __future__ import annotations

import itertools
import math
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autopeft.errors import DataError
from autopeft.profiling._example import Example, Message
from autopeft.profiling._files import FoundFiles, find_files, hash_files, list_files
from autopeft.profiling._findings import find_problems
from autopeft.profiling._formats import RowReader, detect_format, examples_from_rows, why_not_trained
from autopeft.profiling._padding import padding_points
from autopeft.profiling._readers import iter_rows, read_rows
from autopeft.profiling._rows import BadRow, Row
from autopeft.profiling._splits import split_rows, splits_by_template
from autopeft.profiling._task_kind import task_kind
from autopeft.profiling.scan.facts import Facts, Lengths
from autopeft.profiling.scan.survey import Reading, Source, Survey, survey_all, survey_sample
from autopeft.specs.data import DatasetProfile, OnBadRow, TruncationPoint
from autopeft.specs.model import ModelSpec
from autopeft.units import counted

__all__ = [
    "Example",
    "FirstLook",
    "Message",
    "Reading",
    "Row",
    "first_look",
    "good_rows",
    "hash_files",
    "iter_rows",
    "list_files",
    "profile_dataset",
    "read_examples",
    "split_rows",
    "why_not_trained",
]

FORMAT_ROWS = 200
"""Rows that the format is told by."""
_QUANTILES = ("0.5", "0.9", "0.95", "0.99")
_HISTOGRAM_WIDTH = 0.01
"""Lengths of one histogram entry differ by less than this share; all lengths of up to 100 tokens are told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLook:
    """What a glance at a data set tells, before it is read.

    Attributes:
        rows: an estimate unless ``exact``.
        tokens: of all rows; an estimate.
        mean_tokens: of a row.
        sampled_rows: rows whose tokens were counted.
        exact: whether all rows were read.
    """

    format: str
    rows: int
    exact: bool
    tokens: int
    mean_tokens: float
    sampled_rows: int

    @property
    def sentence(self) -> str:
        """The answer for a reader who waits."""
        about = "" if self.exact else "about "
        return (
            f"{self.format}: {about}{counted(self.rows, 'row')}, about {self.tokens:,} tokens, "
            f"{self.mean_tokens:.0f} a row (from a sample of {self.sampled_rows:,})"
        )


def first_look(
    source: str,
    *,
    model: ModelSpec | None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
) -> FirstLook:
    """Returns what a sample tells of a data set, within about a second for JSON Lines of any size.

    Raises:
        DataError: as ``profile_dataset``.
    """
    read = _source(source, model, columns, seed, on_bad_row, held_out=None)
    survey = survey_sample(read, Reading(), hashed=False)
    return FirstLook(
        format=survey.source.reader.data_format,
        rows=survey.rows,
        exact=survey.every_row,
        tokens=survey.total_tokens,
        mean_tokens=survey.total_tokens / survey.rows,
        sampled_rows=survey.facts.lengths.rows,
    )


def profile_dataset(
    source: str,
    *,
    model: ModelSpec | None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    reading: Reading | None = None,
) -> DatasetProfile:
    """Returns what is known of a data set as ``model`` would read it.

    The answer depends on the files, the seed and what ``reading`` covers; never on the number of workers.

    Args:
        source: file, folder or hub data set id.
        model: whose tokenizer and context count; None means lengths are estimated and no context is known.
        columns: role -> column, for rows that name their fields otherwise ("prompt" -> "question").
        seed: of the samples.
        on_bad_row: "skip" leaves out rows that cannot be read or do not fit the format, and counts them.
        reading: how much is read; None means a sample.

    Raises:
        DataError: if the data cannot be found, read or understood, or is empty.
    """
    reading = reading or Reading()
    read = _source(source, model, columns, seed, on_bad_row, reading.held_out)
    survey = survey_sample(read, reading, hashed=reading.coverage == "sample")
    if reading.coverage == "all":
        survey = survey_all(read, reading, survey)
    profile = _profile(source, survey)
    return replace(profile, findings=find_problems(survey, profile))


def read_examples(
    files: Sequence[str], data_format: str, columns: Mapping[str, str], on_bad_row: OnBadRow = "error"
) -> list[Example]:
    """Returns the rows of the files as examples, in order.

    Args:
        files: as in ``DatasetProfile.files``.
        data_format: as in ``DatasetProfile.format``.
        columns: as in ``DatasetProfile.columns``; a role that is not named has a column of its own name.
        on_bad_row: as in ``DatasetProfile.on_bad_row``.

    Raises:
        DataError: if a row is broken or does not fit the format and shall not be skipped, or there is none.
    """
    reader = RowReader(data_format, columns)
    return examples_from_rows(_not_empty(read_rows(files), files), reader, on_bad_row).examples


def good_rows(data: DatasetProfile) -> Iterator[Row]:
    """Yields the rows that became the examples of a profile, in order, without holding them in memory."""
    reader = RowReader(data.format, data.columns)
    for row in read_rows(data.files):
        if isinstance(row, Row) and isinstance(reader.example(row), Example):
            yield row


def _source(
    source: str,
    model: ModelSpec | None,
    columns: Mapping[str, str] | None,
    seed: int,
    on_bad_row: OnBadRow,
    held_out: str | None,
) -> Source:
    found = find_files(source)
    if held_out is not None:
        found = FoundFiles(found.used, find_files(held_out).used, found.doubtful)
    first = list(itertools.islice(_not_empty(read_rows(found.used), found.used), FORMAT_ROWS))
    readable = [row for row in first if isinstance(row, Row)]
    if not readable:
        raise DataError(next(row.sentence for row in first if isinstance(row, BadRow)))
    reader = RowReader(*detect_format(readable, columns))
    return Source(found=found, reader=reader, model=model, seed=seed, on_bad_row=on_bad_row)


def _not_empty(rows: Iterator[Row | BadRow], files: Iterable[str]) -> Iterator[Row | BadRow]:
    first = next(rows, None)
    if first is None:
        raise DataError(f"the data set is empty: no row in {', '.join(files)}")
    return itertools.chain([first], rows)


def _profile(source: str, survey: Survey) -> DatasetProfile:
    facts, read = survey.facts, survey.source
    lengths = facts.lengths
    kind, evidence = task_kind(survey)
    context_length = read.model.context_length if read.model else None
    return DatasetProfile(
        source=source,
        files=read.found.used,
        content_hash=survey.content_hash,
        format=read.reader.data_format,
        columns=read.reader.columns,
        task=_task(facts, read.reader.data_format),
        task_kind=kind,
        task_evidence=evidence,
        example_count=survey.rows,
        total_characters=facts.characters if survey.every_row else round(facts.characters / facts.rows * survey.rows),
        token_counts_source=survey.counted_by,
        sampled_examples=lengths.rows,
        mean_tokens=survey.total_tokens / survey.rows,
        max_tokens=survey.max_tokens,
        token_quantiles=_quantiles(lengths),
        length_histogram=_histogram(lengths.by_tokens),
        total_tokens=survey.total_tokens,
        supervised_ratio=_ratio(lengths.supervised, lengths.tokens),
        truncation=_truncation(lengths, _longest_limit(context_length, survey.max_tokens)),
        padding=padding_points(lengths.by_tokens),
        duplicate_count=survey.copies.count,
        label_counts=dict(sorted(facts.labels.items(), key=lambda item: (-item[1], item[0]))),
        scripts=_shares(facts.texts.scripts),
        languages=_shares(facts.texts.languages),
        on_bad_row=read.on_bad_row,
        skipped_rows=facts.left_out.count,
        coverage="all" if survey.every_row else "sample",
        split_by="template" if splits_by_template(survey.compared, read.reader.columns) else "prompt",
    )


def _task(facts: Facts, data_format: str) -> Literal["chat", "instruction", "continued_pretraining", "classification"]:
    if data_format == "text":
        return "continued_pretraining"
    if data_format in ("classification", "text_pair"):
        return "classification"
    return "chat" if facts.dialogues else "instruction"


def _shares(rows: Tally[str]) -> dict[str, float]:
    """Returns the share of the looked-at rows by name, the most frequent first."""
    return {name: count / rows.total() for name, count in sorted(rows.items(), key=lambda item: (-item[1], item[0]))}


def _quantiles(lengths: Lengths) -> dict[str, int]:
    """Returns the nearest-rank quantiles: the smallest length that at least this share of the rows does not exceed."""
    found = {}
    for name in _QUANTILES:
        wanted = math.ceil(float(name) * lengths.rows)
        seen = 0
        for tokens in sorted(lengths.by_tokens):
            seen += lengths.by_tokens[tokens]
            if seen >= wanted:
                found[name] = tokens
                break
    return found


def _histogram(rows_by_tokens: Mapping[int, int]) -> dict[str, int]:
    """Returns rows by length, ascending; each entry is named by the longest length in it."""
    rows: dict[int, int] = {}
    longest = 0
    for length in sorted(rows_by_tokens, reverse=True):
        if length <= longest * (1 - _HISTOGRAM_WIDTH) or not rows:
            longest = length
        rows[longest] = rows.get(longest, 0) + rows_by_tokens[length]
    return {str(length): rows[length] for length in sorted(rows)}


def _longest_limit(context_length: int | None, max_tokens: int) -> int:
    """Returns the last row of the truncation table: the context, or a power of two that covers the longest row."""
    return context_length or 1 << max(7, (max_tokens - 1).bit_length())


def _truncation(lengths: Lengths, longest: int) -> tuple[TruncationPoint, ...]:
    points = zip(lengths.limits, lengths.lost, lengths.emptied, strict=True)
    return tuple(
        TruncationPoint(
            max_length=limit,
            rows_truncated_share=_ratio(_longer(lengths, limit), lengths.rows),
            supervised_tokens_lost_share=_ratio(lost, lengths.supervised),
            rows_without_labels_share=_ratio(emptied, lengths.rows),
        )
        for limit, lost, emptied in points
        if limit <= longest
    )


def _longer(lengths: Lengths, limit: int) -> int:
    return sum(rows for tokens, rows in lengths.by_tokens.items() if tokens > limit)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
