"""EVA: LoRA whose first factor starts with the directions in which a layer's inputs vary most."""

from __future__ import annotations

from typing import Any

from autopeft.errors import InvalidInputError
from autopeft.methods._base import (
    AdapterSpec,
    MethodContext,
    PeftMethod,
    lora_settings,
    low_rank_parameters,
    rank_of,
)
from autopeft.specs import Candidate, LinearLayer, ModelSpec
from autopeft.specs.targets import adapted_layers

EVA_BATCHES = 16
"""Batches of training data that are looked at, if the directions do not settle before; peft goes round them again."""


IGNORE_INDEX = -100
"""Label of a token on which the loss does not count; EVA looks at the others, as peft's default."""


class Eva(PeftMethod):
    """``W + (alpha / r) B A`` with A ``(r, in_features)`` the inputs' leading right singular vectors and B zero.

    The name: explained variance adaptation. All layers keep the rank r (peft's ``rho`` of 1), so that it is compared
    with LoRA at equal parameters and scaling; the paper also moves rank between layers.
    """

    name = "eva"
    title = "EVA"
    paper = "https://arxiv.org/abs/2410.07170"
    update_rule = "W + (alpha/r) B A, A from the inputs' variance"
    reads_data = True

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        del steps
        return AdapterSpec(
            peft_type="LORA",
            settings=lora_settings(candidate, init_lora_weights="eva"),
            parts={"eva_config": ("EvaConfig", {"rho": 1.0})},
        )

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        return low_rank_parameters(rank_of(candidate), layer)

    def init_temporary_bytes(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns float32 bytes: three matrices ``(r, in)`` a layer, and of the widest its inputs, stacked and centred.

        An upper bound where layers share their inputs, whose directions are then found once. Leaves out the forward's
        own activations, of which none is kept for a backward; a training step holds more of them.
        """
        r = rank_of(candidate)
        layers = adapted_layers(model, candidate.target_modules)
        tokens = candidate.per_device_batch_size * candidate.max_length
        widest = max((layer.in_features for layer in layers), default=0)
        return 4 * (3 * r * sum(layer.count * layer.in_features for layer in layers) + 3 * (tokens + r) * widest)

    def prepare(self, model: Any, context: MethodContext) -> dict[str, Any]:
        """Sets every A from the first training batches, by peft's own function."""
        from itertools import islice

        from peft import initialize_lora_eva_weights

        assert context.batches is not None, "a trace leaves this out"
        r = context.candidate.r or 0
        batches = list(islice(context.batches(), EVA_BATCHES))
        enough = [batch for batch in batches if int((batch["labels"] != IGNORE_INDEX).sum()) >= r]
        if not enough:
            raise InvalidInputError(
                f"EVA finds {r} directions in a batch of at least as many supervised tokens, and the first "
                f"{len(batches)} batches have fewer; choose a lower rank or a larger per_device_batch_size"
            )
        backbone = model.get_base_model().base_model

        def forward(_: Any, inputs: dict[str, Any]) -> None:
            # Without the head, whose logits nobody asks for.
            backbone(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

        target_modules = model.peft_config["default"].target_modules
        initialize_lora_eva_weights(model, enough, forward_fn=forward, show_progress_bar=False)
        config = model.peft_config["default"]
        # peft names every layer there, and asks for data again where an adapter says "eva".
        config.target_modules, config.init_lora_weights, config.eva_config = target_modules, True, None
        return {"initial_batches": len(enough)}
