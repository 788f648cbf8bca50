"""IA3: one trained vector a layer, which rescales its outputs."""

from autopeft.methods._base import AdapterSpec, PeftMethod
from autopeft.specs import Candidate, LinearLayer


class Ia3(PeftMethod):
    """``diag(l) W`` with l ``(out_features,)`` starting at one.

    The name: infused adapter by inhibiting and amplifying inner activations. The paper rescales keys, values and the
    MLP's inner activations; in a gated MLP the outputs of the up projection are the latter. Which layers get a vector
    is for the target modules to say.
    """

    name = "ia3"
    title = "IA3"
    paper = "https://arxiv.org/abs/2205.05638"
    update_rule = "diag(l) W"
    closed_form = False

    def lora_alpha(self, r: int, scaling: float) -> None:
        del r, scaling

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del candidate, steps
        return AdapterSpec(peft_type="IA3", settings={"feedforward_modules": []})

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        del candidate
        return layer.out_features
