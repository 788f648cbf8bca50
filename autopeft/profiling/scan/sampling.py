"""A seeded sample that needs no count beforehand: every row has a rank, and the lowest ranks are the sample."""

from __future__ import annotations

RANKS = 2**64
_MASK = RANKS - 1


def rank_of(seed: int, file_index: int, number: int) -> int:
    """Returns a row's rank, below 2^64: the same in whatever blocks and order the row is read.

    Two rounds of the finalizer of MurmurHash3, whose outputs pass for random ones.
    """
    return _mixed(_mixed((seed << 20) + file_index) ^ number)


def _mixed(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK
    return value ^ (value >> 33)


def threshold_for(wanted: int, rows: int) -> int:
    """Returns the rank below which about ``wanted`` of so many rows lie."""
    return RANKS if wanted >= rows else RANKS * wanted // rows
