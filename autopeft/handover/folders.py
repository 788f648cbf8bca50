"""New folders that are complete or absent, and what is copied into them from the base."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopeft.errors import InvalidInputError

_BESIDE_WEIGHTS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "spiece.model",
    "sentencepiece.*",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
)
"""What a model folder holds beside config.json and weights; all of it may be missing."""


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Gives a scratch folder that becomes ``output`` at the end, and vanishes if anything fails.

    Raises:
        InvalidInputError: if the output is there already, or cannot be made.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidInputError(f"{output} exists already; name a new folder with -o, or remove it first")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise InvalidInputError(f"cannot write into {output.parent}: {error.strerror}") from error
    try:
        yield scratch
        scratch.chmod(0o755)  # a temporary folder is the owner's alone
        os.replace(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def copy_companions(source: Path, target: Path) -> None:
    """Copies tokenizer, chat template, generation settings and licence, those that are there."""
    for pattern in _BESIDE_WEIGHTS:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
