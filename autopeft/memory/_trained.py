"""What a candidate trains: the adapter's factors, or every weight, and an encoder's classification head."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from autopeft.memory._families import head_parameters
from autopeft.memory._static import TrainedTensors
from autopeft.methods import get_method
from autopeft.profiling.model import adapted_layers
from autopeft.specs import Candidate, LinearLayer, ModelSpec
from autopeft.specs.targets import matched_modules


@dataclass(frozen=True, slots=True, eq=False)
class ModelKey:
    """A model as a cache's key: the same object, since a ModelSpec cannot be hashed."""

    model: ModelSpec

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelKey) and other.model is self.model


def adapted(candidate: Candidate, model: ModelSpec) -> tuple[LinearLayer, ...]:
    """Returns the linear layers that get an adapter; ``count`` is how many of each do."""
    return _adapted(ModelKey(model), candidate.target_modules)


@functools.lru_cache(maxsize=256)
def _adapted(key: ModelKey, target_modules: tuple[str, ...]) -> tuple[LinearLayer, ...]:
    return adapted_layers(key.model, target_modules)


def dense_norm(candidate: Candidate) -> bool:
    """Returns whether DoRA's norm is computed as peft does it: on request, and in configurations of other trainers."""
    return bool(candidate.options.get("dense_norm")) or "peft_config" in candidate.options


def adapted_blocks(candidate: Candidate, model: ModelSpec) -> dict[str, frozenset[int]]:
    """Returns the indices of the blocks that get an adapter, by the path of the linear layer."""
    return _adapted_blocks(ModelKey(model), candidate.target_modules)


@functools.lru_cache(maxsize=256)
def _adapted_blocks(key: ModelKey, target_modules: tuple[str, ...]) -> dict[str, frozenset[int]]:
    return {
        layer.path: frozenset(index for name in target_modules for index in matched_modules(layer, name))
        for layer in key.model.linear_layers
    }


def trainable_parameters(candidate: Candidate, model: ModelSpec) -> int:
    """Returns how many parameters require gradients."""
    method = get_method(candidate.method)
    head = trained_head_parameters(candidate, model)
    if not method.has_adapter:
        return method.trainable_parameters(candidate, model) + head
    return head + sum(layer.count * method.layer_parameters(candidate, layer) for layer in adapted(candidate, model))


def trained_head_parameters(candidate: Candidate, model: ModelSpec) -> int:
    """Returns the trained parameters of an encoder's classification head: with an adapter, peft trains a copy."""
    whole, copied = head_parameters(model)
    return copied if get_method(candidate.method).has_adapter else whole


def trained_tensors(candidate: Candidate, model: ModelSpec) -> tuple[TrainedTensors, ...]:
    """Returns the shapes of all tensors that are trained.

    What belongs to no linear layer and to no adapter's factor (norms, biases, magnitudes) counts as one vector each.
    """
    head = trained_head_parameters(candidate, model)
    found = [TrainedTensors(head, 1, 1)] if head else []
    if not get_method(candidate.method).has_adapter:
        return (*found, *_all_tensors(candidate, model))
    for layer in adapted(candidate, model):
        found += _adapter_tensors(candidate, layer)
    return tuple(found)


def _all_tensors(candidate: Candidate, model: ModelSpec) -> list[TrainedTensors]:
    found = [TrainedTensors(x.out_features, x.in_features, x.count) for x in model.linear_layers if not _tied(x, model)]
    found.append(TrainedTensors(model.vocab_size, model.hidden_size, 1))
    trained = get_method(candidate.method).trainable_parameters(candidate, model)
    rest = trained - sum(each.count * each.entries for each in found)
    return [*found, TrainedTensors(max(0, rest), 1, 1)]


def _adapter_tensors(candidate: Candidate, layer: LinearLayer) -> list[TrainedTensors]:
    method = get_method(candidate.method)
    parameters = method.layer_parameters(candidate, layer)
    rank = parameters // (layer.in_features + layer.out_features)
    rest = parameters - rank * (layer.in_features + layer.out_features)
    factors = {"lora_A": (rank, layer.in_features), "lora_B": (layer.out_features, rank)}
    found = [
        TrainedTensors(*shape, layer.count, method.rate_factor(candidate, name)) for name, shape in factors.items()
    ]
    return [*found, TrainedTensors(rest, 1, layer.count)] if rest else found


def _tied(layer: LinearLayer, model: ModelSpec) -> bool:
    return model.tie_word_embeddings and layer.path == "lm_head"
