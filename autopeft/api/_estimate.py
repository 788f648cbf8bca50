"""The price of one explicit configuration, its explanation and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.api._advice import as_names
from autopeft.errors import InvalidInputError
from autopeft.specs import (
    Attention,
    Candidate,
    DatasetProfile,
    Dtype,
    Explanation,
    HardwareProfile,
    MemoryEstimate,
    ModelSpec,
    Optimizer,
    Quantization,
    StepStyle,
    TrainerName,
)

if TYPE_CHECKING:
    from autopeft.memory.explicit import SavedConfig, Tracing


DEFAULT_LENGTH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One configuration with everything that its price depends on."""

    candidate: Candidate
    model: ModelSpec
    hardware: HardwareProfile
    data: DatasetProfile | None
    saved: SavedConfig | None
    tracing: Tracing
    calibration: bool

    def price(self, candidate: Candidate, sequence_length: int) -> MemoryEstimate:
        """Returns the estimate of a variant of the case; calibrated where this machine has been measured."""
        from autopeft.memory.calibration import calibrated
        from autopeft.memory.explicit import estimate_explicit

        candidate = replace(candidate, max_length=sequence_length)
        device = self.hardware.device
        found = estimate_explicit(candidate, self.model, device, saved=self.saved, tracing=self.tracing)
        # What was measured here is autopeft's own loop with the libraries of this environment.
        if not self.calibration or self.tracing.environment is not None or self.tracing.style != StepStyle():
            return found
        return calibrated(
            found, candidate, self.model, self.hardware, None if self.data is None else self.data.content_hash
        )


def estimate(
    *,
    model: str | Path,
    method: str = "lora",
    r: int | None = None,
    lora_alpha: float | None = None,
    target_modules: Sequence[str] | str | None = None,
    quantization: Quantization = "none",
    double_quantization: bool | None = None,
    dtype: Dtype = "bfloat16",
    adapter_dtype: Dtype | None = None,
    prepare_kbit: bool = False,
    batch_size: int = 1,
    gradient_accumulation_steps: int = 1,
    sequence_length: int | None = None,
    packing: bool = False,
    activation_checkpointing: bool = False,
    attention: Attention = "sdpa",
    optimizer: Optimizer = "adamw_torch",
    trainer: TrainerName = "trl",
    hardware: str | Path = "auto",
    peft_config: str | Path | None = None,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    trace: bool = False,
    environment: str | Path | None = None,
    style: StepStyle | None = None,
    calibration: bool = True,
) -> MemoryEstimate:
    """Returns predicted memory and time of one training step of one explicit configuration.

    Args:
        model: hub id, local folder, .gguf file, or a name from ``profiles/models``.
        method: a name in the registry; "full" takes no adapter options.
        r: rank; None means 16.
        lora_alpha: None means what the method's search space recommends for the rank.
        target_modules: names of linear layers, or aliases ("all-linear", "attention", "mlp"); None means all-linear.
        quantization: storage of the frozen base.
        double_quantization: whether nf4's scales are quantized too; None means yes.
        dtype: type that the base is loaded in and computed with.
        adapter_dtype: None means float32, as peft casts by default.
        prepare_kbit: whether ``prepare_model_for_kbit_training`` runs; without effect on a 16-bit base.
        batch_size: rows of one forward.
        gradient_accumulation_steps: forwards of one optimizer step.
        sequence_length: tokens of a row; None means 1024 or the model's longest input, or with data its longest row.
        packing: rows hold several documents each.
        activation_checkpointing: recompute activations in backward.
        attention: attention implementation.
        optimizer: transformers' name.
        trainer: whose loss is computed: "trl" never builds the full logits, "transformers" does.
        hardware: "auto", "cpu", catalogue names, or a YAML file: decides overhead, kernels and speed.
        peft_config: an adapter_config.json in place of method, r, lora_alpha and target_modules.
        data: a data set, for how the peak differs between the batches of an epoch.
        columns: column mapping of the data, role to column.
        trace: trace the real training step on fake tensors (needs ``autopeft[train]``).
        environment: trace in this virtual environment, or with its python, whose libraries will train.
        style: how the loop runs the step, where it is not autopeft's own; it is traced then.
        calibration: correct by what was measured on this machine ("auto" hardware only); never with an environment or
            a style, which were not measured.

    Raises:
        AutoPeftError: if an input cannot be read or understood.
    """
    return _estimated(_case(locals()))


