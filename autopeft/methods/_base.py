"""What a method is: one class that says what to build and, in its hooks, what to do while training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from autopeft.specs import Candidate, Device, LinearLayer, ModelSpec
from autopeft.specs.targets import adapted_layers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """An adapter as plain data; the engine builds the peft configuration from it.

    Attributes:
        peft_type: peft's name of the configuration: "LORA", "ADALORA".
        settings: keyword arguments of that configuration class, without task type and target modules.
        parts: arguments that are configurations themselves: name -> (class in peft, its arguments).
    """

    peft_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)


MANY_STEPS = 10_000
"""A training long enough for any method's schedule, where the kind of adapter is asked and its schedule is not."""


def adapter_kind(spec: AdapterSpec) -> str:
    """Returns what decides which layer class peft takes: its peft_type, or "DORA" for LoRA with a magnitude."""
    return "DORA" if spec.settings.get("use_dora") else spec.peft_type


class LoadedWeights(Protocol):
    """Reads the original, unquantized weights of the base model, one tensor at a time."""

    def weight(self, module_path: str) -> torch.Tensor:
        """Returns the float32 weight ``(out_features, in_features)`` of a linear layer of the base model."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodContext:
    """What the hooks of a method may need.

    Attributes:
        candidate: what is trained.
        steps: optimizer steps of the whole training.
        seed: of the trial.
        weights: the original weights of the base model.
        batches: begins a pass over the training rows, in an order that the seed alone decides; a batch holds
            "input_ids", "attention_mask" and "labels", each ``(per_device_batch_size, length)``, on the host. None
            where nothing is read (a trace).
    """

    candidate: Candidate
    steps: int
    seed: int
    weights: LoadedWeights
    batches: Callable[[], Iterator[dict[str, Any]]] | None = None


class PeftMethod(ABC):
    """A fine-tuning method.

    Life cycle of one training: ``adapter_spec`` -> the engine injects the adapter -> ``prepare`` -> ``snapshot`` ->
    every step: forward, ``extra_loss`` added, backward, optimizer step, ``after_optimizer_step`` -> ``details`` ->
    ``save``. A checkpoint asks for ``training_state``, a resume gives it to ``load_training_state`` after ``snapshot``.
    Nothing outside these hooks may import the training stack. A method holds no state: it may be used by several
    trainings at once.

    Attributes:
        name: registry name, the module's and the YAML's.
        title: for people.
        paper: where it was published.
        update_rule: the changed weight as a formula.
        has_adapter: False for methods that train the base weights themselves.
        closed_form: False where the closed form of ``autopeft.memory`` does not know the method's step, so that it is
            traced.
        reads_data: True where ``prepare`` reads training batches, so that a trace leaves it out.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    update_rule: ClassVar[str]
    has_adapter: ClassVar[bool] = True
    closed_form: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False

    @abstractmethod
    def adapter_spec(self, candidate: Candidate, steps: int) -> AdapterSpec | None:
        """Returns the adapter of a training of ``steps`` optimizer steps; None if the base itself is trained."""

    @abstractmethod
    def layer_parameters(self, candidate: Candidate, layer: LinearLayer) -> int:
        """Returns the trainable parameters that one adapted layer gets."""

    def trainable_parameters(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns the trainable parameters of the whole model, as peft builds it."""
        adapted = adapted_layers(model, candidate.target_modules)
        return sum(layer.count * self.layer_parameters(candidate, layer) for layer in adapted)

    def kept_parameters(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns the parameters that the finished adapter keeps; fewer than the trained ones where some are masked."""
        return self.trainable_parameters(candidate, model)

    def lora_alpha(self, r: int, scaling: float) -> float | None:
        """Returns the ``lora_alpha`` that gives the effective scaling at rank r; None without a scaling."""
        return scaling * r

    def complete_options(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the method's options with those filled in that follow from others (AdaLoRA's initial rank)."""
        return dict(candidate.options)

    def rate_factor(self, candidate: Candidate, parameter_name: str) -> float:
        """Returns the learning rate of a trained parameter as a multiple of the candidate's."""
        del candidate, parameter_name
        return 1.0

    def why_not(self, candidate: Candidate, model: ModelSpec, device: Device) -> str | None:
        """Returns why the method cannot train this candidate on this device, in one sentence; None if it can."""
        del device
        if self.has_adapter and not candidate.target_modules:
            return f"{self.name} needs at least one target module"
        return self.stored_format_problem(candidate, model)

    def stored_format_problem(self, candidate: Candidate, model: ModelSpec) -> str | None:
        """Returns why the method cannot train over an already quantized checkpoint; None if it can, or need not."""
        spec = None if model.stored_format is None else self.adapter_spec(candidate, MANY_STEPS)
        if model.stored_format is None or spec is None:
            return None
        problem = model.stored_format.problem(adapter_kind(spec))
        return problem and f"the checkpoint is already quantized ({model.stored_format.title}): {problem}"

    def extra_static_bytes(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns bytes held through the whole training beyond weights, gradients and optimizer states."""
        del candidate, model
        return 0

    def init_temporary_bytes(self, candidate: Candidate, model: ModelSpec) -> int:
        """Returns what ``prepare`` holds on the device at its widest, beside the weights; 0 if it computes nothing."""
        del candidate, model
        return 0

    def layer_saved_bytes(self, candidate: Candidate, layer: LinearLayer) -> int:
        """Returns bytes that one adapted layer's forward keeps for backward, beyond those of plain LoRA.

        Independent of the tokens; activations that grow with them are the memory model's job.
        """
        del candidate, layer
        return 0

    def prepare(self, model: Any, context: MethodContext) -> dict[str, Any]:
        """Hook: changes the freshly injected model (initial values); returns details for the result."""
        del model, context
        return {}

    def snapshot(self, model: Any) -> dict[str, torch.Tensor] | None:
        """Hook: returns what ``save`` needs of the prepared, untrained adapter, on the host; None for nothing."""
        del model
        return None

    def extra_loss(self, model: Any, context: MethodContext) -> torch.Tensor | None:
        """Hook: returns a scalar that is added to the loss of each optimizer step; None for nothing."""
        del model, context
        return None

    def after_optimizer_step(self, model: Any, step: int, context: MethodContext) -> None:
        """Hook: runs after optimizer step ``step`` (from 1), before the gradients are cleared."""
        del model, step, context

    def training_state(self, model: Any) -> dict[str, Any]:
        """Hook: returns what a checkpoint must hold beside the trained weights: tensors and plain values."""
        del model
        return {}

    def load_training_state(self, model: Any, state: dict[str, Any]) -> None:
        """Hook: puts back what ``training_state`` returned, after the weights of a checkpoint were loaded."""
        del model, state

    def details(self, model: Any) -> dict[str, Any]:
        """Hook: returns what the trained adapter looks like, for the result."""
        del model
        return {}

    def save(self, model: Any, folder: Path, snapshot: dict[str, torch.Tensor] | None) -> None:
        """Hook: writes the trained adapter, or the whole model, so that it stands on the untouched base.

        Args:
            model: trained.
            folder: where to.
            snapshot: what ``snapshot`` returned.
        """
        del snapshot
        # The vocabulary is never changed; left to itself, peft asks the hub whether it was.
        model.save_pretrained(folder, **({"save_embedding_layers": False} if self.has_adapter else {}))


def low_rank_parameters(r: int, layer: LinearLayer) -> int:
    """Returns r (in + out): the entries of A ``(r, in_features)`` and B ``(out_features, r)``."""
    return r * (layer.in_features + layer.out_features)


def rank_of(candidate: Candidate) -> int:
    """Returns the candidate's rank, which a method with one always has."""
    assert candidate.r is not None, f"{candidate.method} needs a rank"
    return candidate.r


def alpha_of(candidate: Candidate) -> float:
    """Returns ``lora_alpha`` as peft saves it: an int where it is whole (servers read an int)."""
    assert candidate.lora_alpha is not None, f"{candidate.method} needs lora_alpha"
    alpha = float(candidate.lora_alpha)
    return int(alpha) if alpha.is_integer() else alpha


def lora_settings(candidate: Candidate, **more: Any) -> dict[str, Any]:
    """Returns the settings that every LoraConfig of ours has; ``more`` adds or replaces some."""
    return {"r": rank_of(candidate), "lora_alpha": alpha_of(candidate), "lora_dropout": candidate.lora_dropout, **more}


def scaling_of(settings: Mapping[str, Any]) -> float:
    """Returns the scaling that peft computes from LoraConfig settings: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    r = settings["r"]
    return float(settings["lora_alpha"] / (math.sqrt(r) if settings.get("use_rslora") else r))
