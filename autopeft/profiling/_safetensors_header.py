"""Reads what safetensors files say of their tensors, without their data.

Layout (the safetensors format description): 8 bytes little-endian length, so many bytes of JSON, then the data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import ModelError

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

INDEX_FILE = "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint; ``dtype`` is written as the file writes it ("BF16", "Q4_1")."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The tensors of a checkpoint.

    Attributes:
        tensors: all of the files that are there; empty if there is no safetensors file.
        missing: files that the index names and the folder lacks.
        digest: SHA-256 over headers, index, names and sizes of the files.
    """

    tensors: tuple[Tensor, ...]
    missing: tuple[str, ...] = ()
    digest: str = ""


def read_weights(folder: Path) -> Weights:
    """Returns the tensors of a checkpoint folder: of ``model.safetensors``, or of the files that the index names.

    Raises:
        ModelError: if a file is cut off, is a git-lfs pointer, or is no safetensors file.
    """
    digest = hashlib.sha256()
    names = _weight_files(folder, digest)
    there = [name for name in names if (folder / name).is_file()]
    tensors: list[Tensor] = []
    for name in there:
        header = _header(folder / name)
        digest.update(f"{name} {(folder / name).stat().st_size}\n".encode() + header)
        tensors.extend(parse_header(header, folder / name))
    return Weights(tensors=tuple(tensors), missing=tuple(sorted(set(names) - set(there))), digest=digest.hexdigest())


def dominant_dtype(tensors: Iterable[Tensor]) -> str | None:
    """Returns the dtype that most elements are stored in; None without tensors."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def parse_header(header: bytes, path: Path) -> tuple[Tensor, ...]:
    """Returns the tensors that the JSON of a safetensors header describes.

    Raises:
        ModelError: if it is no such header, or the file is shorter than the header says.
    """
    try:
        entries: dict[str, Any] = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        tensors = tuple(
            Tensor(name, str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in entries.items()
        )
        data_bytes = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path} has a broken safetensors header ({error!r}); download it again") from error
    expected = 8 + len(header) + data_bytes
    if path.stat().st_size < expected:
        raise ModelError(f"{path} is cut off: it has {path.stat().st_size} bytes of {expected}; download it again")
    return tensors


def _weight_files(folder: Path, digest: hashlib._Hash) -> tuple[str, ...]:
    index = folder / INDEX_FILE
    if not index.is_file():
        return tuple(path.name for path in sorted(folder.glob("model.safetensors")))
    content = index.read_bytes()
    digest.update(content)
    try:
        weight_map: Mapping[str, str] = json.loads(content)["weight_map"]
        return tuple(sorted({Path(name).name for name in weight_map.values()}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no safetensors index ({error!r}); download it again") from error


def _header(path: Path) -> bytes:
    with path.open("rb") as stream:
        prefix = stream.read(len(_LFS_POINTER))
        if prefix == _LFS_POINTER:
            raise ModelError(f"{path} is a git-lfs pointer, not the weights; fetch them with: git lfs pull")
        size = int.from_bytes(prefix[:8], "little")
        if len(prefix) < 8 or size > _MAX_HEADER_BYTES:
            raise ModelError(f"{path} is no safetensors file: its first 8 bytes announce a header of {size} bytes")
        stream.seek(8)
        header = stream.read(size)
    if len(header) < size:
        raise ModelError(f"{path} is cut off: its header has {len(header)} bytes of {size}; download it again")
    return header
