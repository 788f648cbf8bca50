"""The lines that load the winner, run for real on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autopeft.report import RunRecord
from autopeft.report.recipe import load_snippet

pytestmark = pytest.mark.slow


def tiny_model(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)


def tiny_adapter(model: Path, folder: Path) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.nn.init.constant_(adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B.default.weight, 0.25)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_lines_load_the_adapter_on_its_base(finished: RunRecord, tmp_path: Path, quantization: Any) -> None:
    import torch

    tiny_model(tmp_path / "model")
    saved = tiny_adapter(tmp_path / "model", tmp_path / "run" / "adapter")
    assert finished.verdict is not None
    winner = replace(finished.verdict.winner, quantization=quantization, dtype="bfloat16", target_modules=("q_proj",))
    plan = replace(finished.plan, model=replace(finished.plan.model, path=str(tmp_path / "model")))
    record = replace(
        finished, plan=plan, verdict=replace(finished.verdict, winner=winner), folder=str(tmp_path / "run")
    )
    names: dict[str, Any] = {}
    exec(compile(load_snippet(record), "snippet", "exec"), names)
    tokens = torch.tensor([[0, 1, 2]])
    expected, found = saved(tokens).logits, names["model"](tokens).logits
    layer = names["model"].base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer.base_layer).__name__ == {"none": "Linear", "nf4": "Linear4bit"}[quantization]
    assert torch.allclose(found, expected, atol=0.0 if quantization == "none" else 0.2)
    assert names["tokenizer"]("a b")["input_ids"] == [0, 1]
