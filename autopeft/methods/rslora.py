"""rsLoRA: LoRA with a scaling that stays stable as the rank grows."""

import math

from autopeft.methods._base import AdapterSpec, PeftMethod, lora_settings, low_rank_parameters, rank_of
from autopeft.specs import Candidate, LinearLayer


class RsLora(PeftMethod):
    """``W + (alpha / sqrt(r)) B A``: at one alpha its scale is sqrt(r) times LoRA's, so alpha is set from the scale."""

    name = "rslora"
    title = "rsLoRA"
    paper = "https://arxiv.org/abs/2312.03732"
    update_rule = "W + (alpha/sqrt(r)) B A"

    def lora_alpha(self, r: int, scaling: float) -> float:
        return max(1.0, float(round(scaling * math.sqrt(r))))

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        return AdapterSpec(peft_type="LORA", settings=lora_settings(candidate, use_rslora=True))

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return low_rank_parameters(rank_of(candidate), layer)
