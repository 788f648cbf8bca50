"""Our DoRA equals peft's, at the price of LoRA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.variants import DoraLinearVariant
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from autopeft.engine.factored_dora import FactoredDora, use_factored_norms, weight_times

IN, OUT, TOKENS = 96, 64, 24


def adapted(base: torch.nn.Module, r: int = 8, dtype: torch.dtype = torch.float32, **settings_: Any) -> Any:
    """Returns peft's DoRA on one layer, some way into a training: B is not zero, the magnitude has moved."""
    config = LoraConfig(target_modules=["0"], r=r, use_dora=True, **settings_)
    model = get_peft_model(torch.nn.Sequential(base), config, autocast_adapter_dtype=False).train()
    layer = layer_of(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            module.to(dtype)
        layer.lora_B["default"].weight.normal_(std=0.05, generator=generator)
        magnitude = layer.lora_magnitude_vector["default"].weight
        magnitude.mul_(1 + 0.1 * torch.randn(magnitude.shape, generator=generator).to(dtype))
    return model


def layer_of(model: Any) -> Any:
    return model.base_model.model[0]


def linear(dtype: torch.dtype = torch.float32, *, bias: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(IN, OUT, bias=bias).to(dtype)


def conv1d() -> torch.nn.Module:
    torch.manual_seed(0)
    return Conv1D(OUT, IN)


def nf4() -> torch.nn.Module:
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    layer = Linear4bit(IN, OUT, bias=True, compute_dtype=torch.float32, quant_type="nf4")
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")


def int8() -> torch.nn.Module:
    from bitsandbytes.nn import Linear8bitLt

    torch.manual_seed(0)
    return Linear8bitLt(IN, OUT, bias=True, has_fp16_weights=False).to("cpu")


def results(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns output and gradients of one forward and backward."""
    x = x.clone().requires_grad_()
    torch.manual_seed(3)  # of the dropout
    output = model(x)
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(4)).to(output.dtype)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(output, [x, *trained.values()], seed)
    return {"output": output.detach(), **dict(zip(["x", *trained], gradients, strict=True))}


def worst_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    assert len(ours) == 5  # output, x, A, B, magnitude
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, TOKENS, IN, generator=torch.Generator().manual_seed(2)).to(dtype)


BASES = {
    "plain": linear,
    "with a bias": lambda: linear(bias=True),
    "transposed": conv1d,
    "nf4": nf4,
    "int8": int8,
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", BASES)
def test_outputs_and_gradients_equal_pefts(base: str, dropout: float) -> None:
    settings_ = {"fan_in_fan_out": True} if base == "transposed" else {}
    theirs = adapted(BASES[base](), lora_dropout=dropout, **settings_)
    ours = copy.deepcopy(theirs)
    assert use_factored_norms(ours) == 1
    assert worst_difference(results(ours, inputs()), results(theirs, inputs())) < 1e-5


@given(r=st.integers(1, 32), scaling=st.floats(0.01, 16), spread=st.floats(0.0, 2.0), rslora=st.booleans())
@settings(max_examples=25, deadline=None)
def test_outputs_and_gradients_equal_pefts_at_any_rank_and_scale(
    r: int, scaling: float, spread: float, rslora: bool
) -> None:
    theirs = adapted(linear(), r=r, lora_alpha=scaling * r, use_rslora=rslora)
    with torch.no_grad():
        layer_of(theirs).lora_B["default"].weight.mul_(spread / 0.05)
    ours = copy.deepcopy(theirs)
    use_factored_norms(ours)
    assert worst_difference(results(ours, inputs()), results(theirs, inputs())) < 1e-5


@pytest.mark.parametrize("adapter", [torch.bfloat16, torch.float32])
def test_in_bfloat16_it_is_no_further_from_the_exact_result_than_peft(adapter: torch.dtype) -> None:
    theirs = adapted(linear(torch.bfloat16), dtype=adapter)
    ours = copy.deepcopy(theirs)
    use_factored_norms(ours)
    exact = results(copy.deepcopy(theirs).double(), inputs(torch.bfloat16).double())
    narrow = inputs(torch.bfloat16)
    error = worst_difference(_double(results(ours, narrow)), exact)
    assert error < 0.012  # 3 units of bfloat16's last place
    assert error <= worst_difference(_double(results(theirs, narrow)), exact) + 1e-3


def _double(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in values.items()}


class Largest(TorchDispatchMode):
    """Remembers how many entries the largest new tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in known:
                self.entries = max(self.entries, value.numel())
        return result


def largest_tensor(model: Any) -> int:
    results(model, inputs())  # what is computed once
    with Largest() as largest:
        model(torch.randn(4, IN, requires_grad=True)).sum().backward()
    return largest.entries


def test_nothing_of_the_weights_size_is_made() -> None:
    theirs = adapted(linear())
    ours = copy.deepcopy(theirs)
    use_factored_norms(ours)
    assert largest_tensor(theirs) >= IN * OUT
    assert largest_tensor(ours) < IN * OUT / 4


def test_int8_rows_are_widened_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = int8()
    a = torch.randn(4, IN)
    whole = weight_times(layer, a)
    monkeypatch.setattr("autopeft.engine.factored_dora.CHUNK_ENTRIES", 5 * IN)
    torch.testing.assert_close(weight_times(layer, a), whole, rtol=1e-6, atol=1e-6)


def test_merging_gives_the_same_outputs_and_a_saved_adapter_is_an_ordinary_one(tmp_path: Any) -> None:
    model = adapted(linear(bias=True))
    use_factored_norms(model)
    expected = model.eval()(inputs())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(torch.nn.Sequential(linear(bias=True)), str(tmp_path)).eval()
    assert type(layer_of(loaded).lora_variant["default"]) is DoraLinearVariant
    torch.testing.assert_close(loaded(inputs()), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(inputs()), expected, rtol=1e-4, atol=1e-4)


def test_plain_lora_is_left_alone() -> None:
    model = get_peft_model(torch.nn.Sequential(linear()), LoraConfig(target_modules=["0"], r=4))
    assert use_factored_norms(model) == 0
    assert not any(isinstance(each, FactoredDora) for each in layer_of(model).lora_variant.values())
