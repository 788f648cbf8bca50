"""Gives a model without weights the modules and the packed parameters that bitsandbytes would give it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState

from autopeft.engine.base import quantization_config
from autopeft.specs import Candidate

NF4_BLOCK = 64
SCALE_BLOCK = 256


def quantize_modules(model: Any, candidate: Candidate) -> None:
    """Replaces what the installed transformers would replace by bitsandbytes modules, and packs their weights."""
    if candidate.quantization == "none":
        return
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    config = quantization_config(candidate)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), quantization_config=config)
    model.is_quantized = True
    model.is_loaded_in_4bit = candidate.quantization == "nf4"
    model.is_loaded_in_8bit = candidate.quantization == "int8"
    model.config.quantization_config = config
    pack_weights(model, candidate, "meta")


def pack_weights(model: Any, candidate: Candidate, device: str) -> None:
    """Gives every bitsandbytes module a packed parameter with its scales, as after quantization."""
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            _pack_nf4(module, candidate, device)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            _pack_int8(module, device)


def scale_tensors(model: Any) -> list[torch.Tensor]:
    """Returns the tensors of all quantization states, which are neither parameters nor buffers."""
    found: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            parts = [state, state.state2] if state.nested else [state]
            found += [tensor for part in parts for tensor in (part.absmax, part.code)]
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            found.append(module.state.SCB)
    return found


@contextlib.contextmanager
def dequantizing_stand_in() -> Iterator[None]:
    """Lets peft's DoRA dequantize our packed parameters, whose class it does not know, also on the meta device."""
    from peft.tuners.lora import dora

    with mock.patch.object(dora, "dequantize_module_weight", _dequantized(dora.dequantize_module_weight)):
        yield


def _dequantized(original: Any) -> Any:
    def dequantize(module: Any) -> Any:
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            if module.weight.device.type == "meta":
                return torch.empty(module.out_features, module.in_features, device="meta", dtype=module.compute_dtype)
            return bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            return torch.empty(module.out_features, module.in_features, device=module.weight.device)
        return original(module)

    return dequantize


def _pack_nf4(module: Any, candidate: Candidate, device: str) -> None:
    from autopeft.engine.base import torch_dtype

    nested = candidate.double_quantization
    count = module.out_features * module.in_features
    blocks = -(-count // NF4_BLOCK)
    inner = QuantState(
        absmax=torch.empty(-(-blocks // SCALE_BLOCK), device=device),
        code=torch.empty(SCALE_BLOCK, device=device),
        blocksize=SCALE_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if nested else torch.float32, device=device),
        shape=torch.Size((module.out_features, module.in_features)),
        code=torch.empty(16, device=device),
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=torch_dtype(candidate.dtype),
        offset=torch.empty((), device=device) if nested else None,
        state2=inner if nested else None,
    )
    packed = torch.empty((-(-count // 2), 1), dtype=torch.uint8, device=device)
    weight: Any = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state, weight.bnb_quantized, weight.compress_statistics = state, True, nested
    weight.quant_type, weight.blocksize, weight.quant_storage = "nf4", NF4_BLOCK, torch.uint8
    module.weight, module.quant_state = weight, state


def _pack_int8(module: Any, device: str) -> None:
    packed = torch.empty(module.out_features, module.in_features, dtype=torch.int8, device=device)
    weight: Any = torch.nn.Parameter(packed, requires_grad=False)
    weight.CB = weight.SCB = None
    weight.has_fp16_weights = False
    module.weight = weight
    module.state.CB = weight.data
    module.state.SCB = torch.empty(module.out_features, device=device)
    # Columns of outliers are found by value, which a fake tensor lacks; they are a thousandth of all columns.
    module.state.threshold = 0.0
