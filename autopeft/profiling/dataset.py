"""Profiles a data set: size, shape, lengths in tokens, and what would spoil a training on it. Needs no torch."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from autopeft.errors import DataError
from autopeft.profiling._example import Example, Message
from autopeft.profiling._files import find_files, hash_files, list_files
from autopeft.profiling._findings import duplicate_pairs, find_problems, label_counts
from autopeft.profiling._formats import ReadRows, RowReader, detect_format, examples_from_rows, why_not_trained
from autopeft.profiling._readers import iter_rows, read_rows
from autopeft.profiling._rows import BadRow, Row
from autopeft.profiling._splits import split_rows
from autopeft.profiling._tokens import CountedRow, Counter, counter_for
from autopeft.specs.data import DatasetProfile, OnBadRow, TruncationPoint
from autopeft.specs.model import ModelSpec

__all__ = [
    "Example",
    "Message",
    "Row",
    "good_rows",
    "hash_files",
    "iter_rows",
    "list_files",
    "profile_dataset",
    "read_examples",
    "split_rows",
    "why_not_trained",
]

SHORTEST_MAX_LENGTH = 128
"""Shortest row of the truncation table."""
_QUANTILES = ("0.5", "0.9", "0.95", "0.99")
_LONGEST_COUNTED = 8
FORMAT_ROWS = 200
"""Rows that the format is told by."""
_HISTOGRAM_WIDTH = 0.01
"""Lengths of one histogram entry differ by less than this share; all lengths of up to 100 tokens are told apart."""


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Lengths in tokens.

    Attributes:
        sampled: a fair sample of the rows, or all of them.
        counted: all rows whose tokens were counted: the sample, then the longest rows outside it.
        total_tokens: of all rows.
    """

    sampled: tuple[CountedRow, ...]
    counted: tuple[tuple[Example, CountedRow], ...]
    total_tokens: int

    def supervised_within(self, max_length: int) -> int:
        """Returns the sample's supervised tokens that a limit keeps."""
        return sum([row.supervised_within(max_length) for row in self.sampled])


def profile_dataset(
    source: str,
    *,
    model: ModelSpec | None,
    columns: dict[str, str] | None = None,
    seed: int = 0,
    sample_rows: int = 2000,
    on_bad_row: OnBadRow = "error",
) -> DatasetProfile:
    """Returns what is known of a data set as ``model`` would read it.

    Args:
        source: file, folder or hub data set id.
        model: whose tokenizer and context count; None means lengths are estimated and no context is known.
        columns: role -> column, for rows that name their fields otherwise ("prompt" -> "question").
        seed: of the sample.
        sample_rows: tokens are counted on all rows up to this many, and on a sample of this size (and on the few
            longest rows, for ``max_tokens``) beyond.
        on_bad_row: "skip" leaves out rows that cannot be read or do not fit the format, and counts them.

    Raises:
        DataError: if the data cannot be found, read or understood, or is empty.
    """
    if sample_rows < 1:
        raise ValueError(f"sample_rows must be at least 1, but is {sample_rows}")
    found = find_files(source)
    files = found.used
    read = _load(files, columns, on_bad_row)
    examples = read.examples
    counter = counter_for(model)
    lengths = _count(examples, counter, sample_rows, seed)
    max_tokens = max(row.tokens for _, row in lengths.counted)
    context_length = model.context_length if model else None
    return DatasetProfile(
        source=source,
        files=files,
        content_hash=hash_files(files),
        format=read.reader.data_format,
        columns=read.reader.columns,
        task=_task(examples),
        example_count=len(examples),
        total_characters=sum(example.characters for example in examples),
        token_counts_source=counter.source,
        sampled_examples=len(lengths.sampled),
        mean_tokens=lengths.total_tokens / len(examples),
        max_tokens=max_tokens,
        token_quantiles=_quantiles([row.tokens for row in lengths.sampled]),
        length_histogram=_histogram([row.tokens for row in lengths.sampled]),
        total_tokens=lengths.total_tokens,
        supervised_ratio=_ratio(lengths.supervised_within(max_tokens), sum(row.tokens for row in lengths.sampled)),
        truncation=_truncation(lengths, _max_lengths(context_length, max_tokens)),
        duplicate_count=len(duplicate_pairs(examples)),
        label_counts=label_counts(examples),
        on_bad_row=on_bad_row,
        skipped_rows=read.left_out.count,
        findings=find_problems(read, lengths.counted, counter, model, found),
    )


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


