"""What is kept of a row to compare it with others: hashes of its content and template, and a MinHash signature."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from autopeft.profiling._example import Example
from autopeft.profiling.scan.templates import prompt_of, template_of

PERMUTATIONS = 128
"""Of a signature; the standard error of an estimated similarity of 0.8 is then 0.035."""
SHINGLE_CHARACTERS = 5
_ODD = 0x9E3779B97F4A7C15
COMPARED_CHARACTERS = 2_000
"""Of a row's text; what is behind them is not compared."""


@dataclass(frozen=True, slots=True)
class SimilarRow:
    """One row of the sample that is searched for resemblance.

    Attributes:
        rank: its rank in the sample.
        file: where it stands.
        number: its line or row.
        content: 64 bits of its content.
        prompt: 64 bits of what stands before the answer.
        template: 64 bits of the masked prompt; None if too little is left of it.
        signature: MinHash values, 4 bytes each; empty where near duplicates are not looked for.
    """

    rank: int
    file: str
    number: int
    content: int
    prompt: int
    template: int | None
    signature: bytes = b""

    @property
    def place(self) -> tuple[str, int]:
        """File and number."""
        return self.file, self.number


def hash64(content: object) -> int:
    """Returns 64 bits of a content; of n different ones about n^2 / 2^65 pairs share theirs, 0.0001 for 60 million."""
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=8).digest(), "little")


def similar_row(example: Example, rank: int, content: int, signer: Signer | None) -> SimilarRow:
    """Returns what is compared of one row."""
    prompt = prompt_of(example)
    template = template_of(prompt)
    return SimilarRow(
        rank=rank,
        file=example.file,
        number=example.line,
        content=content,
        prompt=hash64(prompt),
        template=None if template is None else hash64(template),
        signature=b"" if signer is None else signer.sign(_all_text(example)),
    )


class Signer:
    """Makes MinHash signatures of texts by their runs of five characters, without case and white space."""

    def __init__(self) -> None:
        from datasketch import MinHash

        # The runs come hashed.
        self._empty: Any = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")

    def sign(self, text: str) -> bytes:
        """Returns the signature of a text."""
        signature = self._empty.copy()
        signature.update_batch(_hashed_runs("".join(text[:COMPARED_CHARACTERS].casefold().split())))
        values: bytes = signature.hashvalues.astype("<u4").tobytes()
        return values


def _hashed_runs(text: str) -> list[int]:
    """Returns 32 bits of each run of characters; a text shorter than a run is filled up."""
    import numpy as np

    filled = text.ljust(SHINGLE_CHARACTERS, "\0")
    letters = np.frombuffer(filled.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    runs = len(letters) - SHINGLE_CHARACTERS + 1
    hashes = np.zeros(runs, np.uint64)
    for begin in range(SHINGLE_CHARACTERS):
        hashes = (hashes + letters[begin : begin + runs]) * np.uint64(_ODD)
        hashes ^= hashes >> np.uint64(29)
    found: list[int] = (hashes >> np.uint64(32)).tolist()
    return found


def _all_text(example: Example) -> str:
    if example.text is not None:
        return f"{example.text}\n{example.text_pair or ''}"
    return "\n".join([content for _, content in example.messages])
