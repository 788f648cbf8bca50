"""Translates the hyperparameters of a GGUF header into the config.json that transformers would hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autopeft.errors import ModelError
from autopeft.profiling._gguf_header import GgufHeader

_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
"""GGUF's ``general.architecture`` -> model_type. Mistral and Mixtral are written as "llama"."""

_REQUIRED = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_OPTIONAL = {
    "context_length": "max_position_embeddings",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
}
_GPT2_NAMES = {
    "num_hidden_layers": "n_layer",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_ROPE_TABLES = ("rope_freqs", "rope_factors")
"""Tensors that llama.cpp stores and transformers computes: no parameters."""


def gguf_config(header: GgufHeader, path: Path) -> dict[str, Any]:
    """Returns the config.json that is equivalent to a GGUF header.

    Raises:
        ModelError: if the architecture is not supported, the file is one part of several, or a hyperparameter is
            missing or differs between layers.
    """
    architecture = header.values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _MODEL_TYPES:
        raise ModelError(
            f"{path}: GGUF architecture {architecture!r} is not supported; supported: {', '.join(sorted(_MODEL_TYPES))}"
        )
    if header.values.get("split.count", 1) != 1:
        raise ModelError(
            f"{path} is one of {header.values['split.count']} parts; join them first: llama-gguf-split --merge"
        )
    config = _hyperparameters(header, architecture, path)
    names = {tensor.name for tensor in header.tensors}
    config["vocab_size"] = _vocabulary(header, path)
    if config["model_type"] == "gpt2":
        return {_GPT2_NAMES.get(name, name): value for name, value in config.items()}
    config["tie_word_embeddings"] = "output.weight" not in names
    config["attention_bias"] = "blk.0.attn_output.bias" in names
    return config


def gguf_parameter_count(header: GgufHeader) -> int:
    """Returns the elements of all tensors that are parameters in transformers.

    GPT-2's output matrix is left out: llama.cpp writes it although it is the embedding's.
    """
    is_gpt2 = header.values.get("general.architecture") == "gpt2"
    return sum(
        tensor.size
        for tensor in header.tensors
        if not tensor.name.startswith(_ROPE_TABLES) and not (is_gpt2 and tensor.name == "output.weight")
    )


def _hyperparameters(header: GgufHeader, architecture: str, path: Path) -> dict[str, Any]:
    found = {
        name: _uniform(header.values[f"{architecture}.{key}"], key, path)
        for key, name in (_REQUIRED | _OPTIONAL).items()
        if f"{architecture}.{key}" in header.values
    }
    missing = [f"{architecture}.{key}" for key, name in _REQUIRED.items() if name not in found]
    if missing:
        raise ModelError(f"{path} lacks the hyperparameters {', '.join(missing)}; convert the model again")
    if architecture == "llama" and "head_dim" not in found and "llama.rope.dimension_count" in header.values:
        found["head_dim"] = header.values["llama.rope.dimension_count"]
    if architecture == "llama" and found.get("num_local_experts", 0) != 0:
        return {"model_type": "mixtral", **found}
    plain = {name: value for name, value in found.items() if "experts" not in name}
    return {"model_type": _MODEL_TYPES[architecture], **plain}


def _uniform(value: Any, key: str, path: Path) -> Any:
    """Returns a hyperparameter, of which some files write one value per layer."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ModelError(f"{path}: {key} differs between layers ({value}); such models are not supported")
    return value[0]


def _vocabulary(header: GgufHeader, path: Path) -> int:
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and len(tensor.shape) == 2:
            return tensor.shape[0]
    raise ModelError(
        f"{path} holds no token_embd.weight matrix, so that its vocabulary is unknown; it is no language model"
    )
