"""Brings a model, whatever it is stored as, into an ordinary folder that transformers loads."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from autopeft.errors import ModelError

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def model_folder(model: str, revision: str | None, cache_folder: Path) -> Path:
    """Returns a local folder with config.json, safetensors weights and tokenizer.

    A folder is taken as it is; a GGUF file is dequantized to float32 once, into ``cache_folder``; a hub id is
    downloaded to huggingface_hub's cache.

    Raises:
        ModelError: if a local path holds no model.
    """
    path = Path(model)
    if path.is_dir() and (path / "config.json").is_file():
        return path
    gguf = _gguf_file(path)
    if gguf is not None:
        return _converted(gguf, cache_folder)
    if path.exists():
        raise ModelError(f"{path} holds neither config.json nor a single .gguf file")
    return _downloaded(model, revision)


def _downloaded(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))
    except GatedRepoError as error:
        raise ModelError(f"the model {model!r} is gated; accept its licence on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {model!r}, or it is private and HF_TOKEN is not set") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"the weights of {model!r} are not here and cannot be downloaded ({type(error).__name__}); "
            "check the network, or give --model a local folder with the weights"
        ) from error


def _gguf_file(path: Path) -> Path | None:
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        return files[0] if len(files) == 1 else None
    return None


def _converted(gguf: Path, cache_folder: Path) -> Path:
    """Returns the folder of the dequantized model, made on first use; complete or absent, never half made."""
    target = cache_folder / "models" / f"{gguf.stem}-{_fingerprint(gguf)}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert(gguf, scratch)
        os.replace(scratch, target)
    except OSError:
        if not (target / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True a quantizer stays attached, and save_pretrained and Trainer refuse the model.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _fingerprint(path: Path) -> str:
    """Returns a short hash of the file's size, first and last MiB: enough to tell two model files apart."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(2**20))
        file.seek(max(0, size - 2**20))
        digest.update(file.read(2**20))
    return digest.hexdigest()[:16]
