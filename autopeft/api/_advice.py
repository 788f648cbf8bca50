"""What needs no training: a recommendation, the price of one configuration, the registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.errors import InvalidInputError
from autopeft.specs import (
    Attention,
    Candidate,
    Dtype,
    MemoryEstimate,
    Optimizer,
    PlanInputs,
    Quantization,
    Recommendation,
    TrainerName,
    to_dict,
)
from autopeft.units import parse_bytes


def suggest(
    *,
    model: str | Path,
    data: str | Path,
    hardware: str | Path = "auto",
    budget_memory: int | str | None = None,
    methods: str | Iterable[str] = (),
    effective_batch_size: int | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    trace: int = 0,
) -> Recommendation:
    """Returns ranked candidates for a model, data and a device; needs no GPU, no weights and no torch.

    Args:
        model: hub id, local folder, .gguf file, or a name from ``profiles/models``.
        data: JSONL, JSON, CSV, Parquet, Arrow or text file, folder, or hub data set id.
        hardware: "auto" for this machine, a catalogue name ("rtx-4090"), or a YAML file.
        budget_memory: use no more device memory than this: bytes, or a text such as "16GiB".
        methods: consider these only, one name or several; empty means all.
        effective_batch_size: rows per optimizer step; None chooses from the data.
        max_length: truncate rows to this many tokens; None chooses from the data.
        columns: column mapping, role to column: ``{"prompt": "question"}``.
        seed: of everything random; the same seed gives the same plan.
        trace: trace the memory of the best so many candidates (needs ``autopeft[train]``).

    Raises:
        NothingFitsError: with the smallest estimate, what it lacks and what would help.
        AutoPeftError: if an input cannot be read or understood.
    """
    from autopeft.methods import get_method
    from autopeft.profiling.dataset import profile_dataset
    from autopeft.profiling.hardware import load_hardware
    from autopeft.profiling.model import load_model
    from autopeft.recommend import recommend

    if trace < 0:
        raise InvalidInputError(f"trace says how many candidates to trace; it cannot be {trace}")
    inputs = PlanInputs(
        model=str(model),
        data=str(data),
        hardware=str(hardware),
        budget_memory_bytes=_budget_bytes(budget_memory),
        methods=tuple(get_method(name).name for name in as_names(methods)),
        effective_batch_size=effective_batch_size,
        max_length=max_length,
        columns=dict(columns) if columns else None,
    )
    profile = load_hardware(inputs.hardware)
    spec = load_model(inputs.model)
    dataset = profile_dataset(inputs.data, model=spec, columns=inputs.columns, seed=seed)
    # A plan may be run from another folder than it was made in.
    dataset = replace(dataset, files=tuple(str(Path(file).absolute()) for file in dataset.files))
    plan = recommend(profile, spec, dataset, inputs, seed=seed)
    return _traced(plan, trace) if trace else plan


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
    sequence_length: int = 1024,
    activation_checkpointing: bool = False,
    attention: Attention = "sdpa",
    optimizer: Optimizer = "adamw_torch",
    trainer: TrainerName = "trl",
    hardware: str | Path = "auto",
    peft_config: str | Path | None = None,
    trace: bool = False,
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
        sequence_length: tokens of a row.
        activation_checkpointing: recompute activations in backward.
        attention: attention implementation.
        optimizer: transformers' name.
        trainer: whose loss is computed: "trl" never builds the full logits, "transformers" does.
        hardware: "auto", a catalogue name, or a YAML file: decides overhead, kernels and speed.
        peft_config: an adapter_config.json in place of method, r, lora_alpha and target_modules.
        trace: trace the real training step on fake tensors (needs ``autopeft[train]``).

    Raises:
        AutoPeftError: if an input cannot be read or understood.
    """
    from autopeft.memory.explicit import estimate_explicit, explicit_candidate, read_peft_config
    from autopeft.profiling.hardware import load_hardware
    from autopeft.profiling.model import load_model

    spec = load_model(str(model))
    targets = None if target_modules is None else as_names(target_modules)
    adapter = {"method": method, "r": r, "lora_alpha": lora_alpha, "target_modules": targets}
    saved = None
    if peft_config is not None:
        _refuse_method_options(adapter)
        saved = read_peft_config(Path(peft_config), spec)
        adapter = saved.settings
    if double_quantization is not None and quantization != "nf4":
        raise InvalidInputError(
            f"double_quantization belongs to nf4, but quantization is {quantization!r}; leave it out"
        )
    rest = Candidate(
        method="",
        r=None,
        lora_alpha=None,
        quantization=quantization,
        double_quantization=quantization == "nf4" and double_quantization is not False,
        dtype=dtype,
        adapter_dtype=adapter_dtype,
        prepare_kbit=prepare_kbit and quantization != "none",
        per_device_batch_size=batch_size,
        max_length=sequence_length,
        activation_checkpointing=activation_checkpointing,
        attention=attention,
        optimizer=optimizer,
        trainer=trainer,
    )
    device = load_hardware(str(hardware)).device
    return estimate_explicit(explicit_candidate(spec, adapter, rest), spec, device, saved=saved, trace=trace)


def describe_methods() -> list[dict[str, Any]]:
    """Returns every registered method as JSON data: name, title, paper, update rule, its search space."""
    from autopeft.methods import registry
    from autopeft.spaces import spaces_for

    spaces = spaces_for(registry()).methods
    return [
        {
            "name": name,
            "title": method.title,
            "summary": spaces[name].summary,
            "update_rule": method.update_rule,
            "paper": method.paper,
            "has_adapter": method.has_adapter,
            "space": to_dict(spaces[name]),
        }
        for name, method in registry().items()
    ]


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Returns one name, or several, as a tuple: a text is one name, not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def _traced(plan: Recommendation, count: int) -> Recommendation:
    from autopeft.memory.quiet import quiet_libraries
    from autopeft.recommend import price_best

    with quiet_libraries():
        from autopeft.memory.trace import trace_memory

        return price_best(plan, count, trace_memory)


def _refuse_method_options(adapter: Mapping[str, Any]) -> None:
    given = [name for name, value in adapter.items() if value is not None and (name, value) != ("method", "lora")]
    if given:
        raise InvalidInputError(f"peft_config takes the place of {', '.join(given)}; give one or the other")


def _budget_bytes(budget: int | str | None) -> int | None:
    if isinstance(budget, int) and budget <= 0:
        raise InvalidInputError(f"a memory budget must be a positive number of bytes, not {budget}")
    return None if budget is None else parse_bytes(str(budget))
