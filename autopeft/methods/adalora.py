"""AdaLoRA: starts with more rank than wanted and gives it to the layers that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autopeft.methods._base import AdapterSpec, MethodContext, PeftMethod, alpha_of, rank_of
from autopeft.specs import Candidate, LinearLayer, ModelSpec
from autopeft.specs.targets import adapted_layers

if TYPE_CHECKING:
    import torch

MIN_STEPS = 10
"""Below this there is no room for warm-up, reallocation and settling."""


ORTHOGONALITY_WEIGHT = 0.5

_STATISTICS = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What peft's RankAllocator keeps of each weight."""


class AdaLora(PeftMethod):
    """``W + (alpha / init_r) B diag(E) A``; unimportant entries of E are masked until the mean rank is r.

    peft masks only if ``update_and_allocate`` is called after each optimizer step, which no trainer does by itself;
    our engine calls it through ``after_optimizer_step``.
    """

    name = "adalora"
    title = "AdaLoRA"
    paper = "https://arxiv.org/abs/2303.10512"
    update_rule = "W + (alpha/init_r) B diag(E) A"

    def complete_options(self, candidate: Candidate) -> dict[str, Any]:
        return {"init_r": initial_rank(rank_of(candidate))} | candidate.options

    def lora_alpha(self, r: int, scaling: float) -> float:
        return scaling * initial_rank(r)

    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec:
        options = self.complete_options(candidate)
        tinit, tfinal, delta = schedule(steps)
        settings = {
            "target_r": rank_of(candidate),
            "init_r": int(options["init_r"]),
            "lora_alpha": alpha_of(candidate),
            "lora_dropout": candidate.lora_dropout,
            "total_step": steps,
            "tinit": tinit,
            "tfinal": tfinal,
            "deltaT": delta,
            # peft adds its own penalty to the model's loss, once a forward and only where that loss is used; ours is
            # added once a step whatever computes the loss.
            "orth_reg_weight": 0.0,
        }
        return AdapterSpec(peft_type="ADALORA", settings=settings)

    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        init_r = int(self.complete_options(candidate)["init_r"])
        return init_r * (layer.in_features + layer.out_features + 1)

    def kept_parameters(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns what is left where the mean rank is r: what is masked by then need not be saved."""
        layers = adapted_layers(model, candidate.target_modules)
        r = rank_of(candidate)
        return sum(layer.count * r * (layer.in_features + layer.out_features + 1) for layer in layers)

    def extra_static_bytes(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns the bytes of three importance statistics a parameter, in the adapter's dtype."""
        width = 2 if candidate.adapter_dtype in ("bfloat16", "float16") else 4
        return 3 * width * self.trainable_parameters(candidate, model)

    def extra_loss(self, model: Any, context: MethodContext) -> torch.Tensor | None:
        """Returns the orthogonality penalty of equation 4: mean over factors of ``||P^T P - I||_F``, weighted."""
        import torch

        if "peft_config" in context.candidate.options:
            return None  # somebody else's configuration keeps peft's own penalty
        weight = float(context.candidate.options.get("orth_reg_weight", ORTHOGONALITY_WEIGHT))
        penalties = []
        for name, parameter in model.named_parameters():
            if "lora_A.default" in name or "lora_B.default" in name:
                gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
                penalties.append(
                    torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
                )
        return weight * torch.stack(penalties).mean()

    def after_optimizer_step(self, model: Any, step: int, context: MethodContext) -> None:
        model.base_model.update_and_allocate(step)

    def training_state(self, model: Any) -> dict[str, Any]:
        """Returns the importance statistics and the masks; without them a resumed training would rank anew."""
        allocator = model.base_model.rankallocator
        return {name: getattr(allocator, name) for name in _STATISTICS} | {
            "rank_pattern": model.peft_config["default"].rank_pattern
        }

    def load_training_state(self, model: Any, state: dict[str, Any]) -> None:
        for name in _STATISTICS:
            setattr(model.base_model.rankallocator, name, state[name])
        model.peft_config["default"].rank_pattern = state["rank_pattern"]

    def details(self, model: Any) -> dict[str, Any]:
        """Returns the final rank of each layer and the parameters that the saved adapter keeps."""
        pattern = model.peft_config["default"].rank_pattern or {}
        ranks = {_layer_name(name): sum(map(bool, mask)) for name, mask in pattern.items()}
        return {"rank_pattern": ranks}


def initial_rank(r: int) -> int:
    """Returns the rank that every layer starts with: half as much again as the final mean (paper, section 4.1)."""
    return max(r + 1, round(1.5 * r))


def schedule(steps: int) -> tuple[int, int, int]:
    """Returns ``(tinit, tfinal, deltaT)`` for a training of so many optimizer steps.

    Warm-up takes a tenth of the steps, the final settling three tenths, as in the GLUE settings of the paper
    (table 8, order of magnitude); ranks are reallocated about 20 times in between.

    Raises:
        ValueError: below ``MIN_STEPS``.
    """
    if steps < MIN_STEPS:
        raise ValueError(f"AdaLoRA needs at least {MIN_STEPS} optimizer steps to move ranks, not {steps}")
    tinit, tfinal = max(1, steps // 10), max(1, 3 * steps // 10)
    return tinit, tfinal, max(1, (steps - tinit - tfinal) // 20)


def _layer_name(parameter_name: str) -> str:
    return parameter_name.removeprefix("base_model.model.").partition(".lora_")[0]
