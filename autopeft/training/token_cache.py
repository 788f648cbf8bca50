"""Tokenizes a data set once for each tokenizer: the tokens are kept as an Arrow file that processes map into memory."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from autopeft import profiling
from autopeft.profiling.encoding import EncodedRow
from autopeft.specs import Job, to_json

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What decides a row's tokens."""

_ROWS_OF_BLOCK = 10_000


class StoredRows(Sequence[EncodedRow]):
    """The encoded rows of a mapped file; a row is read when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._ids = table.column("input_ids")
        self._bounds = table.column("supervised")

    def __len__(self) -> int:
        """The rows of the data set."""
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        """The row with this number, or several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        bounds = self._bounds[index].values.to_pylist()
        ids = self._ids[index].values.to_numpy().tolist()
        return EncodedRow(tuple(ids), tuple(zip(bounds[::2], bounds[1::2], strict=True)))


def encoded_once(job: Job, folder: Path, encode: Callable[[], Sequence[EncodedRow]]) -> Sequence[EncodedRow]:
    """Returns the rows of the job's data as tokens: from the cache, or encoded and kept there.

    The key is content: of the data, of the tokenizer's files and of how rows are understood. Data or a tokenizer that
    changed has another file; nothing is ever wrong because it is old.

    Args:
        job: names the data and the cache.
        folder: of the tokenizer.
        encode: tokenizes all rows, in order.
    """
    path = Path(job.cache_folder) / "tokens" / f"{token_key(job, folder)}.arrow"
    if not path.is_file():
        _write(path, encode())
    return StoredRows(_mapped(path))


def token_key(job: Job, folder: Path) -> str:
    """Returns the hash of all that decides the tokens of a job's rows; truncation and splits come afterwards."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    understood = {"columns": job.columns, "format": job.data_format, "bad": job.on_bad_row, "data": job.data_hash}
    for part in (version("tokenizers"), to_json(understood)):
        digest.update(part.encode() + b"\0")
    for source in sorted(Path(profiling.__file__).parent.glob("*.py")):  # reads and encodes rows; versions stand still
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    for name in TOKENIZER_FILES:
        file = folder / name
        digest.update(hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b"none")
    return digest.hexdigest()


def _write(path: Path, rows: Sequence[EncodedRow]) -> None:
    """Writes the file, whole or not at all; of two processes that write it, the later replaces the earlier."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    schema = pa.schema({"input_ids": pa.large_list(pa.int32()), "supervised": pa.list_(pa.int32())})
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for start in range(0, len(rows), _ROWS_OF_BLOCK):
                writer.write_batch(_block(rows[start : start + _ROWS_OF_BLOCK], schema))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    logger.info("kept the tokens of %d rows in %s", len(rows), path)


def _block(rows: Sequence[EncodedRow], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    ids = [row.input_ids for row in rows]
    bounds = [[bound for part in row.supervised for bound in part] for row in rows]
    return pa.RecordBatch.from_pydict({"input_ids": ids, "supervised": bounds}, schema=schema)


def _mapped(path: Path) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
