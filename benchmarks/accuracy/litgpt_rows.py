"""Turns a row that LitGPT trained into what architectures/litgpt.py builds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from autopeft.specs import Candidate

PARTS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "projection",
    "dense": "projection",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
    "fc1": "mlp",
    "fc2": "mlp",
    "lm_head": "head",
}
"""LitGPT's name for what a target module of transformers is part of."""


def litgpt_config(config: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """Returns the settings of ``LitGptConfig`` for a model's config.json and a candidate's adapter.

    LitGPT stores a head of its own also where a checkpoint ties it to the embedding.
    """
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        **{name: config[name] for name in shared},
        "model_type": "litgpt",
        "family": "phi" if config["model_type"] == "phi" else "llama",
        "num_key_value_heads": config.get("num_key_value_heads", heads),
        "head_dim": width,
        "rotary_width": int(width * config.get("partial_rotary_factor", 1.0)),
        "adapted": sorted({PARTS[name] for name in candidate.target_modules}),
        "lora_r": candidate.r,
        "lora_dropout": candidate.lora_dropout,
        "four_bits": candidate.quantization != "none",
    }


def litgpt_candidate(candidate: Candidate) -> Candidate:
    """Returns the candidate without an adapter of peft's: the model brings its own and trains nothing else."""
    return dataclasses.replace(candidate, method="full", r=None, lora_alpha=None, adapter_dtype=None, target_modules=())
