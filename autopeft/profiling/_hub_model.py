"""Reads a model of the Hugging Face hub: its small files and the headers of its weights, never the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from autopeft.errors import ModelError
from autopeft.profiling._hub_client import (
    HubFileError,
    HubFileMissingError,
    HubModel,
    cached_config,
    current_config,
    find_commit,
)
from autopeft.profiling._json_file import read_json
from autopeft.profiling._model_folder import folder_origin
from autopeft.profiling._safetensors_header import (
    INDEX_FILE,
    PREFIX_BYTES,
    SINGLE_FILE,
    Index,
    Tensor,
    header_size,
    parse_header,
    read_index,
    read_weights,
)
from autopeft.profiling._spec import Origin, build_spec
from autopeft.specs import ModelSpec

T = TypeVar("T")
R = TypeVar("R")

_SMALL_FILES = ("tokenizer_config.json", "chat_template.jinja", "README.md", INDEX_FILE)
_TOKENIZER_FILE = "tokenizer.json"
_REQUESTS_AT_ONCE = 8
_FIRST_BYTES = 131_072
"""Of 97 % of the files on the hub the header is shorter than 100 kB (huggingface_hub, get_safetensors_metadata)."""


def read_hub(text: str) -> ModelSpec:
    """Returns the spec of a hub model, ``organization/name`` or ``organization/name@revision``.

    Without a revision it is the newest commit; where the hub cannot be reached, the cached one.

    Raises:
        ModelError: if the hub does not know the model, denies it, or cannot be reached and the cache lacks it; or if a
            file of it is broken.
    """
    model_id, _, revision = text.partition("@")
    commit, problem = find_commit(model_id, revision or None)
    if commit is None:
        return _from_cache(model_id, revision or None, str(problem))
    try:
        config = current_config(model_id, revision or None, commit)
    except HubFileError as error:
        raise ModelError(f"cannot download config.json of hub model {model_id}: {error}") from error
    model = HubModel(model_id, config.parent.name)
    small = dict(zip(_SMALL_FILES, _at_once(_SMALL_FILES, lambda name: _optional(model, name)), strict=True))
    has_tokenizer, unasked = _has_tokenizer(model)
    lost = tuple(_lost(name, found) for name, found in small.items() if isinstance(found, HubFileError))
    origin = replace(_origin(model_id, config.parent), has_tokenizer_file=has_tokenizer, notes=(*lost, *unasked))
    index = small[INDEX_FILE]
    if isinstance(index, HubFileError):
        return build_spec(read_json(config), model_id, origin)
    return _with_weights(model, config, origin, None if index is None else read_index(index))


def _from_cache(model_id: str, revision: str | None, problem: str) -> ModelSpec:
    config = cached_config(model_id, revision)
    if config is None:
        at = f"@{revision}" if revision else ""
        advice = "give a local folder, a .gguf file or the name of a profile"
        raise ModelError(f"hub model {model_id}{at}: {problem}, and the cache does not hold it; {advice}")
    folder = config.parent
    origin = _origin(model_id, folder)
    note = f"{problem}; read from the cache at {folder.name}"
    weights = read_weights(folder)
    tensors = () if weights.missing else weights.tensors
    content = read_json(config)
    # The index first, as online: the same model has one answer with and without the hub.
    spec = build_spec(content, model_id, replace(origin, index=weights.index, notes=(note,)))
    if not tensors or spec.parameter_count_source == "index":
        return spec
    return build_spec(content, model_id, replace(origin, tensors=tensors, notes=(note,)))


def _has_tokenizer(model: HubModel) -> tuple[bool, tuple[str, ...]]:
    """Returns whether the repository has a tokenizer.json, and a note where the hub does not say."""
    try:
        return model.exists(_TOKENIZER_FILE), ()
    except HubFileError as error:
        return False, (f"whether there is a {_TOKENIZER_FILE} is not known ({error}); taken as no",)


def _origin(model_id: str, folder: Path) -> Origin:
    return replace(
        folder_origin(folder),
        where=f"config.json of hub model {model_id}",
        format="hub",
        path=None,
        revision=folder.name,
    )


def _with_weights(model: HubModel, config: Path, origin: Origin, index: Index | None) -> ModelSpec:
    """Returns the spec with what the weights say; headers are read where the index does not confirm the count."""
    content = read_json(config)
    if index is not None:
        spec = build_spec(content, model.id, replace(origin, index=index))
        if spec.parameter_count_source == "index" or spec.stored_format is not None:
            return spec
    try:
        files = (SINGLE_FILE,) if index is None else index.files
        tensors = tuple(tensor for part in _at_once(files, lambda name: _header(model, name)) for tensor in part)
    except HubFileMissingError:
        if index is not None:
            raise ModelError(f"hub model {model.id} lacks files that its {INDEX_FILE} names") from None
        note = "the weights are no safetensors files; parameters are counted from config.json"
        return build_spec(content, model.id, replace(origin, notes=(*origin.notes, note)))
    except HubFileError as error:
        note = f"the weights' headers could not be read ({error}); parameters are counted from config.json"
        return build_spec(content, model.id, replace(origin, notes=(*origin.notes, note)))
    return build_spec(content, model.id, replace(origin, tensors=tensors))


def _header(model: HubModel, name: str) -> tuple[Tensor, ...]:
    """Returns the tensors that the header of a safetensors file describes."""
    where = f"{name} of hub model {model.id}"
    content, file_bytes = model.first_bytes(name, _FIRST_BYTES)
    end = PREFIX_BYTES + header_size(content[:PREFIX_BYTES], where)
    if end > len(content):
        content, file_bytes = model.first_bytes(name, end)
    if end > len(content):
        raise ModelError(
            f"{where} is cut off: its header has {len(content) - PREFIX_BYTES} bytes of {end - PREFIX_BYTES}"
        )
    return parse_header(content[PREFIX_BYTES:end], where, file_bytes)


def _optional(model: HubModel, name: str) -> Path | HubFileError | None:
    """Brings a file into the snapshot folder; None if the repository lacks it, the error if it cannot be had."""
    try:
        return model.small_file(name)
    except HubFileError as error:
        return error


def _lost(name: str, error: HubFileError) -> str:
    """Returns what a reader must know where a file is there and cannot be had."""
    if name == INDEX_FILE:
        return f"{name} could not be read ({error}); parameters are counted from config.json"
    return f"{name} could not be read ({error}); what it may say of a chat template or licence is not known"


def _at_once(items: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """Returns the results in order, asked for several at a time: each is one wait for the network."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(work, items))
