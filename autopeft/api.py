"""The Python API: what the command line calls, and what pipelines call.

Nothing here prints; progress goes to the callbacks, logs to ``logging``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import AutoPeftError, InterruptedRunError, InvalidInputError, RunFolderError
from autopeft.specs import (
    Attention,
    Candidate,
    Dtype,
    HardwareProfile,
    MemoryEstimate,
    Optimizer,
    PlanInputs,
    Quantization,
    Recommendation,
    Report,
    TrainerName,
    to_dict,
    to_json,
)
from autopeft.units import parse_bytes, parse_duration

if TYPE_CHECKING:
    from autopeft.search import Event, RunFolder, RunSettings
    from autopeft.specs import Runner

StepWatcher = Callable[[str, int, int], None]


def suggest(
    *,
    model: str | Path,
    data: str | Path,
    hardware: str | Path = "auto",
    budget_memory: int | str | None = None,
    methods: Iterable[str] = (),
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
        methods: consider these only; empty means all.
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

    inputs = PlanInputs(
        model=str(model),
        data=str(data),
        hardware=str(hardware),
        budget_memory_bytes=parse_bytes(budget_memory) if isinstance(budget_memory, str) else budget_memory,
        methods=tuple(get_method(name).name for name in methods),
        effective_batch_size=effective_batch_size,
        max_length=max_length,
        columns=dict(columns) if columns else None,
    )
    profile = load_hardware(inputs.hardware)
    spec = load_model(inputs.model)
    dataset = profile_dataset(inputs.data, model=spec, columns=inputs.columns, seed=seed)
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
    if isinstance(target_modules, str):
        target_modules = [target_modules]
    adapter = {"method": method, "r": r, "lora_alpha": lora_alpha, "target_modules": target_modules}
    saved = None
    if peft_config is not None:
        _refuse_method_options(adapter)
        saved = read_peft_config(Path(peft_config), spec)
        adapter = saved.settings
    candidate = explicit_candidate(
        spec,
        adapter,
        Candidate(
            method="",
            r=None,
            lora_alpha=None,
            quantization=quantization,
            double_quantization=quantization == "nf4" and double_quantization is not False,
            dtype=dtype,
            adapter_dtype=adapter_dtype or "float32",
            prepare_kbit=prepare_kbit and quantization != "none",
            per_device_batch_size=batch_size,
            max_length=sequence_length,
            activation_checkpointing=activation_checkpointing,
            attention=attention,
            optimizer=optimizer,
            trainer=trainer,
        ),
    )
    return estimate_explicit(candidate, spec, load_hardware(str(hardware)).device, saved=saved, trace=trace)


def run(
    plan: str | Path | Recommendation | None = None,
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
    hardware: str | Path = "auto",
    budget_memory: int | str | None = None,
    methods: Iterable[str] = (),
    effective_batch_size: int | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    trials: int | None = None,
    time_budget: float | str | None = None,
    seed: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    on_event: Callable[[Event], None] | None = None,
    on_step: StepWatcher | None = None,
) -> Report:
    """Searches the candidates of a plan, trains the winner, compares it with the baselines and writes a report.

    Works from a script without a main guard, a notebook, a thread and a pipeline: trainings run in a worker process.

    Args:
        plan: a Recommendation or a plan.json; None makes one from the inputs.
        model: as for ``suggest``; only without a plan.
        data: as for ``suggest``; only without a plan.
        hardware: as for ``suggest``. A plan for other hardware is priced again on the device that trains.
        budget_memory: as for ``suggest``; enforced: a trial that uses more is stopped.
        methods: as for ``suggest``.
        effective_batch_size: as for ``suggest``.
        max_length: as for ``suggest``.
        columns: as for ``suggest``.
        trials: search trials at most.
        time_budget: for everything: seconds, or a text such as "30m".
        seed: of splits, sampler and trainings; None means the plan's.
        output: run folder; None makes ``runs/<time>``.
        resume: go on with the run in ``output``; everything else is read from there.
        dry_run: simulate the trainings (the verdict says so).
        on_event: told of every event.
        on_step: told the training's name, the step done and the steps wanted.

    Raises:
        InterruptedRunError: after Ctrl-C; what is finished is on disk and ``resume`` goes on.
        AutoPeftError: if an input is wrong or nothing can be trained.
    """
    from autopeft.engine.stack import require_training_stack
    from autopeft.search import RunFolder, RunSettings

    if not dry_run:
        require_training_stack("autopeft run")
    if resume:
        return _resume(output, on_event, on_step)
    inputs: dict[str, Any] = {
        "model": model,
        "data": data,
        "hardware": hardware,
        "budget_memory": budget_memory,
        "methods": tuple(methods),
        "effective_batch_size": effective_batch_size,
        "max_length": max_length,
        "columns": columns,
    }
    chosen = _plan_for_this_machine(_plan_of(plan, inputs, seed))
    _refuse_changed_data(chosen)
    settings = RunSettings(
        trials=trials,
        time_budget_seconds=parse_duration(time_budget) if isinstance(time_budget, str) else time_budget,
        seed=chosen.seed if seed is None else seed,
        methods=_searched_methods(chosen),
        dry_run=dry_run,
    )
    folder = RunFolder.create(output or Path("runs") / time.strftime("%Y%m%d-%H%M%S"), chosen, settings)
    return _search(chosen, settings, folder, on_event, on_step)


def write_plan(plan: Recommendation, path: str | Path) -> None:
    """Writes plan.json.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    try:
        Path(path).write_text(to_json(plan.to_dict()), encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}") from error


