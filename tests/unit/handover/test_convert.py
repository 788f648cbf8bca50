"""Conversions against what peft computes with the saved adapter: logits on a tiny model, float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.cli import main
from autopeft.errors import AutoPeftError, InvalidInputError, UnknownNameError
from autopeft.handover.serve_card import ServeCard

TOLERANCE = 1e-5
"""Relative difference of the logits that rounding in float32 may make; what docs/serving.md promises."""

EXACT: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "rslora with an odd scale": {"r": 5, "lora_alpha": 7, "use_rslora": True},
    "rank pattern": {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.down_proj": 2}},
    "alpha pattern": {"r": 4, "lora_alpha": 8, "alpha_pattern": {"v_proj": 3, "down_proj": 16}},
    "both patterns, rslora": {
        "r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 7}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True
    },
    "pissa": {"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa"},
    "pissa, rslora": {"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa", "use_rslora": True},
    "olora": {"r": 4, "lora_alpha": 8, "init_lora_weights": "olora"},
    "orthogonal": {"r": 4, "lora_alpha": 8, "init_lora_weights": "orthogonal"},
    "miss": {"kind": "MissConfig", "r": 8},
    "miss that does not divide": {"kind": "MissConfig", "r": 7},
    "miss mini": {"kind": "MissConfig", "r": 8, "init_weights": "mini", "mini_r": 4},
}  # fmt: skip

Maker = Callable[..., Path]


@pytest.mark.parametrize("name", EXACT)
def test_a_conversion_computes_what_peft_computes(
    name: str, make_adapter: Maker, base_folder: Path, tmp_path: Path
) -> None:
    card = autopeft.convert(
        make_adapter(**EXACT[name]), base=base_folder, server="vllm", output=tmp_path / "out", check=True
    )
    assert card.logits is not None
    assert card.logits.relative < TOLERANCE
    assert card.logits.of_effect < 1e-3, "the adapter changes the logits by much more than rounding"
    assert card.conversion.loss is None
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["use_rslora"], config["use_dora"]) == ("LORA", False, False)
    assert "rank_pattern" not in config


def test_adalora_with_layers_of_rank_zero_to_five_is_converted_exactly(
    adalora: Path, base_folder: Path, tmp_path: Path
) -> None:
    card = autopeft.convert(adalora, base=base_folder, server="sglang", output=tmp_path / "out", check=True)
    assert card.conversion.ranks == (0, 5)
    assert card.conversion.r == 5
    assert card.logits is not None
    assert card.logits.relative < TOLERANCE
    assert card.logits.of_effect < 1e-3


def test_every_layer_has_the_same_rank_afterwards(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "out"
    autopeft.convert(make_adapter(**EXACT["rank pattern"]), base=base_folder, server="vllm", output=out)
    tensors = load_file(out / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {7}
    assert {tensor.shape[1] for name, tensor in tensors.items() if "lora_B" in name} == {7}


def test_a_plain_lora_keeps_its_stored_numbers(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    adapter = make_adapter(r=4, lora_alpha=8, dtype="bfloat16")
    autopeft.convert(adapter, base=base_folder, server="vllm", output=tmp_path / "out")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )


def test_the_result_names_only_layers_that_were_adapted(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(r=4, layers_to_transform=[1])
    autopeft.convert(adapter, base=base_folder, server="vllm", output=tmp_path / "out")
    names = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    assert "model.layers.1.self_attn.q_proj" in names
    assert len(names) == 3


def test_dora_becomes_a_merged_model_that_computes_the_same(
    make_adapter: Maker, base_folder: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(r=4, use_dora=True)
    card = autopeft.convert(adapter, base=base_folder, server="llamacpp", output=tmp_path / "out", check=True)
    assert card.conversion.result == "model"
    assert card.logits is not None
    assert card.logits.relative < TOLERANCE
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert any("convert_hf_to_gguf.py" in command for command in card.commands)


def test_more_rank_loses_less_of_dora_and_the_full_rank_nothing(
    make_adapter: Maker, base_folder: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(r=4, use_dora=True)
    cards = [
        autopeft.convert(adapter, base=base_folder, server="vllm", output=tmp_path / str(rank), rank=rank)
        for rank in (2, 8, 32)
    ]
    errors = [card.conversion.loss.update_error for card in cards if card.conversion.loss]
    effects = [card.logits.of_effect for card in cards if card.logits]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 3
    assert effects == sorted(effects, reverse=True)
    assert cards[-1].conversion.loss is not None
    assert 0 < errors[0] < 1
    # v_proj is 32 x 64: at rank 32 its update is whole again, so another layer is the worst.
    assert "v_proj" not in cards[-1].conversion.loss.worst_layer


def test_the_stated_error_is_that_of_the_written_files(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    """Against peft's own merged weights: ||merged - base - s B A|| / ||merged - base||, over all layers."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    def merged(adapter: Path) -> dict[str, torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
        return peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()

    adapter = make_adapter(r=4, use_dora=True)
    card = autopeft.convert(adapter, base=base_folder, server="vllm", output=tmp_path / "out", rank=6, check=False)
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).state_dict()
    exact, found = merged(adapter), merged(tmp_path / "out")
    lost = torch.stack([(exact[name] - found[name]).norm() for name in base]).norm()
    whole = torch.stack([(exact[name] - base[name]).norm() for name in base]).norm()
    assert card.conversion.loss is not None
    assert card.conversion.loss.update_error == pytest.approx(float(lost / whole), rel=1e-3)


