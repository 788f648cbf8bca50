"""The closed form against the trace, its measuring stick; docs/memory-model.md quotes the slow test's figures."""

from __future__ import annotations

import random
import statistics
import sys
from typing import Any

import pytest

from autopeft.memory.closed_form import estimate_memory
from autopeft.memory.trace import trace_memory
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Candidate, ModelSpec

DECODER = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
GPT = {"vocab_size": 8000, "n_embd": 512, "n_layer": 5, "n_head": 8, "n_positions": 2048}
ENCODER = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "max_position_embeddings": 2050,
    # Otherwise deberta reads the labels by value to find out, which a trace cannot.
    "problem_type": "single_label_classification",
}
HEADS = {"head_dim": 64}
TIED = {"tie_word_embeddings": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": DECODER,
    "mistral": DECODER | {"sliding_window": None},
    "mixtral": DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 768},
    "qwen2": DECODER | TIED,
    "qwen3": DECODER | HEADS,
    "gemma": DECODER | HEADS | TIED,
    "gemma2": DECODER | HEADS | TIED,
    "gemma3_text": DECODER | HEADS | TIED | {"sliding_window": 256},
    "phi3": DECODER | {"pad_token_id": 0, "eos_token_id": 1},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "bert": ENCODER,
    "roberta": ENCODER,
    "deberta-v2": ENCODER
    | {
        "relative_attention": True,
        "position_buckets": 256,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
}
METHODS = ("lora", "rslora", "dora", "loftq", "adalora", "full")
EAGER_ONLY = ("gemma2", "deberta-v2")
SAMPLE = 15
CHUNK = 5
"""Cases of one test, which must end within pytest's time limit on a busy machine too."""
TOLERANCE = 0.03


def spec(model_type: str) -> ModelSpec:
    return spec_from_config({"model_type": model_type} | CONFIGS[model_type], id=f"small-{model_type}")


def build(model: ModelSpec, method: str, **changes) -> Candidate:
    fields = {"method": method, "r": 16, "lora_alpha": 16.0, "per_device_batch_size": 4}
    fields["target_modules"] = resolve_target_modules(model, ("all-linear",))
    if method == "full":
        fields |= {"r": None, "lora_alpha": None, "target_modules": (), "adapter_dtype": None}
    if model.model_type in EAGER_ONLY:
        fields["attention"] = "eager"
    if model.kind == "encoder":
        fields["trainer"] = "transformers"
    return Candidate(**fields | changes)


def error(model: ModelSpec, candidate: Candidate, length: int) -> float:
    traced = trace_memory(candidate, model, None, sequence_length=length).peak_memory_bytes
    return estimate_memory(candidate, model, None, sequence_length=length).peak_memory_bytes / traced - 1


@pytest.mark.parametrize(
    ("model_type", "method", "changes"),
    [
        ("llama", "lora", {"trainer": "trl", "lora_dropout": 0.05}),
        ("qwen3", "lora", {"quantization": "nf4", "double_quantization": True, "activation_checkpointing": True}),
        ("phi3", "dora", {"trainer": "transformers", "activation_checkpointing": True}),
        ("gemma2", "full", {"trainer": "transformers"}),
        ("gemma3_text", "lora", {"quantization": "int8"}),
        ("mixtral", "lora", {"quantization": "nf4"}),
        ("gpt2", "lora", {"trainer": "transformers"}),
        ("roberta", "lora", {}),
        ("deberta-v2", "lora", {"activation_checkpointing": True}),
    ],
)
def test_the_closed_form_is_within_three_percent_of_the_trace(model_type, method, changes):
    model = spec(model_type)
    assert abs(error(model, build(model, method, **changes), length=384)) <= TOLERANCE


def drawn(draw: random.Random, model_type: str) -> tuple[str, dict[str, Any], int]:
    """Returns a case of the whole space: methods x storage x checkpointing x batch x length x trainer x dtypes."""
    method = draw.choice(METHODS)
    is_encoder = model_type in ("bert", "roberta", "deberta-v2")
    if is_encoder and method == "loftq":
        method = "lora"  # a quantized encoder cannot be trained
    storage = "nf4" if method == "loftq" else draw.choice(("none", "int8", "nf4"))
    storage = "none" if is_encoder or method == "full" else storage
    changes: dict[str, Any] = {
        "quantization": storage,
        "double_quantization": storage == "nf4" and draw.random() < 0.5,
        "activation_checkpointing": draw.random() < 0.5,
        "per_device_batch_size": draw.choice((1, 2, 4, 8)),
        "gradient_accumulation_steps": draw.choice((1, 1, 2)),
    }
    if not is_encoder:
        changes["trainer"] = draw.choice(("trl", "transformers"))
    if method != "full":
        # peft computes AdaLoRA on an int8 base with float32 inputs, which 16-bit factors cannot be multiplied with.
        sixteen_bit = draw.random() < 0.4 and not (method == "adalora" and storage == "int8")
        changes["adapter_dtype"] = "bfloat16" if sixteen_bit else "float32"
        changes["lora_dropout"] = draw.choice((0.0, 0.0, 0.05))
        changes["r"] = draw.choice((4, 16, 64))
    if draw.random() < 0.15:
        changes["attention"] = "eager"
    return method, changes, draw.choice((128, 256, 512, 1024))


def cases(model_type: str) -> list[tuple[str, dict[str, Any], int]]:
    draw = random.Random(f"{model_type} 20")
    return [drawn(draw, model_type) for _ in range(SAMPLE)]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(0, SAMPLE, CHUNK))
@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_every_drawn_case_is_within_three_percent_of_the_trace(model_type, chunk):
    model = spec(model_type)
    errors: dict[tuple[Any, ...], float] = {}
    for method, changes, length in cases(model_type)[chunk : chunk + CHUNK]:
        errors[method, *changes.items(), length] = error(model, build(model, method, **changes), length)
    sizes = sorted(map(abs, errors.values()))
    worst = sorted(errors.items(), key=lambda item: -abs(item[1]))[:1]
    median = statistics.median(sizes)
    sys.stdout.write(f"\n{model_type} {chunk}: n {len(sizes)}, median {median:.2%}, worst {sizes[-1]:.2%}\n")
    sys.stdout.writelines(f"  {size:+.2%} {case}\n" for case, size in worst)
    assert median <= 0.01
    assert sizes[-1] <= TOLERANCE, worst
