"""OFT: the weight's inputs are rotated, block by block."""

from typing import Any

from autopeft.methods._base import AdapterSpec, PeftMethod
from autopeft.specs import Candidate, Device, LinearLayer, ModelSpec
from autopeft.specs.targets import adapted_layers

BLOCK_SIZE = 32
"""peft's default."""


class Oft(PeftMethod):
    """``W R`` with R ``(in_features, in_features)`` block-diagonal and orthogonal, starting as the identity.

    The name: orthogonal fine-tuning. A block of ``oft_block_size`` inputs is rotated by the Cayley transform of a
    trained skew-symmetric matrix, in peft by its first five Neumann terms.
    """

    name = "oft"
    title = "OFT"
    paper = "https://arxiv.org/abs/2306.07280"
    update_rule = "W R, R orthogonal and block-diagonal"
    closed_form = False

    def lora_alpha(self, r: int, scaling: float) -> None:
        del r, scaling

    def complete_options(self, candidate: Candidate) -> dict[str, Any]:
        return {"oft_block_size": BLOCK_SIZE} | candidate.options

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        settings = {"oft_block_size": self._block_size(candidate), "module_dropout": candidate.lora_dropout}
        return AdapterSpec(peft_type="OFT", settings=settings)

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        """Returns the entries above the diagonals of ``in_features / size`` blocks: ``in_features (size - 1) / 2``."""
        size = self._block_size(candidate)
        return (layer.in_features // size) * (size * (size - 1) // 2)

    def why_not(self, candidate: Candidate, model: ModelSpec, device: Device) -> str | None:
        size = self._block_size(candidate)
        for layer in adapted_layers(model, candidate.target_modules):
            if layer.in_features % size:
                return f"blocks of {size} do not divide the {layer.in_features} inputs of {layer.name} (oft_block_size)"
        return super().why_not(candidate, model, device)

    def _block_size(self, candidate: Candidate) -> int:
        return int(self.complete_options(candidate)["oft_block_size"])