def explain(**options: Any) -> tuple[MemoryEstimate, Explanation]:
    """Returns the estimate of the same options as ``estimate``, why it is so large, and what would make it fit.

    Raises:
        AutoPeftError: if an input cannot be read or understood.
    """
    import inspect

    from autopeft.memory.explain import Case
    from autopeft.memory.explain import explain as explanation_of

    bound = inspect.signature(estimate).bind(**options)
    bound.apply_defaults()
    case = _case(bound.arguments)
    found = _estimated(case)
    device = case.hardware.device
    asked = Case(
        candidate=case.candidate,
        model=case.model,
        device=device,
        sequence_length=case.candidate.max_length,
        available_bytes=device.free_memory_bytes,
    )
    return found, explanation_of(asked, found, case.price)


def _estimated(case: _Case) -> MemoryEstimate:
    found = case.price(case.candidate, case.candidate.max_length)
    if case.data is None:
        return found
    from autopeft.memory.batch_peaks import epoch_peaks_of

    def price(sequence_length: int) -> MemoryEstimate:
        return case.price(case.candidate, sequence_length)

    available = case.hardware.device.free_memory_bytes
    return replace(found, epoch_peaks=epoch_peaks_of(case.data, case.candidate, price, available_bytes=available))


def _case(options: Mapping[str, Any]) -> _Case:
    from autopeft.memory.explicit import Tracing, explicit_candidate, read_peft_config
    from autopeft.profiling.dataset import profile_dataset
    from autopeft.profiling.hardware import load_hardware
    from autopeft.profiling.model import load_model

    spec = load_model(str(options["model"]))
    adapter = adapter_of(options)
    saved = None
    if options["peft_config"] is not None:
        _refuse_method_options(adapter)
        saved = read_peft_config(Path(options["peft_config"]), spec)
        adapter = saved.settings
    data = None
    if options["data"] is not None:
        data = profile_dataset(str(options["data"]), model=spec, columns=options["columns"])
    _refuse_what_says_nothing(options)
    environment = options["environment"]
    return _Case(
        candidate=explicit_candidate(spec, adapter, rest_of(options, _length(options["sequence_length"], data, spec))),
        model=spec,
        hardware=load_hardware(str(options["hardware"])),
        data=data,
        saved=saved,
        tracing=Tracing(
            wanted=options["trace"],
            style=options["style"] or StepStyle(),
            environment=None if environment is None else str(environment),
        ),
        calibration=options["calibration"],
    )


def _refuse_what_says_nothing(options: Mapping[str, Any]) -> None:
    """Raises for options that would be ignored, or contradict each other."""
    style = options["style"] or StepStyle()
    if options["columns"] and options["data"] is None:
        raise InvalidInputError("a column mapping belongs to data; give data too, or leave it out")
    if style.reentrant_checkpointing and not options["activation_checkpointing"]:
        raise InvalidInputError("reentrant_checkpointing is a way of activation checkpointing; switch that on too")
    if style.padded and options["packing"]:
        raise InvalidInputError("packed rows are full: padded and packing exclude each other")


def adapter_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the adapter's options of ``estimate`` or ``calibrate`` as ``explicit_candidate`` takes them."""
    targets = options["target_modules"]
    names = None if targets is None else as_names(targets)
    return {name: options[name] for name in ("method", "r", "lora_alpha")} | {"target_modules": names}


def rest_of(options: Mapping[str, Any], max_length: int) -> Candidate:
    """Returns everything of the candidate but its adapter, from the options of ``estimate`` or ``calibrate``.

    Raises:
        InvalidInputError: for double quantization of a base that is not nf4.
    """
    quantization, double = options["quantization"], options["double_quantization"]
    if double is not None and quantization != "nf4":
        raise InvalidInputError(
            f"double_quantization belongs to nf4, but quantization is {quantization!r}; leave it out"
        )
    same = ("quantization", "dtype", "adapter_dtype", "gradient_accumulation_steps", "packing",
            "activation_checkpointing", "attention", "optimizer", "trainer")  # fmt: skip
    return Candidate(
        method="",
        r=None,
        lora_alpha=None,
        double_quantization=quantization == "nf4" and double is not False,
        prepare_kbit=options["prepare_kbit"] and quantization != "none",
        per_device_batch_size=options["batch_size"],
        max_length=max_length,
        **{name: options[name] for name in same if name in options},
    )


def default_length(model: ModelSpec) -> int:
    """Returns the tokens of a row where nothing says: 1024, or what the model reads at most if that is less."""
    return min(DEFAULT_LENGTH, model.context_length or DEFAULT_LENGTH)


def _length(wanted: int | None, data: DatasetProfile | None, model: ModelSpec) -> int:
    if wanted is not None:
        return wanted
    return default_length(model) if data is None else data.max_tokens


def _refuse_method_options(adapter: Mapping[str, Any]) -> None:
    given = [name for name, value in adapter.items() if value is not None and (name, value) != ("method", "lora")]
    if given:
        raise InvalidInputError(f"peft_config takes the place of {', '.join(given)}; give one or the other")
