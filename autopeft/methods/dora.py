"""DoRA: LoRA on the direction of the weight, with a trained magnitude per output."""

from autopeft.methods._base import AdapterSpec, PeftMethod, lora_settings, low_rank_parameters, rank_of
from autopeft.specs import Candidate, LinearLayer


class Dora(PeftMethod):
    """``m (W + (alpha/r) B A) / ||W + (alpha/r) B A||`` by output row, m starting as ``||W||``."""

    name = "dora"
    title = "DoRA"
    paper = "https://arxiv.org/abs/2402.09353"
    update_rule = "m (W + (alpha/r) B A) / ||W + (alpha/r) B A||"

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        return AdapterSpec(peft_type="LORA", settings=lora_settings(candidate, use_dora=True))

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return low_rank_parameters(rank_of(candidate), layer) + layer.out_features
