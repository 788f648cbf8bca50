"""Reads the shape of an architecture that has no closed form off the model that transformers builds without weights."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from autopeft.errors import ModelError
from autopeft.profiling._shapes import MAX_LAYERS, MAX_SIZE, Shape, linear_parameters
from autopeft.specs import Experts, LinearLayer

Role = Literal["attention", "mlp", "head", "router", "other"]

_HEADS = ("lm_head", "embed_out", "classifier", "score", "output")
_IGNORED = (
    "model_type",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "transformers_version",
    "architectures",
    "auto_map",
)


def built_shape(config: Mapping[str, Any], where: str) -> Shape | None:
    """Returns the shape of a causal language model or encoder classifier; None where transformers cannot tell.

    Needs torch and transformers; without them the answer is None too. Nothing is downloaded, and no code of a
    checkpoint's repository runs.

    Raises:
        ModelError: if a size is absurd, transformers cannot build the model, or it has no attention heads.
    """
    _check_sizes(config, where)
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return None
    with _quietly():
        settings, kind, model = _model_on_meta(config, where)
    if model is None:
        return None
    heads = getattr(settings, "num_attention_heads", None)
    if not isinstance(heads, int) or not isinstance(getattr(settings, "num_hidden_layers", None), int):
        raise ModelError(
            f"{where}: {config['model_type']!r} models have no attention heads, which everything here counts in"
        )
    layers = _linear_layers(model)
    tied = bool(getattr(settings, "tie_word_embeddings", False)) and kind == "causal_lm"
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = _experts(settings, model, total)
    listed = sum(linear_parameters(layer) for layer in layers if not (tied and layer.role == "head"))
    hidden: int = settings.hidden_size
    return Shape(
        model_type=str(config["model_type"]),
        kind=kind,
        layers=settings.num_hidden_layers,
        hidden_size=hidden,
        intermediate_size=_intermediate_size(settings, layers),
        vocab_size=settings.vocab_size,
        attention_heads=heads,
        key_value_heads=getattr(settings, "num_key_value_heads", None) or heads,
        head_dim=getattr(settings, "head_dim", None) or hidden // heads,
        context_length=getattr(settings, "max_position_embeddings", None),
        tie_word_embeddings=tied,
        linear_layers=layers,
        other_parameters=total - listed,
        weight_roots=frozenset(name.split(".")[0] for name, _ in model.named_parameters()),
        base_prefix="",
        experts=experts,
        notes=(f"the layers of {config['model_type']!r} models were read off the model that transformers builds",),
    )


def _check_sizes(config: Mapping[str, Any], where: str) -> None:
    """Checks the whole numbers of a config.json, so that building the model is a matter of seconds."""
    for name, value in config.items():
        limit = MAX_LAYERS if "layer" in name and name.startswith(("num", "n_")) else MAX_SIZE
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > limit:
            raise ModelError(f"{where}: {name} is {value}; at most {limit} is believed")


def _model_on_meta(config: Mapping[str, Any], where: str) -> tuple[Any, Literal["causal_lm", "encoder"], Any]:
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        return None, "causal_lm", None
    settings = _guarded(lambda: _settings(config), config, where)
    if settings.is_encoder_decoder:
        raise ModelError(f"{where}: encoder-decoder models are not supported")
    # Encoders can be built as causal models too; what predicts masked words is one.
    causal = type(settings) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    encoder = not causal or type(settings) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
    if encoder and type(settings) not in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None, "encoder", None
    model = _guarded(lambda: _empty_model(settings, encoder=encoder), config, where)
    return settings, "encoder" if encoder else "causal_lm", model


def _settings(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    # A copy: transformers writes into nested settings (rope_scaling).
    values = copy.deepcopy({name: value for name, value in config.items() if name not in _IGNORED})
    return AutoConfig.for_model(config["model_type"], **values)


def _empty_model(settings: Any, *, encoder: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if encoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(settings, trust_remote_code=False)
    model.tie_weights()
    return model


def _guarded(build: Callable[[], Any], config: Mapping[str, Any], where: str) -> Any:
    """Returns what is built; whatever transformers raises on settings of others becomes one sentence."""
    try:
        return build()
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(
            f"{where}: transformers cannot build a {config['model_type']!r} model from it: {told}"
        ) from error


_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts")


def _experts(settings: Any, model: Any, total: int) -> Experts | None:
    """Returns the experts of a mixture, whose parameters lie in modules named ``experts``; None without such."""
    routed = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    count, per_token = (
        next((value for name in names if isinstance(value := getattr(settings, name, None), int)), None)
        for names in (_EXPERT_COUNTS, _EXPERTS_PER_TOKEN)
    )
    if not routed or not count or not per_token:
        return None
    shared = getattr(settings, "shared_expert_intermediate_size", None)
    active = total - routed + routed * per_token // count
    return Experts(
        count=count, per_token=per_token, parameters=routed, active_parameters=active, shared_width=shared or 0
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps transformers' remarks on a model that nobody trains out of the log."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(before)


def _linear_layers(model: Any) -> tuple[LinearLayer, ...]:
    import torch
    from transformers.pytorch_utils import Conv1D

    found: Counter[tuple[str, int, int, bool]] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            shape = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shape = (int(module.weight.shape[0]), int(module.weight.shape[1]))
        else:
            continue
        pattern = re.sub(r"\.\d+\.", ".{layer}.", path, count=1)
        found[(pattern, *shape, module.bias is not None)] += 1
    return tuple(
        LinearLayer(
            name=path.rpartition(".")[2],
            path=path,
            in_features=inputs,
            out_features=outputs,
            count=count,
            role=_role(path),
            has_bias=biased,
            quantizable=_role(path) != "head",
        )
        for (path, inputs, outputs, biased), count in found.items()
    )


def _role(path: str) -> Role:
    """Judges by the names that transformers gives; layers outside the blocks are heads or other."""
    last = path.rpartition(".")[2]
    if "{layer}" not in path:
        return "head" if last in _HEADS else "other"
    if last in ("gate", "router"):
        return "router"
    if re.search(r"att(n|ention)|query|key|value", path):
        return "attention" if not re.search(r"intermediate|(?<!attention\.)output\.dense$", path) else "mlp"
    return "mlp" if re.search(r"mlp|ff|feed_forward|fc|dense|expert|intermediate|output|lin\d", path) else "other"


def _intermediate_size(settings: Any, layers: tuple[LinearLayer, ...]) -> int:
    for name in ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"):
        value = getattr(settings, name, None)
        if isinstance(value, int):
            return value
    return max((layer.out_features for layer in layers if layer.role == "mlp"), default=settings.hidden_size)
