"""Reads the shape of an architecture that has no closed form off the model that transformers builds without weights."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from autopeft.errors import ModelError
from autopeft.profiling._shapes import Shape, linear_parameters
from autopeft.specs import LinearLayer

Role = Literal["attention", "mlp", "head", "router", "other"]

_HEADS = ("lm_head", "embed_out", "classifier", "score", "output")
_IGNORED = ("model_type", "dtype", "torch_dtype", "quantization_config", "transformers_version", "architectures")


def built_shape(config: Mapping[str, Any], where: str) -> Shape | None:
    """Returns the shape of a causal language model or encoder classifier; None where transformers cannot tell.

    Needs torch and transformers; without them the answer is None too. Nothing is downloaded, and no code of a
    checkpoint's repository runs.

    Raises:
        ModelError: if the model has no attention heads, or no list of blocks as long as it is deep.
    """
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
        notes=(f"the layers of {config['model_type']!r} models were read off the model that transformers builds",),
    )


def _model_on_meta(config: Mapping[str, Any], where: str) -> tuple[Any, Literal["causal_lm", "encoder"], Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.models.auto import modeling_auto

    # A copy: transformers writes into nested settings (rope_scaling).
    values = copy.deepcopy({name: value for name, value in config.items() if name not in _IGNORED})
    try:
        settings = AutoConfig.for_model(config["model_type"], **values)
    except (ValueError, KeyError, TypeError):
        return None, "causal_lm", None
    if settings.is_encoder_decoder:
        raise ModelError(f"{where}: encoder-decoder models are not supported")
    # Encoders can be built as causal models too; what predicts masked words is one.
    causal = type(settings) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    encoder = not causal or type(settings) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
    if encoder and type(settings) not in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None, "encoder", None
    auto = AutoModelForSequenceClassification if encoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(settings)
    model.tie_weights()
    return settings, "encoder" if encoder else "causal_lm", model


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
