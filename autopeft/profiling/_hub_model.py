"""Reads a model of the Hugging Face hub: its small files and the headers of its weights, never the weights.

Everything goes through huggingface_hub, so that HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the cache hold.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autopeft.errors import ModelError
from autopeft.profiling._model_folder import folder_origin, read_json
from autopeft.profiling._safetensors_header import Tensor, read_weights
from autopeft.profiling._spec import build_spec
from autopeft.specs import ModelSpec

_SMALL_FILES = ("tokenizer_config.json", "chat_template.jinja", "README.md")


def read_hub(model_id: str) -> ModelSpec:
    """Returns the spec of a hub model at its newest revision, or at the cached one if the hub cannot be reached.

    Raises:
        ModelError: if the hub does not know the model, denies it, or cannot be reached and the cache lacks it.
    """
    problem = _problem(model_id)
    folder = _config_folder(model_id, problem)
    if problem is None:
        for name in _SMALL_FILES:
            _download_optional(model_id, name, folder.name)
    origin = folder_origin(folder, read_weights(folder))
    tensors = origin.tensors
    notes: tuple[str, ...] = () if problem is None else (f"{problem}; read from the cache at {folder.name}",)
    if not tensors and problem is None:
        tensors, notes = _remote_tensors(model_id, folder.name)
    has_tokenizer = origin.has_tokenizer_file or (problem is None and _exists(model_id, "tokenizer.json", folder.name))
    origin = replace(
        origin,
        where=f"config.json of hub model {model_id}",
        format="hub",
        path=None,
        revision=folder.name,
        tensors=tensors,
        has_tokenizer_file=has_tokenizer,
        notes=notes,
    )
    return build_spec(read_json(folder / "config.json"), model_id, origin)


def _problem(model_id: str) -> str | None:
    """Returns why the hub does not give the model's config.json, or None if it does.

    Asked before any download, because huggingface_hub retries a failing download for half a minute.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(model_id, "config.json"))
    except errors.GatedRepoError:
        return f"hub model {model_id} is gated (accept its terms on its page and set HF_TOKEN)"
    except errors.RepositoryNotFoundError:
        return f"there is no hub model {model_id} (or it is private: set HF_TOKEN), and no local folder of this name"
    except errors.EntryNotFoundError:
        return f"hub model {model_id} has no config.json, so that its layers are unknown"
    except errors.OfflineModeIsEnabled:
        return "the hub is not asked in offline mode"
    except _transport_errors(ValueError) as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    return None


def _config_folder(model_id: str, problem: str | None) -> Path:
    """Returns the cache's folder with config.json, downloaded if there is no problem; its name is the commit."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(model_id, "config.json", local_files_only=problem is not None)).parent
    except errors.LocalEntryNotFoundError as error:
        advice = "give a local folder, a .gguf file or the name of a profile"
        raise ModelError(f"{problem}, and the cache has no hub model {model_id}; {advice}") from error
    except _transport_errors(ValueError) as error:
        raise ModelError(f"cannot download config.json of hub model {model_id}: {error}") from error


def _download_optional(model_id: str, name: str, revision: str) -> None:
    """Brings a file into the snapshot folder; not being there, or not being reachable, leaves it absent."""
    from huggingface_hub import errors, hf_hub_download

    try:
        hf_hub_download(model_id, name, revision=revision)
    except _transport_errors(errors.EntryNotFoundError):
        return


def _exists(model_id: str, name: str, revision: str) -> bool:
    from huggingface_hub import file_exists

    try:
        return file_exists(model_id, name, revision=revision)
    except _transport_errors():
        return False


def _remote_tensors(model_id: str, revision: str) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """Returns the tensors that the weights' headers describe, read by range requests, and a note if there are none."""
    from huggingface_hub import errors, get_safetensors_metadata

    try:
        metadata = get_safetensors_metadata(model_id, revision=revision)
    except errors.NotASafetensorsRepoError:
        return (), ("the weights are no safetensors files; parameters are counted from config.json",)
    except _transport_errors(errors.SafetensorsParsingError) as error:
        return (), (
            f"the weights' headers could not be read ({type(error).__name__}); parameters are counted from config.json",
        )
    files = metadata.files_metadata.values()
    return tuple(Tensor(name, t.dtype, tuple(t.shape)) for file in files for name, t in file.tensors.items()), ()


def _transport_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns ``others`` and what a failed request raises: OSError and the base of requests, httpx or httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*others, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))
