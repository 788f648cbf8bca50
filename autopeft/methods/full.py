"""Full fine-tuning: every weight is trained; the baseline that adapters are measured against."""

from autopeft.methods._base import PeftMethod
from autopeft.specs import Candidate, Device, LinearLayer, ModelSpec


class Full(PeftMethod):
    """Trains all parameters of the base model; there is no adapter, the result is a model folder."""

    name = "full"
    title = "full fine-tuning"
    paper = "https://arxiv.org/abs/1801.06146"
    update_rule = "W"
    has_adapter = False

    def adapter_spec(self, candidate: Candidate, steps: int) -> None:
        del candidate, steps

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        del candidate
        return layer.in_features * layer.out_features + (layer.out_features if layer.has_bias else 0)

    def trainable_parameters(self, candidate: Candidate, model: ModelSpec) -> int:
        del candidate
        return model.parameter_count

    def lora_alpha(self, r: int, scaling: float) -> None:
        del r, scaling

    def why_not(self, candidate: Candidate, model: ModelSpec, device: Device) -> str | None:
        if candidate.quantization != "none":
            return f"full fine-tuning trains the weights themselves, which {candidate.quantization} storage freezes"
        return super().why_not(candidate, model, device)

    def stored_format_problem(self, candidate: Candidate, model: ModelSpec) -> str | None:
        if model.stored_quantization is None:
            return None
        return f"the checkpoint is already quantized ({model.stored_quantization}); its weights cannot be trained"
