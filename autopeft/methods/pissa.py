"""PiSSA: LoRA that starts with the weight's largest singular values and trains those."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.methods._base import AdapterSpec, PeftMethod, lora_settings, low_rank_parameters, rank_of
from autopeft.methods._changed_base import quantized_base_problem, save_for_untouched_base, start_of
from autopeft.specs import Candidate, Device, LinearLayer, ModelSpec

if TYPE_CHECKING:
    import torch

SUBSPACE_ITERATIONS = 16
"""Of peft's randomized SVD, which takes seconds where the full one takes minutes; the paper's fast variant."""


class Pissa(PeftMethod):
    """``W - s B0 A0 + s B A`` with ``s B0 A0`` the best rank-r fit of W and B A starting there.

    The name: principal singular values and singular vectors adaptation. The adapter is saved as plain LoRA of twice
    the rank, which fits the untouched base.
    """

    name = "pissa"
    title = "PiSSA"
    paper = "https://arxiv.org/abs/2404.02948"
    update_rule = "W - B0 A0 + (alpha/r) B A, from the largest singular values"

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        start = f"pissa_niter_{SUBSPACE_ITERATIONS}"
        return AdapterSpec(peft_type="LORA", settings=lora_settings(candidate, init_lora_weights=start))

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return low_rank_parameters(rank_of(candidate), layer)

    def why_not(self, candidate: Candidate, model: ModelSpec, device: Device) -> str | None:
        if candidate.quantization != "none":
            return quantized_base_problem(self.title, candidate.quantization)
        return super().why_not(candidate, model, device)

    def snapshot(self, model: Any) -> dict[str, torch.Tensor]:
        return start_of(model)

    def save(self, model: Any, folder: Path, snapshot: dict[str, torch.Tensor] | None) -> None:
        assert snapshot is not None, "the start was remembered"
        save_for_untouched_base(model, folder, snapshot)
