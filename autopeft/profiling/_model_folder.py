"""Reads a local model: a folder with config.json, or a GGUF file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from autopeft.errors import ModelError
from autopeft.profiling._gguf_config import gguf_config, gguf_parameter_count
from autopeft.profiling._gguf_header import read_gguf
from autopeft.profiling._json_file import read_json
from autopeft.profiling._safetensors_header import INDEX_FILE, Tensor, Weights, dominant_dtype, read_weights
from autopeft.profiling._spec import Origin, build_spec
from autopeft.specs import ModelSpec

_LICENSE = re.compile(rb"^license:[ \t]*['\"]?([\w.+-]+)", re.MULTILINE)


def read_local(path: Path) -> ModelSpec:
    """Returns the spec of a model folder, of a GGUF file, or of a folder that holds one GGUF file and no config.json.

    Raises:
        ModelError: saying what is missing or broken, and where.
    """
    if path.is_file():
        return _read_file(path)
    if (path / "config.json").is_file():
        return _read_folder(path)
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return _read_gguf(found[0])
    raise ModelError(_nothing_in(path, found))


def folder_origin(folder: Path) -> Origin:
    """Returns what stands in a model folder beside its config.json and its weights."""
    return Origin(
        where=str(folder / "config.json"),
        format="folder",
        path=str(folder.resolve()),
        has_chat_template=_has_chat_template(folder),
        has_tokenizer_file=(folder / "tokenizer.json").is_file(),
        license=_license(folder),
    )


def _read_file(path: Path) -> ModelSpec:
    if path.suffix == ".gguf":
        return _read_gguf(path)
    raise ModelError(f"{path} is a file but no .gguf file; give the model's folder, the one that holds config.json")


def _read_folder(folder: Path) -> ModelSpec:
    config = read_json(folder / "config.json")
    weights = read_weights(folder)
    if weights.missing and weights.tensors:
        raise ModelError(
            f"{folder} lacks {len(weights.missing)} of the files that its {INDEX_FILE} names "
            f"({weights.missing[0]}, ...); download them again, or leave out all weights and profile config.json alone"
        )
    origin = replace(
        folder_origin(folder),
        revision=_folder_revision(folder, weights),
        tensors=weights.tensors,
        index=weights.index,
        notes=() if weights.tensors or weights.index else _pickled_note(folder),
    )
    return build_spec(config, folder.resolve().name, origin)


def _pickled_note(folder: Path) -> tuple[str, ...]:
    """Returns what is told of weights in pickle files, whose tensors cannot be read without running their code."""
    found = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if not found:
        return ()
    return (
        f"the weights ({found[0]}{', ...' if found[1:] else ''}) are no safetensors files; parameters are counted from "
        "config.json, and a changed file is not noticed: save_pretrained of transformers writes safetensors",
    )


def _read_gguf(path: Path) -> ModelSpec:
    header = read_gguf(path)
    config = gguf_config(header, path)
    values = header.values
    origin = Origin(
        where=str(path),
        format="gguf",
        path=str(path.resolve()),
        revision=f"sha256:{header.digest}",
        parameter_count=gguf_parameter_count(header),
        parameter_count_source="header",
        stored_dtype=f"gguf:{_weight_type(header.tensors)}",
        has_chat_template=bool(values.get("tokenizer.chat_template")),
        has_tokenizer_file=(path.parent / "tokenizer.json").is_file(),
        license=stated if isinstance(stated := values.get("general.license"), str) else None,
    )
    return build_spec(config, path.stem, origin)


def _weight_type(tensors: tuple[Tensor, ...]) -> str | None:
    """The type of most weights in the blocks: a quantized file keeps its embedding in a wider type."""
    return dominant_dtype(tensor for tensor in tensors if tensor.name.startswith("blk."))


def _nothing_in(path: Path, gguf_files: list[Path]) -> str:
    if not path.is_dir():
        return f"no such folder or file: {path}"
    if gguf_files:
        names = ", ".join(file.name for file in gguf_files)
        return f"{path} holds {len(gguf_files)} GGUF files and no config.json; name one of them: {names}"
    if (path / "adapter_config.json").is_file():
        return f"{path} holds a PEFT adapter (adapter_config.json) and no model; give the base model's folder"
    return f"{path} holds no config.json and no .gguf file, so that it is no model folder"


def _folder_revision(folder: Path, weights: Weights) -> str:
    """SHA-256 over config.json and the digest of the weights (headers, index, file names and sizes; not their data)."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    digest.update(weights.digest.encode())
    return f"sha256:{digest.hexdigest()}"


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def _license(folder: Path) -> str | None:
    """The license that the model card states in its YAML front matter."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    front = card.read_bytes()[:65536].split(b"\n---", 1)[0]
    found = _LICENSE.search(front) if front.startswith(b"---") else None
    return found[1].decode() if found else None
