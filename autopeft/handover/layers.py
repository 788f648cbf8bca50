"""What one adapted layer computes: its update as two factors, or its whole merged weight. Pure arithmetic on tensors.

Weights are ``(out_features, in_features)``, A is ``(r, in_features)`` and B ``(out_features, r)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopeft.handover.saved_adapter import SavedAdapter

if TYPE_CHECKING:
    import torch

_EXACT_SVD_SIDE = 2048
"""Matrices with a shorter side above this are decomposed by a randomized method, whose error is measured as well."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The update ``scaling B A``."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    def product(self) -> torch.Tensor:
        """Returns the dense update in float32."""
        return self.scaling * (self.b.float() @ self.a.float())


def factors(adapter: SavedAdapter, module: str, shape: tuple[int, int], weight: torch.Tensor | None) -> Factors:
    """Returns a layer's exact update; for DoRA the one inside of its norm.

    Args:
        adapter: of a method with one.
        module: path of the layer.
        shape: ``(out_features, in_features)`` of the layer, which MiSS does not store.
        weight: of the base, needed where the training changed it at its start (PiSSA, OLoRA).
    """
    import torch

    scaling = adapter.scaling(module)
    if adapter.method == "miss":
        a, b = _miss(adapter.tensor(module, "miss_block"), shape)
        return Factors(a=a, b=b, scaling=scaling)
    a, b = adapter.tensor(module, "lora_A"), adapter.tensor(module, "lora_B")
    if adapter.method == "adalora":
        a = a.float() * adapter.tensor(module, "lora_E").float()
    if adapter.start is not None:
        assert weight is not None, "PiSSA and OLoRA start from the base's weight"
        first_a, first_b = _start(adapter.start, weight, a.shape[0], scaling)
        a, b = torch.cat([a.float(), first_a]), torch.cat([b.float(), -first_b], dim=1)
    return Factors(a=a, b=b, scaling=scaling)


def _miss(block: torch.Tensor, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns MiSS's factors: it sums the inputs i with equal i mod r, and multiplies the r sums by its block.

    So A holds copies of the unit matrix side by side, the last one cut off, and B is the block's transpose, repeated
    over the outputs in the form "mini" (https://arxiv.org/abs/2409.15371; peft's ``MissLinear.forward``). Exact.
    """
    import torch

    rank, (out_features, in_features) = block.shape[0], shape
    a = torch.eye(rank, dtype=block.dtype).repeat(1, math.ceil(in_features / rank))[:, :in_features]
    return a.contiguous(), block.T.repeat(out_features // block.shape[1], 1)


def _start(kind: str, weight: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the A and B that peft began with and took from the base: deterministic functions of its weight.

    PiSSA: the leading singular triplets, divided by the scaling. OLoRA: the first columns of Q and rows of R.
    """
    import torch

    weight = weight.float()
    if kind == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = torch.sqrt(values[:rank] / scaling)
    return root[:, None] * right[:rank], left[:, :rank] * root


def merged_weight(adapter: SavedAdapter, module: str, weight: torch.Tensor) -> torch.Tensor:
    """Returns the float32 weight of a layer with the adapter in it.

    ``W + scaling B A``; DoRA: ``m (W + scaling B A) / ||W + scaling B A||`` by row; MiSS in its form "bat":
    ``W + W_blocks M + M``, block by block.
    """
    import torch

    weight = weight.float()
    if adapter.method == "miss-bat":
        return weight + _bat_update(weight, adapter.tensor(module, "miss_block").float())
    changed = weight + factors(adapter, module, (weight.shape[0], weight.shape[1]), weight).product()
    if adapter.method == "dora":
        magnitude = adapter.tensor(module, "lora_magnitude_vector").float()
        changed = changed * (magnitude / torch.linalg.vector_norm(changed, dim=1))[:, None]
    return changed


def _bat_update(weight: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Returns ``W_blocks M + M`` for M ``(out / r, r, r)``; peft's ``MissLinear.get_delta_weight``."""
    rank = block.shape[-1]
    rows, columns = weight.shape
    blocks = weight.reshape(rows // rank, rank, columns // rank, rank).permute(2, 0, 1, 3)
    update = blocks @ block + block
    return update.permute(1, 2, 0, 3).reshape(rows, columns)


def nearest_factors(update: torch.Tensor, rank: int) -> Factors:
    """Returns the factors of the best approximation of an update by one of lower rank (Eckart and Young).

    Large matrices go through a randomized decomposition with a fixed seed, which is a little worse than the best.
    """
    import torch

    if min(update.shape) <= _EXACT_SVD_SIDE:
        left, values, right = torch.linalg.svd(update, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, columns = torch.svd_lowrank(update, q=min(rank + 16, *update.shape), niter=6)
            right = columns.T
    root = torch.sqrt(values[:rank])
    return Factors(a=root[:, None] * right[:rank], b=left[:, :rank] * root, scaling=1.0)


def padded(matrix: torch.Tensor, rank: int, dimension: int) -> torch.Tensor:
    """Returns a factor with zeros added until its rank dimension is ``rank``; the product stays the same."""
    import torch

    missing = rank - matrix.shape[dimension]
    if missing == 0:
        return matrix.contiguous()
    shape = (missing, matrix.shape[1]) if dimension == 0 else (matrix.shape[0], missing)
    return torch.cat([matrix, matrix.new_zeros(shape)], dim=dimension)
