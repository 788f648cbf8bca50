"""EVA's start comes from training rows: the same for a seed, another for another, and LoRA in everything else."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autopeft.engine.adapters import inject
from autopeft.engine.base import load_base
from autopeft.errors import InvalidInputError
from autopeft.methods import MethodContext, get_method
from autopeft.specs import Candidate
from autopeft.testing import tiny_llama

EVA = Candidate(method="eva", r=4, lora_alpha=4.0, target_modules=("q_proj", "down_proj"), dtype="float32")


def batch(seed: int, supervised: int = 12) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 260, (2, 12), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[:, supervised:] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def started(folder: Path, batches: list[dict[str, torch.Tensor]], method: str = "eva"):
    candidate = replace(EVA, method=method)
    torch.manual_seed(0)
    model = inject(load_base(tiny_llama(folder), candidate, "cpu"), candidate, 10)
    weights = SimpleNamespace()
    context = MethodContext(candidate=candidate, steps=10, seed=0, weights=weights, batches=lambda: iter(batches))
    get_method(method).prepare(model, context)
    return {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}, model


def test_the_start_follows_from_the_rows(tmp_path: Path) -> None:
    one, _ = started(tmp_path, [batch(1), batch(2)])
    again, _ = started(tmp_path, [batch(1), batch(2)])
    other, _ = started(tmp_path, [batch(3), batch(4)])
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_its_rows_of_a_are_orthonormal_and_ranks_and_scaling_are_loras(tmp_path: Path) -> None:
    eva, model = started(tmp_path, [batch(1), batch(2)])
    lora, plain = started(tmp_path, [], "lora")
    assert {name: each.shape for name, each in eva.items()} == {name: each.shape for name, each in lora.items()}
    for name, each in eva.items():
        if "lora_A" in name:
            torch.testing.assert_close(each @ each.T, torch.eye(4), rtol=0, atol=1e-4)
    scalings = [
        [layer.scaling["default"] for layer in built.modules() if hasattr(layer, "lora_A")] for built in (model, plain)
    ]
    assert scalings[0] == scalings[1] == [1.0] * 4


def test_batches_with_fewer_supervised_tokens_than_ranks_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"EVA finds 4 directions .* the first 1 batches have fewer"):
        started(tmp_path, [batch(1, supervised=1)])
