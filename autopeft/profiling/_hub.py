"""Fetches the train split of a data set on the Hugging Face hub into the hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from autopeft.errors import DataError
from autopeft.profiling._files import kind_of

_OTHER_SPLITS = re.compile(r"(^|[^a-z])(test|dev|val|valid|validation|eval)([^a-z]|$)", re.IGNORECASE)
_TRAIN = re.compile(r"(^|[^a-z])train([^a-z]|$)", re.IGNORECASE)
_PREFERRED_KINDS = ("parquet", "jsonl", "json", "csv", "tsv", "arrow", "txt")


def download_dataset(repository: str) -> tuple[str, ...]:
    """Returns local copies of the train files of a hub data set; a second call, or an offline one, uses the cache.

    Raises:
        DataError: if the data set cannot be had, or its train files cannot be told from the others.
    """
    # Imported here because it costs tens of milliseconds that local data need not pay.
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The base of the transport errors is requests, httpx or httpx2, by the version of huggingface_hub.
    failures: tuple[type[BaseException], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    try:
        if constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(repository, repo_type="dataset", local_files_only=True))
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            return tuple(str(folder / name) for name in train_files(names, repository))
        info = HfApi().dataset_info(repository)
        chosen = train_files((sibling.rfilename for sibling in info.siblings or ()), repository)
        folder = Path(
            snapshot_download(repository, repo_type="dataset", revision=info.sha, allow_patterns=list(chosen))
        )
        return tuple(str(folder / name) for name in chosen)
    except failures as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{repository!r} is no file or folder here (looked in {Path.cwd()}), and as a hub data set id it cannot be "
            f"fetched: {_reason(error)}. Check the path, or the id and the network"
        ) from error


def train_files(names: Iterable[str], repository: str) -> tuple[str, ...]:
    """Returns the files of the train split among a repository's file names, sorted.

    Files that are named after another split are left out; of several kinds the first of Parquet, JSON Lines, JSON, CSV,
    TSV, Arrow and text is taken; several configurations (folders) are an error.
    """
    names = sorted(name for name in names if kind_of(name) and not PurePosixPath(name).name.startswith("."))
    named_train = [name for name in names if _TRAIN.search(name)]
    candidates = named_train or [name for name in names if not _OTHER_SPLITS.search(name)]
    kinds = {kind_of(name) for name in candidates}
    kind = next((kind for kind in _PREFERRED_KINDS if kind in kinds), None)
    chosen = [name for name in candidates if kind_of(name) == kind]
    if not chosen:
        raise DataError(f"hub data set {repository!r} has no readable train file; download it and name the file to use")
    folders = sorted({_configuration(name) for name in chosen})
    if len(folders) > 1:
        raise DataError(
            f"hub data set {repository!r} has several configurations: {', '.join(folders)}; "
            "download the one you mean and name its folder"
        )
    return tuple(chosen)


def _configuration(name: str) -> str:
    folder = PurePosixPath(name).parent
    return str(folder.parent if _TRAIN.fullmatch(folder.name) else folder)


def _reason(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
