"""The experts of mixture-of-experts decoders, as transformers 5.23 builds them: fused tensors beside a router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.profiling._shapes import Natural, Positive, read_fields
from autopeft.specs import LinearLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeFamily:
    """How one model type names its experts.

    Attributes:
        count: field of the number of experts in a block.
        width: field of an expert's MLP width.
        biased: whether experts and router have biases.
        shared: whether an expert that sees every token stands beside the routed ones.
        defaults: values of fields that config.json may leave out.
    """

    count: str
    width: str
    defaults: dict[str, Any]
    biased: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeFields:
    """The fields of config.json that decide the experts.

    Attributes:
        count: experts of a block.
        width: of one expert's MLP.
        num_experts_per_tok: how many of them see a token.
        shared_expert_intermediate_size: width of the expert that sees all.
    """

    count: Positive
    width: Positive
    num_experts_per_tok: Positive
    shared_expert_intermediate_size: Natural = 0


MOE_FAMILIES = {
    "mixtral": MoeFamily(
        count="num_local_experts",
        width="intermediate_size",
        defaults={"count": 8, "width": 14336, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": MoeFamily(
        count="num_experts",
        width="moe_intermediate_size",
        shared=True,
        defaults={"count": 60, "width": 1408, "num_experts_per_tok": 4, "shared_expert_intermediate_size": 5632},
    ),
    "qwen3_moe": MoeFamily(
        count="num_experts",
        width="moe_intermediate_size",
        defaults={"count": 128, "width": 768, "num_experts_per_tok": 8},
    ),
    "gpt_oss": MoeFamily(
        count="num_local_experts",
        width="intermediate_size",
        biased=True,
        defaults={"count": 128, "width": 2880, "num_experts_per_tok": 4},
    ),
}


def moe_fields(config: Mapping[str, Any], where: str) -> MoeFields:
    """Returns the experts' settings of a config.json whose model type is in ``MOE_FAMILIES``.

    Raises:
        ModelError: naming every field of a wrong type or range.
    """
    family = MOE_FAMILIES[config["model_type"]]
    own = {family.count: "count", family.width: "width"}
    names = {"num_experts_per_tok", *(["shared_expert_intermediate_size"] if family.shared else [])}
    renamed = {own.get(name, name): value for name, value in config.items() if name in own or name in names}
    return read_fields(renamed, MoeFields, family.defaults, where, {ours: theirs for theirs, ours in own.items()})


def every_layer_has_experts(config: Mapping[str, Any]) -> bool:
    """Returns whether no block has a plain MLP in the place of experts; the closed form knows no mixture."""
    return config.get("decoder_sparse_step", 1) == 1 and not config.get("mlp_only_layers")


def routed_parameters(config: Mapping[str, Any], fields: MoeFields, hidden: int, layers: int) -> int:
    """Returns the parameters of all routed experts: ``layers * experts * 3 * width * hidden``, and biases."""
    bias = 2 * fields.width + hidden if MOE_FAMILIES[config["model_type"]].biased else 0
    return layers * fields.count * (3 * fields.width * hidden + bias)


def router_parameters(config: Mapping[str, Any], fields: MoeFields, hidden: int, layers: int) -> int:
    """Returns the parameters of all routers; the gate of a shared expert is a linear layer of its own."""
    bias = 1 if MOE_FAMILIES[config["model_type"]].biased else 0
    return layers * fields.count * (hidden + bias)


def shared_layers(block: str, fields: MoeFields, hidden: int, layers: int) -> tuple[LinearLayer, ...]:
    """Returns the linear layers of the experts that see every token, and of their gates."""
    width = fields.shared_expert_intermediate_size
    if not width:
        return ()
    shapes = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    paths = {f"{block}.mlp.shared_expert.{name}": shape for name, shape in shapes.items()}
    paths[f"{block}.mlp.shared_expert_gate"] = (hidden, 1)
    return tuple(
        LinearLayer(
            name=path.rpartition(".")[2],
            path=path,
            in_features=inputs,
            out_features=outputs,
            count=layers,
            role="router" if outputs == 1 else "mlp",
        )
        for path, (inputs, outputs) in paths.items()
    )
