"""DoRA at LoRA's price: the norm of the changed weight from its factors, without the dense update.

The layers stay peft's: names, saved files, merging and unmerging do not change. Only the forward of an adapter is
replaced, through peft's own seam for variants of LoRA.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import dora
from peft.tuners.lora.variants import DoraLinearVariant
from torch.autograd.function import once_differentiable
from torch.nn import functional

INT8_RANGE = 127.0
CHUNK_ENTRIES = 2**20
"""Entries of an int8 weight that are widened at once: 4 MiB in float32."""


def use_factored_norms(model: Any) -> int:
    """Replaces the forward of every DoRA adapter of linear layers; returns how many there are.

    Adapters of embeddings and convolutions keep peft's forward. The squared norms of the frozen weights are computed
    here, once, and kept beside the magnitudes in buffers that are not saved.
    """
    changed = 0
    for module in model.modules():
        for name, variant in getattr(module, "lora_variant", {}).items():
            if type(variant) is DoraLinearVariant and type(module.lora_magnitude_vector[name]) is dora.DoraLinearLayer:
                squared = _squared_norms(module.get_base_layer())
                module.lora_magnitude_vector[name].register_buffer("weight_norm_squared", squared, persistent=False)
                module.lora_variant[name] = FactoredDora()
                changed += 1
    return changed


class FactoredDora(DoraLinearVariant):
    """``y = m / n * (W x + s B A x) + bias`` with ``n = ||W + s B A||`` by output row, taken as a constant.

    n follows from the factors (arXiv 2402.09353, section 4.3, has it detached from the gradient, as here)::

        n^2 = ||W||^2 + 2 s rowsum((W A^T) * B) + s^2 rowsum((B A A^T) * B)

    Shapes: W ``(out, in)``, A ``(r, in)``, B ``(out, r)``, m and n ``(out,)``. Nothing of the size of W is made, except
    where dropout asks for a second product with an int8 W. The norm is summed in float32; W A^T is computed in the
    dtype of W.
    """

    @staticmethod
    def forward(module: Any, *, active_adapter: str, x: Any, result: Any, **kwargs: Any) -> Any:
        """Returns the layer's whole output ``(..., out)``; ``result`` is the base layer's, bias included."""
        del kwargs
        base_layer, dropout = module.get_base_layer(), module.lora_dropout[active_adapter]
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        scaling = module.scaling[active_adapter]
        vector = module.lora_magnitude_vector[active_adapter]
        norm = row_norms(base_layer, vector.weight_norm_squared, a.weight, b.weight, scaling)
        change = vector.weight.float() / norm - 1
        if module.training and not isinstance(dropout, torch.nn.Identity):
            x = dropout(x)
            return result + _beside_the_base(base_layer, x, b(a(x)), change, scaling)
        bias = base_layer.bias
        unbiased = result if bias is None else result - bias
        changed = ScaledRows.apply(torch.add(unbiased, b(a(x)), alpha=scaling), change)
        return changed if bias is None else changed + bias


class ScaledRows(torch.autograd.Function):
    """``values * (1 + change)`` in the dtype of the values, one kernel each way for what is as large as they are.

    Written as ``values + values * change``: the magnitude stays near the norm, so that rounding ``change`` to 16 bits
    costs next to nothing, where the whole quotient would be off by up to 0.2 %.
    """

    @staticmethod
    def forward(ctx: Any, values: Any, change: Any) -> Any:
        """Returns ``(..., out)``.

        Args:
            ctx: keeps both for the backward.
            values: ``(..., out)``.
            change: float32 ``(out,)``.
        """
        ctx.save_for_backward(values, change)
        return torch.addcmul(values, values, change.to(values.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        """Returns the gradients of the values and of the change."""
        values, change = ctx.saved_tensors
        of_change = (gradient * values).sum(tuple(range(values.dim() - 1)), dtype=change.dtype)
        return torch.addcmul(gradient, gradient, change.to(values.dtype)), of_change


def _beside_the_base(base_layer: Any, x: Any, update: Any, change: Any, scaling: float) -> Any:
    """Returns what is added to the base layer's output where x is dropped out, as peft has it."""
    if type(base_layer.weight).__name__ == "Params4bit":
        base = _nf4_product(base_layer, x)
    else:
        weight = dora.dequantize_module_weight(base_layer).to(x.dtype)
        base = functional.linear(x, weight.T if _is_transposed(base_layer) else weight)
    return change * base + (1 + change) * update * scaling


@torch.no_grad()
def row_norms(base_layer: Any, weight_norm_squared: Any, a: Any, b: Any, scaling: float) -> Any:
    """Returns the float32 norms ``(out,)`` of the rows of ``W + scaling B A``.

    Args:
        base_layer: holds W, plain, transposed (Conv1D) or quantized.
        weight_norm_squared: of the rows of W, float32 ``(out,)``.
        a: ``(r, in)``.
        b: ``(out, r)``.
        scaling: of the update.
    """
    wide_a, wide_b = a.float(), b.float()
    crossed = (weight_times(base_layer, a).float() * wide_b).sum(1)
    update = ((wide_b @ (wide_a @ wide_a.T)) * wide_b).sum(1)
    return (weight_norm_squared + 2 * scaling * crossed + scaling**2 * update).clamp_min(0.0).sqrt()


@torch.no_grad()
def _squared_norms(base_layer: Any) -> Any:
    """Returns the squared float32 norms ``(out,)`` of the rows of W."""
    dense = dora.dequantize_module_weight(base_layer)
    along = 0 if _is_transposed(base_layer) else 1
    return torch.linalg.vector_norm(dense, dim=along, dtype=torch.float32).square()


def weight_times(base_layer: Any, a: Any) -> Any:
    """Returns ``W A^T`` ``(out, r)`` in the dtype that the base layer computes in, without a dense copy of W."""
    kind = type(base_layer.weight).__name__
    if kind == "Params4bit":
        return _nf4_product(base_layer, a).T
    if kind == "Int8Params":
        return _int8_times(base_layer, a)
    weight = dora.dequantize_module_weight(base_layer)
    a = a.to(weight.dtype)
    return (a @ weight).T if _is_transposed(base_layer) else weight @ a.T


def _nf4_product(base_layer: Any, x: Any) -> Any:
    """Returns ``x W^T`` without the bias, by bitsandbytes' own product, which keeps no dense W for the backward."""
    import bitsandbytes

    state = base_layer.weight.quant_state
    # A weight that bitsandbytes has repacked for a CPU is read as it lies; others in either orientation.
    packed = base_layer.weight if getattr(state, "packing_format_for_cpu", False) else base_layer.weight.t()
    return bitsandbytes.matmul_4bit(x.to(base_layer.compute_dtype or x.dtype), packed, quant_state=state)


def _int8_times(base_layer: Any, a: Any) -> Any:
    """Widens some rows of W at a time; bitsandbytes' own product would round A to eight bits too."""
    weight = base_layer.weight
    scales = base_layer.state.SCB if base_layer.state.SCB is not None else weight.SCB
    rows = max(1, CHUNK_ENTRIES // weight.shape[1])
    wide = a.float().T
    products = [part.float() @ wide for part in weight.detach().split(rows)]
    return torch.cat(products) * (scales.to(a.device).float() / INT8_RANGE).unsqueeze(1)


def _is_transposed(base_layer: Any) -> bool:
    """Whether the layer stores ``(in, out)``: transformers' Conv1D."""
    return type(base_layer).__name__ == "Conv1D"
