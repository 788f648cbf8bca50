"""Reads once what many rows begin with: the examples in the prompt of a few-shot row are most of its tokens."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autopeft.engine.loss import IGNORE_INDEX
from autopeft.training.data import Collator, TokenRow

WORTHWHILE_TOKENS = 32
"""A shorter common beginning is not worth a forward of its own."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A common beginning and the keys and values that a model has for it.

    Attributes:
        tokens: its token ids.
        cache: of one row.
    """

    tokens: tuple[int, ...]
    cache: Any

    def cache_of(self, rows: int) -> Any:
        """Returns a copy of the cache for so many rows; a forward writes into what it is given."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


def common_prefix(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Returns the longest beginning that all rows share and that leaves each at least one token."""
    columns = zip(*[row[:-1] for row in rows], strict=False)
    return tuple(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def read_prefix(model: Any, tokens: Sequence[int]) -> Prefix | None:
    """Returns the prefix as the model has read it; None if it is short, or the model keeps more than keys and values.

    Layers that keep a window or a state cannot be continued by rows of different lengths.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if len(tokens) < WORTHWHILE_TOKENS:
        return None
    ids = torch.tensor([list(tokens)], device=model.device)
    with torch.inference_mode():
        cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
    plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    return Prefix(tuple(tokens), cache) if plain else None


def supervised_prefix(rows: Sequence[TokenRow]) -> tuple[int, ...]:
    """Returns the common beginning of rows before the token that the first supervised one is predicted from."""
    firsts = [next(index for index, label in enumerate(row.labels) if label != IGNORE_INDEX) for row in rows]
    return common_prefix([row.input_ids[: max(first, 1)] for row, first in zip(rows, firsts, strict=True)])


class PrefixCollator:
    """Makes batches of rows without their prefix, which comes as keys and values."""

    def __init__(self, collator: Collator, prefix: Prefix) -> None:
        self._collator = collator
        self._prefix = prefix

    def shortened(self, row: TokenRow) -> TokenRow:
        """Returns the row behind the prefix."""
        begin = len(self._prefix.tokens)
        return replace(row, input_ids=row.input_ids[begin:], labels=row.labels[begin:])

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns a batch whose attention mask covers the prefix too, with "past_key_values"."""
        import torch

        batch = self._collator(rows)
        before = torch.ones(len(rows), len(self._prefix.tokens), dtype=batch["attention_mask"].dtype)
        batch["attention_mask"] = torch.cat([before, batch["attention_mask"]], dim=1)
        return batch | {"past_key_values": self._prefix.cache_of(len(rows))}
