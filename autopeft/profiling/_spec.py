"""Puts a model's shape and what its files say together into one ModelSpec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from autopeft.profiling._architectures import check_stated_size, shape_of, text_config
from autopeft.profiling._safetensors_header import Index, Tensor, dominant_dtype
from autopeft.profiling._shapes import Shape
from autopeft.profiling._stored_format import format_note, stored_format
from autopeft.specs import LANGUAGE_PART_KEYS, CountSource, ModelSpec

_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_FLOATS = frozenset(_DTYPES)
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_BUFFER = re.compile(r"(\.attn\.(masked_)?bias|position_ids|rotary_emb\.inv_freq)$")
"""Tensors that old checkpoints hold and transformers computes: GPT-2's masks, BERT's position numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a configuration was read and what was found beside it.

    Attributes:
        where: origin of the configuration, for errors.
        tensors: from the headers of its weights; empty without weights.
        index: of weights in several files whose headers were not read; None otherwise.
        parameter_count: stated by a GGUF header or a profile; None to count ``tensors``, or else the configuration.
        parameter_count_source: who states it.
        stored_dtype: None to take that of the tensors, or else the configuration's.
    """

    where: str = "the configuration"
    format: Literal["folder", "gguf", "hub", "profile"] = "profile"
    path: str | None = None
    revision: str | None = None
    tensors: tuple[Tensor, ...] = ()
    index: Index | None = None
    parameter_count: int | None = None
    parameter_count_source: Literal["header", "profile"] = "profile"
    stored_dtype: str | None = None
    has_chat_template: bool = False
    has_tokenizer_file: bool = False
    license: str | None = None
    notes: tuple[str, ...] = ()


def build_spec(config: Mapping[str, Any], model_id: str, origin: Origin) -> ModelSpec:
    """Returns the ModelSpec of a config.json and its origin.

    Raises:
        ModelError: if the model type is unknown or a field is wrong.
    """
    inner, wrapper = text_config(config, origin.where)
    if wrapper is None and origin.format in ("folder", "hub"):  # what is given by hand may lean on the defaults
        check_stated_size(config, origin.where)
    notes: list[str] = []
    if wrapper is not None:
        origin, others = _language_part(origin)
        notes.append(_part_note(wrapper, inner.get("model_type"), others))
    shape = shape_of(inner, origin.where)
    stored = stored_format(config, origin.where)
    quantization = None if stored is None else stored.name
    obstacle = None if quantization is None else f"the weights are stored packed ({quantization})"
    if origin.index is not None and not origin.tensors and obstacle is None:
        count, source, count_notes = _indexed_count(shape, origin.index, _stored_dtype(config, origin))
    else:
        count, source, count_notes = _parameter_count(shape, origin, obstacle)
    return ModelSpec(
        id=model_id,
        format=origin.format,
        path=origin.path,
        revision=origin.revision,
        model_type=shape.model_type,
        kind=shape.kind,
        parameter_count=count,
        parameter_count_source=source,
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        attention_heads=shape.attention_heads,
        key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tie_word_embeddings,
        linear_layers=shape.linear_layers,
        wrapper=wrapper,
        experts=shape.experts,
        context_length=shape.context_length,
        stored_dtype=_stored_dtype(config, origin),
        stored_quantization=quantization,
        stored_format=stored,
        has_chat_template=origin.has_chat_template,
        has_tokenizer_file=origin.has_tokenizer_file,
        license=origin.license,
        config=dict(inner),
        notes=(*notes, *shape.notes, *origin.notes, *count_notes, *([format_note(stored)] if stored else [])),
    )


def count_parameters(tensors: tuple[Tensor, ...], shape: Shape) -> int:
    """Returns the elements of the tensors that are parameters of the counted model.

    Left out: buffers, integer tensors, heads of other tasks, and an output head that is tied to the embedding.
    """
    return sum(tensor.size for tensor in tensors if _is_parameter(tensor, shape))


def _is_parameter(tensor: Tensor, shape: Shape) -> bool:
    name = tensor.name.removeprefix(f"{shape.base_prefix}.") if shape.base_prefix else tensor.name
    root = name.split(".")[0]
    is_tied_head = shape.tie_word_embeddings and root == "lm_head"
    return tensor.dtype in _FLOATS and root in shape.weight_roots and not is_tied_head and not _BUFFER.search(name)


def _indexed_count(shape: Shape, index: Index, dtype: str | None) -> tuple[int, CountSource, tuple[str, ...]]:
    """Returns the count that the configuration implies, and whether the index of the weights confirms it.

    A file may hold a tied head a second time.
    """
    count, width = shape.parameter_count, _BYTES.get(dtype or "")
    possible = {count, count + (shape.vocab_size * shape.hidden_size if shape.tie_word_embeddings else 0)}
    if index.total_parameters in possible or (width and index.total_bytes in {width * each for each in possible}):
        return count, "index", ()
    total = index.total_parameters or (width and index.total_bytes and index.total_bytes // width)
    if not total:
        return count, "config", ()
    note = f"the index of the weights speaks of {total:,} parameters where the configuration implies {count:,}"
    return count, "config", (note,)


def _parameter_count(shape: Shape, origin: Origin, obstacle: str | None) -> tuple[int, CountSource, tuple[str, ...]]:
    """Returns the count, its source and notes; an ``obstacle`` in the weights leaves the closed form."""
    if obstacle is not None:
        return shape.parameter_count, "config", (f"parameters are counted from config.json, because {obstacle}",)
    count, source = origin.parameter_count, origin.parameter_count_source
    if origin.tensors:
        count, source = count_parameters(origin.tensors, shape), "header"
    if count is None:
        return shape.parameter_count, "config", ()
    if count == shape.parameter_count:
        return count, source, ()
    note = f"the {source} counts {count:,} parameters where the configuration implies {shape.parameter_count:,}"
    return count, source, (note,)


def _language_part(origin: Origin) -> tuple[Origin, dict[str, int]]:
    """Returns what the weights say of the language part of a multimodal model, and the elements of each other part.

    An index speaks of all parts together, so that it confirms nothing.
    """
    kept: list[Tensor] = []
    others: dict[str, int] = {}
    for tensor in origin.tensors:
        name = _language_name(tensor.name)
        if name is None:
            part = tensor.name.removeprefix("model.").partition(".")[0]
            others[part] = others.get(part, 0) + tensor.size
        else:
            kept.append(replace(tensor, name=name))
    return replace(origin, tensors=tuple(kept), index=None), others


def _language_name(name: str) -> str | None:
    """Returns a weight's name in the language model alone; None if it belongs to another part."""
    for pattern, replacement in LANGUAGE_PART_KEYS.items():
        name, found = re.subn(pattern, replacement, name)
        if found:
            return name
    is_language = name.startswith(("lm_head.", "model.layers.", "model.embed_tokens.", "model.norm."))
    return name if is_language else None


def _part_note(wrapper: str, inner: object, others: Mapping[str, int]) -> str:
    counted = ", ".join(f"{part} {size:,}" for part, size in sorted(others.items()))
    frozen = f"its other parts ({counted} parameters)" if counted else "its other parts"
    return (
        f"this is the language part ({inner}) of a {wrapper} model, and the part that is trained: {frozen} are neither "
        "loaded nor adapted, and layer paths are those of the language model alone"
    )


def _stored_dtype(config: Mapping[str, Any], origin: Origin) -> str | None:
    if origin.stored_dtype is not None:
        return origin.stored_dtype
    found = dominant_dtype(tensor for tensor in origin.tensors if tensor.dtype in _FLOATS)
    stated = config.get("dtype", config.get("torch_dtype"))
    return _DTYPES[found] if found else stated if isinstance(stated, str) else None