def _load(files: Sequence[str], columns: Mapping[str, str] | None, on_bad_row: OnBadRow) -> ReadRows:
    rows = _not_empty(read_rows(files), files)
    first = list(itertools.islice(rows, FORMAT_ROWS))
    readable = [row for row in first if isinstance(row, Row)]
    if not readable:
        raise DataError(next(row.sentence for row in first if isinstance(row, BadRow)))
    reader = RowReader(*detect_format(readable, columns))
    return examples_from_rows(itertools.chain(first, rows), reader, on_bad_row)


def _not_empty(rows: Iterator[Row | BadRow], files: Iterable[str]) -> Iterator[Row | BadRow]:
    first = next(rows, None)
    if first is None:
        raise DataError(f"the data set is empty: no row in {', '.join(files)}")
    return itertools.chain([first], rows)


def _count(examples: Sequence[Example], counter: Counter, sample_rows: int, seed: int) -> _Lengths:
    everything = range(len(examples))
    if len(examples) <= sample_rows:
        chosen = list(everything)
    else:
        chosen = sorted(random.Random(seed).sample(everything, sample_rows))
    longest = sorted(everything, key=lambda index: -examples[index].characters)[:_LONGEST_COUNTED]
    counted = [examples[index] for index in chosen + sorted(set(longest) - set(chosen))]
    rows = counter.count(counted)
    sampled = rows[: len(chosen)]
    return _Lengths(tuple(sampled), tuple(zip(counted, rows, strict=True)), _total_tokens(examples, chosen, sampled))


def _total_tokens(examples: Sequence[Example], chosen: Sequence[int], sampled: Sequence[CountedRow]) -> int:
    """Returns the tokens of all rows: the sample's, scaled by characters (a ratio estimate); exact without sampling."""
    tokens = sum(row.tokens for row in sampled)
    if len(chosen) == len(examples):
        return tokens
    characters = sum(examples[index].characters for index in chosen)
    if characters == 0:
        return round(tokens * len(examples) / len(chosen))
    return round(tokens * sum(example.characters for example in examples) / characters)


def _task(examples: Sequence[Example]) -> Literal["chat", "instruction", "continued_pretraining", "classification"]:
    if examples[0].label is not None:
        return "classification"
    if examples[0].text is not None:
        return "continued_pretraining"
    many = any(sum(role == "user" for role, _ in example.messages) > 1 for example in examples)
    return "chat" if many else "instruction"


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Returns the nearest-rank quantiles: the smallest length that at least this share of the rows does not exceed."""
    ordered = sorted(lengths)
    return {name: ordered[math.ceil(float(name) * len(ordered)) - 1] for name in _QUANTILES}


def _histogram(lengths: Sequence[int]) -> dict[str, int]:
    """Returns rows by length, ascending; each entry is named by the longest length in it."""
    rows: dict[int, int] = {}
    longest = 0
    for length in sorted(lengths, reverse=True):
        if length <= longest * (1 - _HISTOGRAM_WIDTH) or not rows:
            longest = length
        rows[longest] = rows.get(longest, 0) + 1
    return {str(length): rows[length] for length in sorted(rows)}


def _max_lengths(context_length: int | None, max_tokens: int) -> list[int]:
    """Returns the powers of two from 128 up to the context, and the context; without one, up to the longest row."""
    limit = context_length or 2 ** math.ceil(math.log2(max(max_tokens, SHORTEST_MAX_LENGTH)))
    powers = [2**exponent for exponent in range(SHORTEST_MAX_LENGTH.bit_length() - 1, limit.bit_length())]
    return sorted({length for length in powers if length <= limit} | {limit})


def _truncation(lengths: _Lengths, max_lengths: Sequence[int]) -> tuple[TruncationPoint, ...]:
    supervised = lengths.supervised_within(max(row.tokens for row in lengths.sampled))
    return tuple(
        TruncationPoint(
            max_length=length,
            rows_truncated_share=_ratio(sum(row.tokens > length for row in lengths.sampled), len(lengths.sampled)),
            supervised_tokens_lost_share=_ratio(supervised - lengths.supervised_within(length), supervised),
        )
        for length in max_lengths
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