def read_plan(path: str | Path) -> Recommendation:
    """Returns the plan of a plan.json.

    Raises:
        InvalidInputError: if it cannot be read, or is no plan of this version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the plan {path}: {error.strerror}; make one: autopeft suggest ... -o plan.json"
        ) from error
    except ValueError as error:
        raise InvalidInputError(f"{path} is no valid JSON: {error}") from error
    return Recommendation.from_dict(content, str(path))


def describe_methods() -> list[dict[str, Any]]:
    """Returns every registered method as JSON data: name, title, paper, update rule, its search space."""
    from autopeft.methods import registry
    from autopeft.spaces import all_spaces

    spaces = all_spaces()
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


def _traced(plan: Recommendation, count: int) -> Recommendation:
    from autopeft.memory.trace import trace_memory
    from autopeft.recommend import price_best

    return price_best(plan, count, trace_memory)


def _refuse_method_options(adapter: Mapping[str, Any]) -> None:
    given = [name for name, value in adapter.items() if value is not None and (name, value) != ("method", "lora")]
    if given:
        raise InvalidInputError(f"peft_config takes the place of {', '.join(given)}; give one or the other")


def _plan_of(plan: str | Path | Recommendation | None, inputs: dict[str, Any], seed: int | None) -> Recommendation:
    given = [name for name, value in inputs.items() if value and (name, value) != ("hardware", "auto")]
    if plan is None:
        if inputs["model"] is None or inputs["data"] is None:
            raise InvalidInputError("give a plan.json, or a model and data to make a plan from (--model and --data)")
        return suggest(**inputs, seed=seed or 0)
    if given:
        raise InvalidInputError(
            f"the plan already says {', '.join(given)}; leave them out, or make a new plan: autopeft suggest ..."
        )
    return plan if isinstance(plan, Recommendation) else read_plan(plan)


def _plan_for_this_machine(plan: Recommendation) -> Recommendation:
    """Returns the plan priced on the device that will train; unchanged if it was made for this machine as it is."""
    from autopeft.profiling.hardware import load_hardware
    from autopeft.recommend import reprice

    present = load_hardware("auto")
    if _same_device(plan.hardware, present):
        return plan
    return reprice(plan, present)


def _same_device(planned: HardwareProfile, present: HardwareProfile) -> bool:
    """Returns whether a plan still holds: the same device, and what it counted on still free (2 % less is noise)."""
    before, now = planned.device, present.device
    like = (before.name, before.kind, before.total_memory_bytes) == (now.name, now.kind, now.total_memory_bytes)
    return planned.origin == "probed" and like and now.free_memory_bytes >= 0.98 * before.free_memory_bytes


def _refuse_changed_data(plan: Recommendation) -> None:
    from autopeft.profiling.dataset import hash_files

    found = hash_files(plan.data.files)
    if found != plan.data.content_hash:
        raise RunFolderError(
            f"the data has changed since the plan was made: {plan.data.source} has hash {found[:12]}, the plan says "
            f"{plan.data.content_hash[:12]}; make a new plan: autopeft suggest ... -o plan.json"
        )


def _searched_methods(plan: Recommendation) -> tuple[str, ...]:
    """Returns the methods that a run searches: those asked for, else those with a candidate that are by default."""
    from autopeft.spaces import all_spaces

    names = dict.fromkeys(entry.candidate.method for entry in plan.candidates)
    return tuple(name for name in names if plan.inputs.methods or all_spaces()[name].searched_by_default)


def _resume(output: str | Path | None, on_event: Callable[[Event], None] | None, on_step: StepWatcher | None) -> Report:
    from autopeft.search import RunFolder

    if output is None:
        raise InvalidInputError("resume needs the run folder: --output DIR")
    folder = RunFolder.open(output)
    return _search(folder.load_plan(), folder.load_settings(), folder, on_event, on_step)


def _search(
    plan: Recommendation,
    settings: RunSettings,
    folder: RunFolder,
    on_event: Callable[[Event], None] | None,
    on_step: StepWatcher | None,
) -> Report:
    from autopeft.search import run_search

    runner = _runner(settings, folder, on_step)
    with folder:
        try:
            run_search(plan, settings, folder, runner, on_event=on_event or _ignore)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted; what is finished is kept; go on with: autopeft run --resume --output {folder.path}"
            ) from None
        finally:
            runner.close()
            _write_reports(plan, folder)
        return _report_of(folder)


def _runner(settings: RunSettings, folder: RunFolder, on_step: StepWatcher | None) -> Runner:
    if settings.dry_run:
        from autopeft.training.fake import FakeRunner

        return FakeRunner()
    from autopeft.training.client import WorkerRunner

    return WorkerRunner(folder.worker_log, on_step)


def _write_reports(plan: Recommendation, folder: RunFolder) -> None:
    """Writes report.md, report.html and, with a verdict, recipe.yaml, from what the folder holds."""
    from autopeft.report import RunRecord, recipe_yaml, render_html, render_markdown

    record = RunRecord(
        plan=plan,
        manifest=folder.load_manifest(),
        trials=folder.load_results(),
        verdict=folder.load_verdict(),
        folder=str(folder.path),
    )
    folder.write_report(folder.report_markdown, render_markdown(record))
    folder.write_report(folder.report_html, render_html(record))
    if record.verdict is not None:
        folder.write_report(folder.recipe, recipe_yaml(record))


def _report_of(folder: RunFolder) -> Report:
    verdict = folder.load_verdict()
    if verdict is None:
        raise AutoPeftError(f"the run in {folder.path} ended without a verdict; its log: {folder.worker_log}")
    return Report(
        folder=str(folder.path),
        verdict=verdict,
        trials=folder.load_results(),
        html=str(folder.report_html),
        markdown=str(folder.report_markdown),
        adapter_folder=str(folder.adapter),
    )


def _ignore(event: Event) -> None:
    del event


__all__ = ["describe_methods", "estimate", "read_plan", "run", "suggest", "write_plan"]
