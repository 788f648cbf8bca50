"""VeRA: two trained vectors a layer around random matrices that all layers share."""

from autopeft.methods._base import AdapterSpec, PeftMethod, rank_of
from autopeft.specs import Candidate, LinearLayer


class Vera(PeftMethod):
    """``W + diag(b) B diag(d) A`` with A and B random, frozen and one for all layers; b starts at zero, d at 0.1.

    The name: vector-based random matrix adaptation. A and B follow from a fixed key, so that only the vectors need
    keeping; they are saved all the same, since peft warns that other systems may draw other numbers.
    """

    name = "vera"
    title = "VeRA"
    paper = "https://arxiv.org/abs/2310.11454"
    update_rule = "W + diag(b) B diag(d) A, A and B frozen and shared"
    closed_form = False

    def lora_alpha(self, r: int, scaling: float) -> None:
        del r, scaling

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        settings = {"r": rank_of(candidate), "vera_dropout": candidate.lora_dropout, "save_projection": True}
        return AdapterSpec(peft_type="VERA", settings=settings)

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return rank_of(candidate) + layer.out_features
