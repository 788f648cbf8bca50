"""Merging against peft's own merge, weight by weight."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.cli import main

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "rslora with patterns": {"r": 4, "use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    "dora": {"r": 4, "use_dora": True},
    "dora from pissa": {"r": 4, "use_dora": True, "init_lora_weights": "pissa"},
    "pissa": {"r": 4, "init_lora_weights": "pissa"},
    "olora": {"r": 4, "init_lora_weights": "olora"},
    "miss": {"kind": "MissConfig", "r": 8},
    "miss bat": {"kind": "MissConfig", "r": 8, "init_weights": "bat"},
    "a whole weight": {"r": 4, "modules_to_save": ["lm_head"]},
}

Maker = Callable[..., Path]


def merged_by_peft(base: Path, adapter: Path) -> dict[str, Any]:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
        loaded = peft.PeftModel.from_pretrained(model, str(adapter))
    return loaded.merge_and_unload().state_dict()  # type: ignore[no-any-return]


def assert_merged(base: Path, adapter: Path, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    expected = merged_by_peft(base, adapter)
    found = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", KINDS)
def test_the_merged_weights_are_pefts(name: str, make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(**KINDS[name])
    merged = autopeft.merge(adapter, base=base_folder, output=tmp_path / "out")
    assert merged.layers == 6
    assert_merged(base_folder, adapter, tmp_path / "out")


def test_adalora_is_merged_as_peft_merges_it(adalora: Path, base_folder: Path, tmp_path: Path) -> None:
    autopeft.merge(adalora, base=base_folder, output=tmp_path / "out")
    assert_merged(base_folder, adalora, tmp_path / "out")


def test_layers_that_are_stored_transposed_are_merged_too(make_adapter: Maker, tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32)).save_pretrained(base)
    for settings in ({"r": 4}, {"r": 4, "use_dora": True}, {"r": 4, "init_lora_weights": "pissa"}):
        adapter = make_adapter(base=base, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, **settings)
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        autopeft.merge(adapter, base=base, output=output)
        assert_merged(base, adapter, output)


def test_small_shards_hold_the_same_model(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(r=4)
    merged = autopeft.merge(adapter, base=base_folder, output=tmp_path / "out", max_shard_bytes=100_000)
    assert merged.files > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == merged.files
    assert_merged(base_folder, adapter, tmp_path / "out")
    again = autopeft.merge(adapter, base=tmp_path / "out", output=tmp_path / "again")
    assert again.files == 1, "a base in several files is read as well"


def test_the_dtype_is_the_bases_or_what_is_asked(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    adapter = make_adapter(r=4)
    assert autopeft.merge(adapter, base=base_folder, output=tmp_path / "same").dtypes == ("float32",)
    assert autopeft.merge(adapter, base=base_folder, output=tmp_path / "half", dtype="bfloat16").dtypes == ("bfloat16",)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    whole, half = (load_file(tmp_path / name / "model.safetensors") for name in ("same", "half"))
    assert all(torch.equal(half[name], tensor.to(torch.bfloat16)) for name, tensor in whole.items())


def test_a_tokenizer_is_copied_where_there_is_one(
    make_adapter: Maker, base_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    adapter = make_adapter(r=4)
    assert not autopeft.merge(adapter, base=base_folder, output=tmp_path / "without").has_tokenizer
    assert autopeft.merge(adapter, base=tiny_model, output=tmp_path / "with").has_tokenizer
    assert AutoTokenizer.from_pretrained(tmp_path / "with")("1 + 1")["input_ids"]


def test_a_head_that_the_base_lacks_is_refused(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(modules_to_save=["lm_head"])
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name.replace("lm_head", "score"): tensor for name, tensor in tensors.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(autopeft.AutoPeftError, match=r"holds score\.weight"):
        autopeft.merge(adapter, base=base_folder, output=tmp_path / "out")


def test_an_already_quantized_base_is_refused(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(autopeft.AutoPeftError, match="are quantized already"):
        autopeft.merge(make_adapter(), base=base, output=tmp_path / "out")


def test_memory_does_not_grow_with_the_model(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    """A tensor is held a few times over, never the model: bytes that torch allocates, by its own profiler.

    It counts the mapping of the base's file too, which takes no memory of its own.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(base_folder, num_hidden_layers=24)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "deep")
    adapter = make_adapter(base=tmp_path / "deep", r=4)
    whole = sum(path.stat().st_size for path in (tmp_path / "deep").glob("*.safetensors"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        autopeft.merge(adapter, base=tmp_path / "deep", output=tmp_path / "out")
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert whole < peak < whole * 1.2


def test_the_command_says_what_it_wrote(
    make_adapter: Maker, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["merge", str(make_adapter()), "--base", str(base_folder), "-o", str(tmp_path / "out")])
    assert stop.value.code == 0
    assert "LoRA merged into 6 layers" in capsys.readouterr().out
