"""Reads what safetensors files say of their tensors, without their data.

Layout (the safetensors format description): 8 bytes little-endian length, so many bytes of JSON, then the data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import ModelError
from autopeft.profiling._json_file import read_json

PREFIX_BYTES = 8
"""They hold the length of the header."""
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
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


@dataclass(frozen=True, slots=True)
class Index:
    """What model.safetensors.index.json says of a checkpoint in several files.

    Attributes:
        files: names of its files, in alphabetical order.
        total_bytes: of all tensors; None if it does not say.
        total_parameters: of all tensors; None if it does not say, as in files written before 2025.
    """

    files: tuple[str, ...]
    total_bytes: int | None
    total_parameters: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The tensors of a checkpoint.

    Attributes:
        tensors: all of the files that are there; empty if there is no safetensors file.
        missing: files that the index names and the folder lacks.
        digest: SHA-256 over headers, index, names and sizes of the files.
        index: of a checkpoint in several files; None otherwise.
    """

    tensors: tuple[Tensor, ...]
    missing: tuple[str, ...] = ()
    digest: str = ""
    index: Index | None = None


def read_weights(folder: Path) -> Weights:
    """Returns the tensors of a checkpoint folder: of ``model.safetensors``, or of the files that the index names.

    Raises:
        ModelError: if a file is cut off, is a git-lfs pointer, or is no safetensors file.
    """
    digest = hashlib.sha256()
    path = folder / INDEX_FILE
    index = read_index(path) if path.is_file() else None
    if index is not None:
        digest.update(path.read_bytes())
    names = index.files if index else (SINGLE_FILE,) if (folder / SINGLE_FILE).is_file() else ()
    there = [name for name in names if (folder / name).is_file()]
    tensors: list[Tensor] = []
    for name in there:
        header = _header(folder / name)
        file_bytes = (folder / name).stat().st_size
        digest.update(f"{name} {file_bytes}\n".encode() + header)
        tensors.extend(parse_header(header, str(folder / name), file_bytes))
    missing = tuple(sorted(set(names) - set(there)))
    return Weights(tensors=tuple(tensors), missing=missing, digest=digest.hexdigest(), index=index)


def read_index(path: Path) -> Index:
    """Returns the content of a model.safetensors.index.json.

    Raises:
        ModelError: naming the file and the key that is missing or wrong.
    """
    content = read_json(path)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path} is no safetensors index: weight_map is missing or no object; download it again")
    wrong = next((name for name in weight_map.values() if not isinstance(name, str) or not name), None)
    if wrong is not None:
        raise ModelError(f"{path} is no safetensors index: weight_map names the file {wrong!r}; download it again")
    stated = content.get("metadata")
    metadata: dict[str, Any] = stated if isinstance(stated, dict) else {}
    return Index(
        files=tuple(sorted({Path(name).name for name in weight_map.values()})),
        total_bytes=_whole(metadata.get("total_size")),
        total_parameters=_whole(metadata.get("total_parameters")),
    )


def dominant_dtype(tensors: Iterable[Tensor]) -> str | None:
    """Returns the dtype that most elements are stored in; None without tensors."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def header_size(prefix: bytes, where: str) -> int:
    """Returns the length of the header that the first 8 bytes of a file announce.

    Raises:
        ModelError: if these are the bytes of another kind of file.
    """
    size = int.from_bytes(prefix, "little")
    if len(prefix) < PREFIX_BYTES or size > _MAX_HEADER_BYTES:
        raise ModelError(f"{where} is no safetensors file: its first 8 bytes announce a header of {size} bytes")
    return size


def parse_header(header: bytes, where: str, file_bytes: int | None) -> tuple[Tensor, ...]:
    """Returns the tensors that the JSON of a safetensors header describes.

    Args:
        header: the JSON.
        where: the file, for errors.
        file_bytes: its size; None if that is not known.

    Raises:
        ModelError: if it is no such header, or the file is shorter than the header says.
    """
    try:
        entries: dict[str, Any] = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        tensors = tuple(
            Tensor(name, str(entry["dtype"]), _dimensions(entry["shape"])) for name, entry in entries.items()
        )
        data_bytes = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError(f"{where} has a broken safetensors header ({error!r:.200}); download it again") from error
    expected = PREFIX_BYTES + len(header) + data_bytes
    if file_bytes is not None and file_bytes < expected:
        raise ModelError(f"{where} is cut off: it has {file_bytes} bytes of {expected}; download it again")
    return tensors


def _dimensions(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(isinstance(size, int) and 0 <= size < 2**48 for size in shape):
        raise ValueError(f"a shape of {shape!r:.60}")
    return tuple(shape)


def _whole(value: Any) -> int | None:
    """Returns a count that may be written as 5.0e9; None for what is no count."""
    return int(value) if isinstance(value, int | float) and 0 < value < 2**63 and value == int(value) else None


def _header(path: Path) -> bytes:
    with path.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ModelError(f"{path} is a git-lfs pointer, not the weights; fetch them with: git lfs pull")
        size = header_size(start[:PREFIX_BYTES], str(path))
        stream.seek(PREFIX_BYTES)
        header = stream.read(size)
    if len(header) < size:
        raise ModelError(f"{path} is cut off: its header has {len(header)} bytes of {size}; download it again")
    return header
