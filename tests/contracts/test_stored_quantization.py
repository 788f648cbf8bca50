"""Adapters train over a checkpoint that bitsandbytes quantized before: saved, profiled, loaded, stepped."""

from pathlib import Path

import pytest
import torch

from autopeft.engine.adapters import inject
from autopeft.engine.base import load_base
from autopeft.profiling.model import load_model
from autopeft.specs import Candidate
from autopeft.testing import tiny_llama

TOKENS = torch.arange(24).reshape(2, 12)


def candidate(method: str) -> Candidate:
    options = {"init_r": 6} if method == "adalora" else {}
    return Candidate(
        method=method,
        r=4,
        lora_alpha=4.0,
        target_modules=("q_proj", "down_proj"),
        quantization="nf4",
        double_quantization=True,
        dtype="bfloat16",
        options=options,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain, folder = tiny_llama(tmp_path_factory.mktemp("plain")), tmp_path_factory.mktemp("stored")
    load_base(plain, candidate("lora"), "cpu").save_pretrained(folder)
    return folder


def test_a_saved_nf4_checkpoint_is_recognized_and_counted_as_before(stored: Path) -> None:
    spec = load_model(str(stored))
    assert spec.stored_format is not None
    assert (spec.stored_format.name, spec.stored_format.double_quantization) == ("bitsandbytes-nf4", True)
    assert spec.parameter_count_source == "config"


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "adalora"])
def test_the_methods_that_are_said_to_train_over_it_do(stored: Path, method: str) -> None:
    wanted = candidate(method)
    spec = load_model(str(stored))
    assert spec.stored_format is not None
    base = load_base(stored, wanted, "cpu")
    layers = [module for module in base.modules() if type(module).__name__ == "Linear4bit"]
    assert layers
    assert all(layer.compute_dtype == torch.bfloat16 for layer in layers)
    model = inject(base, wanted, 100).train()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
