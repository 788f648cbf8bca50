"""DoRA: LoRA on the direction of the weight, with a trained magnitude per output."""

from typing import Any

from autopeft.methods._base import AdapterSpec, PeftMethod, lora_settings, low_rank_parameters, rank_of
from autopeft.specs import Candidate, LinearLayer, ModelSpec
from autopeft.specs.targets import adapted_layers


class Dora(PeftMethod):
    """``m (W + (alpha/r) B A) / ||W + (alpha/r) B A||`` by output row, m starting as ``||W||``.

    The engine computes the norm from the factors (``engine.factored_dora``); the option ``dense_norm`` leaves it to
    peft, which builds ``B A`` at every step. The result is the same.
    """

    name = "dora"
    title = "DoRA"
    paper = "https://arxiv.org/abs/2402.09353"
    update_rule = "m (W + (alpha/r) B A) / ||W + (alpha/r) B A||"

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        return AdapterSpec(peft_type="LORA", settings=lora_settings(candidate, use_dora=True))

    def complete_options(self, candidate: Candidate) -> dict[str, Any]:
        return {"dense_norm": False} | candidate.options

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return low_rank_parameters(rank_of(candidate), layer) + layer.out_features

    def extra_static_bytes(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns the bytes of the frozen weights' squared norms, float32, one of each output."""
        if candidate.options.get("dense_norm") or "peft_config" in candidate.options:
            return 0
        return sum(4 * layer.out_features * layer.count for layer in adapted_layers(model, candidate.target_modules))
