"""Turns the data set into token rows, once per worker, and divides them into the splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.engine.loss import IGNORE_INDEX, positions_to_keep
from autopeft.errors import DataError, RunFolderError
from autopeft.profiling.dataset import hash_files, read_examples, split_rows
from autopeft.profiling.encoding import EncodedRow, encode_examples
from autopeft.specs import Job
from autopeft.training.token_cache import encoded_once

FEWEST_COMPARED_ROWS = 2
"""A paired comparison resamples rows, and one row has no spread."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One example ready for the model.

    Attributes:
        row: its number in the data set, 0-based.
        input_ids: truncated to max_length.
        labels: the same tokens, with IGNORE_INDEX where the loss does not count.
    """

    row: int
    input_ids: list[int]
    labels: list[int]

    @property
    def columns(self) -> dict[str, list[int]]:
        """The row as a collator takes it."""
        return {"input_ids": self.input_ids, "labels": self.labels}

    @property
    def supervised_tokens(self) -> int:
        """Tokens on which the loss counts; the first is never predicted."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class TokenData:
    """The splits as token rows.

    Attributes:
        splits: split -> rows.
        dropped_rows: rows left out because truncation took all their supervised tokens.
        split_hash: SHA-256 over the row numbers of each split.
        truncated_rows: rows cut at max_length, dropped ones included.
        lost_supervised_tokens: supervised tokens beyond the cut, those of dropped rows included.
    """

    splits: dict[str, tuple[TokenRow, ...]]
    dropped_rows: int
    split_hash: str
    truncated_rows: int = 0
    lost_supervised_tokens: int = 0


def load_data(job: Job, tokenizer_folder: Path) -> TokenData:
    """Returns the job's data, tokenized and split.

    Raises:
        RunFolderError: if the data is not what the plan was made for.
        DataError: if nothing is left to train on, or a held-out split is too small to compare on.
    """
    found = hash_files(job.data_files)
    if found != job.data_hash:
        raise RunFolderError(
            f"the data has changed since the plan was made: {', '.join(job.data_files)} has hash {found[:12]}, "
            f"the plan says {job.data_hash[:12]}; make a new plan: autopeft suggest ..."
        )
    examples = read_examples(job.data_files, job.data_format, job.columns, job.on_bad_row)
    splits = split_rows(
        examples, choose_rows=job.choose_rows, test_rows=job.test_rows, seed=job.seed, split_by=job.split_by
    )
    encoded = encoded_once(job, tokenizer_folder, lambda: encode_examples(tokenizer_folder, examples))
    return _token_data(encoded, splits, job.max_length)


def _token_data(encoded: Sequence[EncodedRow], splits: dict[str, tuple[int, ...]], max_length: int) -> TokenData:
    kept: dict[str, tuple[TokenRow, ...]] = {}
    dropped = truncated = lost = 0
    for name, numbers in splits.items():
        rows = [token_row(number, encoded[number], max_length) for number in numbers]
        kept[name] = tuple(row for row in rows if row.supervised_tokens)
        _check_enough(name, len(kept[name]), len(rows), max_length)
        dropped += len(rows) - len(kept[name])
        truncated += sum(len(encoded[number].input_ids) > max_length for number in numbers)
        lost += sum(_predicted_tokens(encoded[row.row]) - row.supervised_tokens for row in rows)
    digest = hashlib.sha256(repr(sorted(splits.items())).encode()).hexdigest()
    return TokenData(kept, dropped, digest, truncated, lost)


def _check_enough(split: str, kept: int, rows: int, max_length: int) -> None:
    needed = 1 if split == "train" else FEWEST_COMPARED_ROWS
    if kept < needed:
        raise DataError(
            f"the {split} split keeps {kept} of {rows} rows with a supervised token within max_length {max_length}, "
            f"but needs at least {needed}; raise max_length, shorten the prompts, or add rows with other prompts"
        )


def _predicted_tokens(encoded: EncodedRow) -> int:
    """Returns the supervised tokens of an uncut row; the first token is never predicted."""
    return sum(end - max(begin, 1) for begin, end in encoded.supervised if end > 1)


def token_row(number: int, encoded: EncodedRow, max_length: int) -> TokenRow:
    """Returns one encoded example, truncated at its end, with its labels."""
    input_ids = list(encoded.input_ids[:max_length])
    labels = [IGNORE_INDEX] * len(input_ids)
    for begin, end in encoded.supervised:
        labels[begin : min(end, len(input_ids))] = input_ids[begin:end]
    return TokenRow(number, input_ids, labels)


def cut_rows(rows: Sequence[TokenRow], max_length: int) -> tuple[TokenRow, ...]:
    """Returns the rows cut to max_length, without those that this leaves without a supervised token.

    Raises:
        DataError: if none is left.
    """
    cut = (TokenRow(row.row, row.input_ids[:max_length], row.labels[:max_length]) for row in rows)
    kept = tuple(row for row in cut if row.supervised_tokens)
    if not kept:
        raise DataError(f"no training row has a supervised token within max_length {max_length}; allow longer rows")
    return kept


class Collator:
    """Turns rows into tensors ``(rows, longest)``, padded on the right; for training and for scoring.

    Padding is masked by attention and by label, never by its id: for many models the pad token is the end token,
    and a model whose end tokens are masked never learns to stop.
    """

    def __init__(self, pad_token_id: int, *, keeps_logits: bool) -> None:
        """Prepares a collator.

        Args:
            pad_token_id: fills rows up.
            keeps_logits: whether the model can leave out the logits of the first positions.
        """
        self._pad_token_id = pad_token_id
        self._keeps_logits = keeps_logits

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns "input_ids", "labels", "attention_mask" and, where the model can use it, "logits_to_keep"."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        pads = [longest - len(row["input_ids"]) for row in rows]
        labels = [[*row["labels"], *[IGNORE_INDEX] * pad] for row, pad in zip(rows, pads, strict=True)]
        batch: dict[str, Any] = {
            "input_ids": torch.tensor(
                [[*row["input_ids"], *[self._pad_token_id] * pad] for row, pad in zip(rows, pads, strict=True)]
            ),
            "labels": torch.tensor(labels),
            "attention_mask": torch.tensor([[1] * (longest - pad) + [0] * pad for pad in pads]),
        }
        return batch | ({"logits_to_keep": positions_to_keep(labels)} if self._keeps_logits else {})
