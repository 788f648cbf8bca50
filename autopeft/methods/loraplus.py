"""LoRA+: LoRA whose second factor learns faster than its first."""

from autopeft.methods._base import AdapterSpec, PeftMethod, lora_settings, low_rank_parameters, rank_of
from autopeft.specs import Candidate, LinearLayer


class LoraPlus(PeftMethod):
    """``W + (alpha / r) B A`` where B's learning rate is A's times the option ``loraplus_lr_ratio``."""

    name = "loraplus"
    title = "LoRA+"
    paper = "https://arxiv.org/abs/2402.12354"
    update_rule = "W + (alpha/r) B A, B at a higher learning rate"

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        return AdapterSpec(peft_type="LORA", settings=lora_settings(candidate))

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return low_rank_parameters(rank_of(candidate), layer)

    def complete_options(self, candidate: Candidate) -> dict[str, float | int | str | bool]:
        return {"loraplus_lr_ratio": LR_RATIO} | candidate.options

    def rate_factor(self, candidate: Candidate, parameter_name: str) -> float:
        return float(self.complete_options(candidate)["loraplus_lr_ratio"]) if "lora_B" in parameter_name else 1.0


LR_RATIO = 16.0
"""The paper's advice for language models (recalled, unverified)."""
