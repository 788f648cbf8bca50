"""MiSS: one small trained matrix a layer, shared by groups of inputs."""

from autopeft.methods._base import AdapterSpec, PeftMethod, rank_of
from autopeft.specs import Candidate, LinearLayer


class Miss(PeftMethod):
    """``W + D^T``, where row i of D ``(in_features, out_features)`` is row ``i mod r`` of the trained matrix.

    The name: matrix shard sharing. There is no scaling.
    """

    name = "miss"
    title = "MiSS"
    paper = "https://arxiv.org/abs/2409.15371"
    update_rule = "W + expand(D)"
    closed_form = False

    def lora_alpha(self, r: int, scaling: float) -> None:
        del r, scaling

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        settings = {"r": rank_of(candidate), "miss_dropout": candidate.lora_dropout}
        return AdapterSpec(peft_type="MISS", settings=settings)

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return rank_of(candidate) * layer.out_features
