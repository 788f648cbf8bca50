"""Reads the header of a GGUF file: its key/values and tensor descriptions, never the weights.

Layout (ggml's docs/gguf.md, versions 2 and 3; little-endian): magic, u32 version, u64 tensor count, u64 key count;
each key/value a string, a u32 type and a value; each tensor a string, a u32 number of dimensions, u64 dimensions
(fastest first), a u32 type and a u64 offset into the data, which begins at the next multiple of
``general.alignment``. A string is a u64 length and UTF-8 bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import ModelError
from autopeft.profiling._safetensors_header import Tensor

_MAX_TENSORS = 1_000_000
_MAX_KEYS = 100_000
_MAX_DIMENSIONS = 4
_KEPT_ARRAY_LENGTH = 1024
"""Longer arrays (vocabularies) are skipped and only their length is kept."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# ggml's `enum ggml_type` as the gguf package 0.19 lists it (GGMLQuantizationType).
_TENSOR_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array whose elements were skipped."""

    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        values: key -> number, boolean, text, list, or :class:`LongArray`.
        tensors: with shapes in torch's order, slowest dimension first.
        digest: SHA-256 over the header's bytes and the size of the file.
    """

    values: dict[str, Any]
    tensors: tuple[Tensor, ...]
    digest: str


def read_gguf(path: Path) -> GgufHeader:
    """Returns the header of a GGUF file.

    Raises:
        ModelError: if it is no GGUF file of version 2 or 3, is cut off, or announces absurd counts.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content, path).header()
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is no GGUF file: {error}") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


class _Reader:
    """A position in the mapped file; every read is checked against its end."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self._content = content
        self._size = len(content)
        self._path = path
        self._position = 0

    def header(self) -> GgufHeader:
        if self._content[:4] != b"GGUF":
            raise self._error(f"it begins with {self._content[:4]!r}, not b'GGUF'")
        self._position = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise self._error(f"its version is {version}; versions 2 and 3 (little-endian) are understood")
        tensor_count = self._count("tensors", _MAX_TENSORS)
        key_count = self._count("keys", _MAX_KEYS)
        values = {self._text(): self._value(self._scalar("<I")) for _ in range(key_count)}
        offsets, tensors = (
            zip(*(self._tensor() for _ in range(tensor_count)), strict=True) if tensor_count else ((), ())
        )
        self._check_data(values, max(offsets, default=0))
        digest = hashlib.sha256(self._content[: self._position] + str(self._size).encode())
        return GgufHeader(values=values, tensors=tuple(tensors), digest=digest.hexdigest())

    def _check_data(self, values: dict[str, Any], last_offset: int) -> None:
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._error(f"its general.alignment is {alignment!r}")
        begin = -(-self._position // alignment) * alignment
        if last_offset and begin + last_offset >= self._size:
            raise self._error(
                f"it is cut off: {self._size} bytes, with a tensor at byte {begin + last_offset}; download it again"
            )

    def _tensor(self) -> tuple[int, Tensor]:
        name = self._text()
        dimensions = self._scalar("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise self._error(f"tensor {name!r} has {dimensions} dimensions; at most {_MAX_DIMENSIONS} are allowed")
        shape = tuple(self._scalar("<Q") for _ in range(dimensions))[::-1]
        number = self._scalar("<I")
        offset: int = self._scalar("<Q")
        return offset, Tensor(name, _TENSOR_TYPES.get(number, f"type{number}"), shape)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array()
        raise self._error(f"byte {self._position} names the unknown value type {kind}")

    def _array(self) -> list[Any] | LongArray:
        kind = self._scalar("<I")
        if kind == _ARRAY:
            raise self._error(f"byte {self._position} begins an array of arrays, which is not understood")
        length = self._count("array elements", self._size)
        if length <= _KEPT_ARRAY_LENGTH:
            return [self._value(kind) for _ in range(length)]
        if kind == _STRING:
            self._skip_texts(length)
        elif kind in _SCALARS:
            self._advance(length * struct.calcsize(_SCALARS[kind]))
        else:
            raise self._error(f"byte {self._position} names the unknown value type {kind}")
        return LongArray(length)

    def _skip_texts(self, count: int) -> None:
        unpack, position = struct.Struct("<Q").unpack_from, self._position
        try:
            for _ in range(count):
                position += 8 + unpack(self._content, position)[0]
        except (struct.error, OverflowError) as error:
            raise self._error(
                f"it is cut off inside an array of texts at byte {position}; download it again"
            ) from error
        self._advance(position - self._position)

    def _text(self) -> str:
        length = self._count("bytes in a text", self._size)
        begin = self._position
        self._advance(length)
        return self._content[begin : self._position].decode("utf-8", errors="replace")

    def _count(self, what: str, limit: int) -> int:
        count: int = self._scalar("<Q")
        if count > limit:
            raise self._error(
                f"it announces {count} {what} at byte {self._position - 8}, more than the {limit} possible"
            )
        return count

    def _scalar(self, layout: str) -> Any:
        begin = self._position
        self._advance(struct.calcsize(layout))
        return struct.unpack_from(layout, self._content, begin)[0]

    def _advance(self, byte_count: int) -> None:
        if self._position + byte_count > self._size:
            raise self._error(f"it is cut off: its header goes on past the last byte, {self._size}; download it again")
        self._position += byte_count

    def _error(self, problem: str) -> ModelError:
        return ModelError(f"{self._path} cannot be read as GGUF: {problem}")
