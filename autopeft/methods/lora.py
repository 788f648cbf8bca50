"""LoRA: a low-rank update beside the frozen weight."""

from autopeft.methods._base import AdapterSpec, PeftMethod, lora_settings, low_rank_parameters, rank_of
from autopeft.specs import Candidate, LinearLayer


class Lora(PeftMethod):
    """``W + (alpha / r) B A`` with A ``(r, in_features)`` random and B ``(out_features, r)`` zero at the start."""

    name = "lora"
    title = "LoRA"
    paper = "https://arxiv.org/abs/2106.09685"
    update_rule = "W + (alpha/r) B A"

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        return AdapterSpec(peft_type="LORA", settings=lora_settings(candidate))

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return low_rank_parameters(rank_of(candidate), layer)
