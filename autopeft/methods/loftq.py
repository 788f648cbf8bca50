"""LoftQ: an adapter that starts where it undoes the error of quantizing the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autopeft.methods._base import AdapterSpec, MethodContext, PeftMethod, lora_settings, low_rank_parameters, rank_of
from autopeft.specs import Candidate, Device, LinearLayer, ModelSpec
from autopeft.specs.targets import adapted_layers

if TYPE_CHECKING:
    import torch

OVERSAMPLING = 8
POWER_ITERATIONS = 4


class LoftQ(PeftMethod):
    """``Q + (alpha/r) B A`` with ``B A`` the best rank-r fit of ``(W - Q) / (alpha/r)``.

    The name: LoRA-fine-tuning-aware quantization.

    One iteration, over the plain nf4 base: Q stays what every other nf4 adapter stands on, so the adapter is exact
    wherever that base is loaded. The original weights are read one tensor at a time, on the training device; peft's
    own routes name CUDA.
    """

    name = "loftq"
    title = "LoftQ"
    paper = "https://arxiv.org/abs/2310.08659"
    update_rule = "Q + (alpha/r) B A, B A ~ W - Q at the start"

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        return AdapterSpec(peft_type="LORA", settings=lora_settings(candidate))

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return low_rank_parameters(rank_of(candidate), layer)

    def why_not(self, candidate: Candidate, model: ModelSpec, device: Device) -> str | None:
        if candidate.quantization != "nf4":
            return f"LoftQ undoes the error of nf4 quantization; quantization is {candidate.quantization!r}"
        return super().why_not(candidate, model, device)

    def stored_format_problem(self, candidate: Candidate, model: ModelSpec) -> str | None:
        if model.stored_quantization is None:
            return None
        return f"the checkpoint is already quantized ({model.stored_quantization}); LoftQ needs the original weights"

    def init_temporary_bytes(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns the bytes of the widest moment over the adapted layers; one layer is worked on at a time.

        While the update's fit is checked there are four float32 matrices ``(out, in)``: the original, the residual, the
        update and the scaled update. The randomized factors beside them have ``r + OVERSAMPLING`` columns; a full SVD
        holds original, residual, the copy it destroys and its three factors.
        """
        r = rank_of(candidate)
        layers = adapted_layers(model, candidate.target_modules)
        return max((_fit_bytes(layer.out_features, layer.in_features, r) for layer in layers), default=0)

    def prepare(self, model: Any, context: MethodContext) -> dict[str, Any]:
        """Sets A and B of every adapted layer; returns each layer's relative quantization error before and after."""
        import torch

        before: dict[str, float] = {}
        after: dict[str, float] = {}
        with torch.no_grad():
            for name, layer in model.named_modules():
                if hasattr(layer, "lora_A") and "default" in layer.lora_A:
                    path = name.removeprefix("base_model.model.")
                    original = context.weights.weight(path)
                    before[path], after[path] = _compensate(layer, original, context.seed)
        return {"quantization_error_before": before, "quantization_error_after": after}


def _fit_bytes(rows: int, columns: int, r: int) -> int:
    checked = 4 * rows * columns + r * (rows + columns)
    if 2 * (r + OVERSAMPLING) < min(rows, columns):
        return 4 * (checked + (r + OVERSAMPLING) * (rows + columns))
    rank = min(rows, columns)
    return 4 * max(checked + rank * (rows + columns), 3 * rows * columns + rank * (rows + columns + 1))


def _compensate(layer: Any, original: torch.Tensor, seed: int) -> tuple[float, float]:
    """Sets one layer's factors to the rank-r fit of the residual; returns the relative error before and after."""
    import torch

    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scaling = layer.scaling["default"]
    original = original.to(device=a.device, dtype=torch.float32)
    residual = original - dequantize(layer.get_base_layer())
    left, values, right = low_rank_factors(residual, a.shape[0], seed)
    root = (values / scaling).sqrt()
    b.copy_(left * root)
    a.copy_((right * root).T)
    norm = torch.linalg.matrix_norm(original)
    left_over = residual - scaling * (b.float() @ a.float())
    return float(torch.linalg.matrix_norm(residual) / norm), float(torch.linalg.matrix_norm(left_over) / norm)


def dequantize(linear: Any) -> torch.Tensor:
    """Returns the float32 weight ``(out_features, in_features)`` that a bitsandbytes 4-bit layer stands for."""
    import bitsandbytes.functional as bnb
    import torch

    weight: torch.Tensor = bnb.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    return weight.to(torch.float32)


def low_rank_factors(matrix: torch.Tensor, r: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns U ``(rows, r)``, S ``(r,)``, V ``(columns, r)`` with ``U diag(S) V^T`` close to the best rank-r fit.

    Randomized subspace iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4) instead of a full SVD, which takes
    minutes for the layers of a small model and hours for those of a large one. Where the rank is not small against
    the matrix, the full SVD is taken.
    """
    import torch

    if 2 * (r + OVERSAMPLING) >= min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :r], values[:r], right[:r].T
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(seed)
        left, values, right = torch.svd_lowrank(matrix, q=r + OVERSAMPLING, niter=POWER_ITERATIONS)
    return left[:, :r], values[:r], right[:, :r]
