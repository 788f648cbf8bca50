"""Writes a safetensors file one tensor at a time, so that a large model never has to be in memory as a whole.

Layout (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian length of the header, the header as
JSON padded with spaces, then the bytes of the tensors one after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Dtype and shape of a tensor that will be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


def write_tensors(path: Path, layouts: Mapping[str, Layout], tensor: Callable[[str], torch.Tensor]) -> None:
    """Writes a safetensors file.

    Args:
        path: of the new file.
        layouts: of every tensor, in the order in which they are wanted.
        tensor: gives one by its name; called once for each, in that order.
    """
    header = json.dumps({"__metadata__": {"format": "pt"}, **_entries(layouts)}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, layout in layouts.items():
            file.write(_bytes(tensor(name), name, layout))


def _entries(layouts: Mapping[str, Layout]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    start = 0
    for name, layout in layouts.items():
        end = start + layout.size_bytes
        entries[name] = {
            "dtype": _dtype_name(name, layout.dtype),
            "shape": list(layout.shape),
            "data_offsets": [start, end],
        }
        start = end
    return entries


def _dtype_name(name: str, dtype: torch.dtype) -> str:
    plain = str(dtype).removeprefix("torch.")
    if plain not in _NAMES:
        raise InvalidInputError(
            f"the tensor {name} is stored as {plain}, which is not written; known: {sorted(_NAMES)}"
        )
    return _NAMES[plain]


def _bytes(tensor: torch.Tensor, name: str, layout: Layout) -> memoryview:
    import torch

    assert tuple(tensor.shape) == layout.shape, f"{name} has shape {tuple(tensor.shape)}, announced was {layout.shape}"
    stored = tensor.to(layout.dtype).contiguous().reshape(-1)
    return memoryview(stored.view(torch.uint8).numpy()) if stored.numel() else memoryview(b"")
