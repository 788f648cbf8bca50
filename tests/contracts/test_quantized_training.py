"""A quantized base stays trainable after it was scored."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autopeft.engine.adapters import inject
from autopeft.engine.base import keep_differentiable, load_base
from autopeft.specs import Candidate
from autopeft.testing import tiny_llama

CANDIDATE = Candidate(
    method="lora",
    r=4,
    lora_alpha=4.0,
    target_modules=("q_proj",),
    quantization="nf4",
    double_quantization=True,
    dtype="bfloat16",
)
TOKENS = torch.arange(24).reshape(2, 12)


def gradients(folder: Path, candidate: Candidate, *, scored_first: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    base = load_base(folder, candidate, "cpu")
    keep_differentiable(base)
    model = inject(base, candidate, 1)
    if scored_first:
        model.eval()
        with torch.inference_mode():
            model(input_ids=TOKENS)
    model.train()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("double_quantization", [True, False])
def test_gradients_pass_a_4bit_base_that_was_scored_before(tmp_path: Path, double_quantization: bool) -> None:
    folder = tiny_llama(tmp_path)
    candidate = replace(CANDIDATE, double_quantization=double_quantization)
    fresh = gradients(folder, candidate, scored_first=False)
    scored = gradients(folder, candidate, scored_first=True)
    assert all(gradient is not None for gradient in scored)
    assert any(gradient.abs().sum() > 0 for gradient in fresh)
    for one, other in zip(fresh, scored, strict=True):
        torch.testing.assert_close(one, other)
