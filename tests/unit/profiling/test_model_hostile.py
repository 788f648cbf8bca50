"""A config.json that is wrong, absurd or malicious: one clear error that names file and key, at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import ModelError
from autopeft.memory.closed_form import covers
from autopeft.memory.pricing import price_memory
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model, resolve_target_modules
from autopeft.specs import Candidate, ModelSpec

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 80,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "sliding_window": None,
        "layer_types": ["full_attention", "full_attention"],
        "torch_dtype": "float16",
        "rope_scaling": None,
        "hidden_act": "silu",
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 80, "n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.1},
    "bert": {
        "model_type": "bert",
        "vocab_size": 80,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}
VALUES = (None, "x", "", -1, 0, 1, 3, 10**9, 10**12, 10**400, 1.5, True, [], [1], {}, {"a": 1}, "x" * 10_000)
CASES = [(name, key) for name, config in CONFIGS.items() for key in config if key != "model_type"]
GPU = load_hardware("rtx-4090").device


def write(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def profiled(folder: Path) -> ModelSpec | str:
    try:
        return load_model(str(folder))
    except ModelError as error:
        return str(error)


@pytest.mark.parametrize(("name", "key"), CASES)
def test_any_value_of_a_key_gives_a_model_that_can_be_priced_or_an_error_with_file_and_key(
    tmp_path: Path, name: str, key: str
) -> None:
    begin = time.process_time()
    for value in VALUES:
        read = profiled(write(tmp_path, CONFIGS[name] | {key: value}))
        if isinstance(read, str):
            assert "config.json" in read
            assert key in read or "head" in read
            assert len(read) < 1_000
        elif covers(read) is None:  # others are traced
            targets = resolve_target_modules(read, ("attention",))
            wanted = Candidate(method="lora", r=8, lora_alpha=8.0, target_modules=targets, trainer="transformers")
            assert price_memory(wanted, read, GPU, sequence_length=16).required_bytes > 0
    assert time.process_time() - begin < 20


@pytest.mark.parametrize("name", CONFIGS)
def test_width_and_depth_must_be_stated(tmp_path: Path, name: str) -> None:
    for key in ("hidden_size", "num_hidden_layers", "n_embd", "n_layer"):
        if key in CONFIGS[name]:
            content = {other: value for other, value in CONFIGS[name].items() if other != key}
            with pytest.raises(ModelError, match=r"config.json states no (hidden_size|num_hidden_layers); without it"):
                load_model(str(write(tmp_path, content)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama", "hidden_size": NaN}', r"config.json holds NaN, which is no number"),
        ('{"model_type": "llama", "rope_theta": Infinity}', r"config.json holds Infinity, which is no number"),
        ("[" * 100_000, r"config.json is nested too deeply"),
        ('{"a": ' * 100_000, r"config.json is nested too deeply"),
        (
            '{"model_type": "llama", "hidden_size": 1' + "0" * 5000 + "}",
            r"config.json holds a number that cannot be read",
        ),
        (json.dumps(CONFIGS["llama"] | {"text_config": 3, "model_type": "wrapper"}), r"text_config must be an object"),
        (json.dumps(CONFIGS["llama"] | {"num_key_value_heads": 3}), r"num_attention_heads 4 is no multiple of num_key"),
        (json.dumps({"model_type": ["llama"]}), r"config.json states no model_type"),
    ],
    ids=["nan", "infinity", "deep list", "deep object", "long number", "text_config", "groups", "type"],
)
def test_what_is_no_sound_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(str(write(tmp_path, text)))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)  # a sparse file: no byte of it is on the disk
    with pytest.raises(ModelError, match=r"config.json has 1,099,511,627,776 bytes; such a file has at most"):
        load_model(str(tmp_path))


def test_code_of_a_repository_that_transformers_needs_not_is_left_alone_and_noted(tmp_path: Path) -> None:
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}}
    spec = load_model(str(write(tmp_path, CONFIGS["llama"] | own)))
    assert spec.notes == (
        "config.json names Python code of the repository too (auto_map: modeling_own.OwnModel): it is not run, "
        "transformers' own class for 'llama' takes its place",
    )