def test_the_card_holds_the_exact_commands(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(r=20)

    def convert(server: str) -> ServeCard:
        return autopeft.convert(adapter, base=base_folder, server=server, output=tmp_path / server)

    vllm = convert("vllm").commands
    assert vllm == (
        f"vllm serve {base_folder} --enable-lora --max-lora-rank 32 --lora-modules tuned={tmp_path / 'vllm'}",
    )
    assert "--max-lora-rank 20" in convert("sglang").commands[0]
    assert "--lora " in convert("llamacpp").commands[-1]
    assert "ollama create tuned" in " ".join(convert("ollama").commands)
    assert (tmp_path / "ollama" / "Modelfile").read_text() == "FROM ./base.gguf\nADAPTER ./adapter.gguf\n"
    card = (tmp_path / "vllm" / "SERVE.md").read_text()
    assert vllm[0] in card
    assert json.loads((tmp_path / "vllm" / "serve.json").read_text())["commands"] == list(vllm)


def converting(adapter: Path, base: Path, output: Path, **settings: Any) -> str:
    with pytest.raises(AutoPeftError) as caught:
        autopeft.convert(adapter, base=base, server=settings.pop("server", "vllm"), output=output, **settings)
    return str(caught.value)


def test_what_cannot_be_converted_is_refused_with_what_to_do(
    make_adapter: Maker, base_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert "is no adapter folder" in converting(tmp_path / "empty", base_folder, out)
    assert "peft_type 'IA3'" in converting(
        make_adapter("IA3Config", feedforward_modules=["down_proj"]), base_folder, out
    )
    assert "path_initial_model_for_weight_conversion" in converting(
        make_adapter(init_lora_weights="pissa_niter_4"), base_folder, out
    )
    assert "autopeft merge" in converting(make_adapter(modules_to_save=["lm_head"]), base_folder, out)
    assert "lora_bias" in converting(edited(make_adapter(), {"lora_bias": True}), base_folder, out)
    assert "leave it out" in converting(make_adapter(r=4), base_folder, out, rank=2)
    assert "takes at most 512" in converting(make_adapter(r=4), base_folder, out, rank=600)
    assert "above 32" in converting(make_adapter(use_dora=True), base_folder, out, rank=33)
    assert "autopeft merge" in converting(make_adapter(), base_folder, out, server="merged")
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"], "a failed conversion leaves nothing behind"


def edited(adapter: Path, settings: dict[str, Any]) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return adapter


def test_an_unknown_server_is_answered_with_the_known_ones(make_adapter: Maker, base_folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="vllm"):
        autopeft.convert(make_adapter(), base=base_folder, server="vlm", output="nowhere")


def test_another_base_is_refused_with_the_layer_and_both_shapes(
    make_adapter: Maker, base_folder: Path, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(base_folder, hidden_size=32)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    text = converting(make_adapter(), tmp_path / "other", tmp_path / "out")
    assert "down_proj" in text or "q_proj" in text
    assert "64" in text
    assert str(base_folder) in text, "the base that adapter_config.json names"


def test_an_output_that_exists_is_left_alone(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "exists already" in converting(make_adapter(), base_folder, tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_broken_adapter_file_is_named(make_adapter: Maker, base_folder: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(make_adapter(), tmp_path / "adapter"))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InvalidInputError, match=r"adapter_model\.safetensors is no whole safetensors file"):
        autopeft.convert(adapter, base=base_folder, server="vllm", output=tmp_path / "out")


def test_the_command_prints_what_was_done_and_how_to_serve_it(
    make_adapter: Maker, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(make_adapter(**EXACT["rslora"])), "--base", str(base_folder)]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--for", "sglang", "-o", str(tmp_path / "out")])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "rsLoRA (6 layers) -> plain LoRA of rank 4, alpha 16" in printed
    assert "exact" in printed
    assert "python -m sglang.launch_server" in printed
