"""Gives a model without weights the modules and the packed parameters that bitsandbytes would give it."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from autopeft.engine.base import quantization_config, torch_dtype
from autopeft.memory._static import NF4_BLOCK, SCALE_BLOCK
from autopeft.memory.tracing.fakes import as_parameter
from autopeft.specs.candidate import Candidate


def quantize_modules(model: Any, candidate: Candidate) -> tuple[str, ...]:
    """Replaces what the installed transformers would replace by bitsandbytes modules, and packs their weights.

    Returns:
        One sentence for each kind of weight that the installed stack leaves in 16 bits although it is a matrix.
    """
    if candidate.quantization == "none":
        return ()
    config = quantization_config(candidate)
    _replace_linear_layers(model, config)
    model.is_quantized = True
    model.is_loaded_in_4bit = candidate.quantization == "nf4"
    model.is_loaded_in_8bit = candidate.quantization == "int8"
    model.config.quantization_config = config
    pack_weights(model, candidate, lambda tensor: tensor)
    return _left_in_16_bits(model)


def _replace_linear_layers(model: Any, config: Any) -> None:
    from transformers.integrations import replace_with_bnb_linear

    try:
        from transformers.quantizers.base import get_keys_to_not_convert
    except ImportError:  # before transformers 5
        from transformers.integrations import get_keys_to_not_convert
    kept = get_keys_to_not_convert(model)
    names = inspect.signature(replace_with_bnb_linear).parameters
    replace_with_bnb_linear(model, **{"modules_to_not_convert": kept} if "modules_to_not_convert" in names else {},
                            quantization_config=config)  # fmt: skip


def _left_in_16_bits(model: Any) -> tuple[str, ...]:
    """In transformers 5 a mixture's experts are one tensor of three dimensions, which bitsandbytes passes by."""
    experts = [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
    if not experts:
        return ()
    last = sorted({name.rpartition(".")[2] for name in experts})
    count = sum(parameter.numel() for _, parameter in model.named_parameters() if parameter.dim() == 3)
    return (
        f"the installed stack leaves {count} weights of experts ({', '.join(last)}) in 16 bits: it quantizes "
        "two-dimensional layers only",
    )


Placed = Callable[[torch.Tensor], torch.Tensor]
"""Turns a tensor on the meta device into what stands for it."""


def pack_weights(model: Any, candidate: Candidate, placed: Placed) -> None:
    """Gives every bitsandbytes module a packed parameter with its scales, as after quantization."""
    if candidate.quantization == "none":
        return
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            _pack_nf4(module, candidate, placed)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            _pack_int8(module, placed)


def scale_tensors(model: Any, candidate: Candidate) -> list[torch.Tensor]:
    """Returns the tensors of all quantization states, which are neither parameters nor buffers."""
    if candidate.quantization == "none":
        return []
    import bitsandbytes

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
def dequantizing_stand_in(candidate: Candidate) -> Iterator[None]:
    """Lets peft's DoRA dequantize our packed parameters, whose class it does not know, also on the meta device."""
    if candidate.quantization == "none":
        yield
        return
    from peft.tuners.lora import dora

    with mock.patch.object(dora, "dequantize_module_weight", _dequantized(dora.dequantize_module_weight)):
        yield


@contextlib.contextmanager
def inputs_kept(wanted: bool) -> Iterator[None]:
    """Lets frozen 4-bit layers keep their inputs, as plain attributes of the graph, which older versions did."""
    if not wanted:
        yield
        return
    from bitsandbytes.autograd._functions import MatMul4Bit

    forward = MatMul4Bit.forward

    def keeping(ctx: Any, inputs: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(ctx, inputs, weight, *args, **kwargs)
        if any(ctx.needs_input_grad[:2]):
            ctx.kept_inputs = inputs
        return output

    with mock.patch.object(MatMul4Bit, "forward", staticmethod(keeping)):
        yield


def _dequantized(original: Any) -> Any:
    import bitsandbytes

    def dequantize(module: Any) -> Any:
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            if module.weight.device.type == "meta":
                return torch.empty(module.out_features, module.in_features, device="meta", dtype=module.compute_dtype)
            return bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            return torch.empty(module.out_features, module.in_features, device=module.weight.device)
        return original(module)

    return dequantize


def _pack_nf4(module: Any, candidate: Candidate, placed: Placed) -> None:
    from bitsandbytes.functional import QuantState

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return placed(torch.empty(shape, dtype=dtype, device="meta"))

    nested = candidate.double_quantization
    count = module.out_features * module.in_features
    blocks = -(-count // NF4_BLOCK)
    inner = QuantState(
        absmax=empty(-(-blocks // SCALE_BLOCK)),
        code=empty(SCALE_BLOCK),
        blocksize=SCALE_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=torch.Size((module.out_features, module.in_features)),
        code=empty(16),
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=torch_dtype(candidate.dtype),
        offset=empty() if nested else None,
        state2=inner if nested else None,
    )
    weight: Any = as_parameter(empty(-(-count // 2), 1, dtype=torch.uint8))
    weight.quant_state, weight.bnb_quantized, weight.compress_statistics = state, True, nested
    weight.quant_type, weight.blocksize, weight.quant_storage = "nf4", NF4_BLOCK, torch.uint8
    _pose_as(weight, "Params4bit")
    module.weight, module.quant_state = weight, state


def _pose_as(weight: Any, name: str) -> None:
    """Gives a parameter a class of its own with the name by which peft knows bitsandbytes' parameters."""
    base: Any = type(weight)
    weight.__class__ = _class_named(name, base)


@functools.cache
def _class_named(name: str, base: Any) -> Any:
    return base if base.__name__ == name else type(name, (base,), {})


def _pack_int8(module: Any, placed: Placed) -> None:
    shape = (module.out_features, module.in_features)
    weight: Any = as_parameter(placed(torch.empty(shape, dtype=torch.int8, device="meta")))
    weight.CB = weight.SCB = None
    weight.has_fp16_weights = False
    _pose_as(weight, "Int8Params")
    module.weight = weight
    module.state.CB = weight.data
    module.state.SCB = placed(torch.empty(module.out_features, device="meta"))
    # Columns of outliers are found by value, which a fake tensor lacks; they are a thousandth of all columns.
    module.state.threshold = 0.0
