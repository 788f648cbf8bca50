"""One run: from a plan or its inputs to the verdict and the report."""

from __future__ import annotations

import errno
import importlib.util
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.api._advice import as_names, suggest
from autopeft.api._plans import read_plan
from autopeft.errors import (
    AutoPeftError,
    DataError,
    InterruptedRunError,
    InvalidInputError,
    MissingExtraError,
    ModelError,
    RunFolderError,
)
from autopeft.specs import HardwareProfile, Objective, Recommendation, Report
from autopeft.specs.data import OnBadRow
from autopeft.units import parse_duration

if TYPE_CHECKING:
    from autopeft.search import CandidateSource, Event, RunFolder, RunSettings
    from autopeft.specs import Runner

StepWatcher = Callable[[str, int, int], None]

logger = logging.getLogger(__name__)


def run(
    plan: str | Path | Recommendation | None = None,
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
    hardware: str | Path = "auto",
    budget_memory: int | str | None = None,
    methods: str | Iterable[str] = (),
    effective_batch_size: int | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
    objective: Objective = "balanced",
    max_time: float | str | None = None,
    max_cost: float | None = None,
    price_per_hour: float | None = None,
    price_per_kwh: float | None = None,
    max_adapter_parameters: int | None = None,
    serve: str | None = None,
    full_data: bool = False,
    trials: int | None = None,
    time_budget: float | str | None = None,
    seed: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    allow_shorter: bool = False,
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
        on_bad_row: as for ``suggest``; a plan says it already.
        objective: as for ``suggest``: which candidates the search begins with.
        max_time: as for ``suggest``: of one full training, not of the search.
        max_cost: as for ``suggest``.
        price_per_hour: as for ``suggest``.
        price_per_kwh: as for ``suggest``.
        max_adapter_parameters: as for ``suggest``.
        serve: as for ``suggest``.
        full_data: as for ``suggest``; only without a plan.
        trials: search trials at most.
        time_budget: for everything: seconds, or a text such as "30m".
        seed: of splits, sampler and trainings; None means the plan's.
        output: run folder; None makes ``runs/<time>``.
        resume: go on with the run in ``output``; everything else is read from there.
        dry_run: simulate the trainings (the verdict says so).
        allow_shorter: where memory runs out and nothing else helps, training rows may be cut further.
        on_event: told of every event.
        on_step: told the training's name, the step done and the steps wanted.

    Raises:
        InterruptedRunError: after Ctrl-C; what is finished is on disk and ``resume`` goes on.
        AutoPeftError: if an input is wrong or nothing can be trained.
    """
    from autopeft.search import RunFolder, RunSettings

    inputs: dict[str, Any] = {
        "model": model,
        "data": data,
        "hardware": hardware,
        "budget_memory": budget_memory,
        "methods": tuple(as_names(methods)),
        "effective_batch_size": effective_batch_size,
        "max_length": max_length,
        "columns": columns,
        "on_bad_row": on_bad_row,
        "objective": objective,
        "max_time": max_time,
        "max_cost": max_cost,
        "price_per_hour": price_per_hour,
        "price_per_kwh": price_per_kwh,
        "max_adapter_parameters": max_adapter_parameters,
        "serve": serve,
        "full_data": full_data,
    }
    if resume:
        asked = {
            "trials": trials,
            "time_budget": time_budget,
            "seed": seed,
            "dry_run": dry_run or None,
            "allow_shorter": allow_shorter or None,
        }
        _refuse_options_of_resume(plan, inputs, asked)
        return _resume(output, on_event, on_step)
    _require_what_runs(dry_run)
    chosen = _plan_for_this_machine(_plan_of(plan, inputs, seed))
    if not dry_run:
        chosen = _plan_for_these_libraries(chosen)
    _refuse_what_is_not_trained(chosen)
    settings = RunSettings(
        trials=trials,
        time_budget_seconds=parse_duration(time_budget) if isinstance(time_budget, str) else time_budget,
        seed=chosen.seed if seed is None else seed,
        methods=_searched_methods(chosen),
        dry_run=dry_run,
        allow_shorter=allow_shorter,
    )
    folder = RunFolder.create(output or Path("runs") / time.strftime("%Y%m%d-%H%M%S"), chosen, settings)
    return _search(chosen, settings, folder, on_event, on_step)


def _given(inputs: Mapping[str, Any]) -> list[str]:
    left_out: tuple[object, ...] = (None, (), {})
    defaults = {"hardware": "auto", "on_bad_row": "error", "objective": "balanced", "full_data": False}
    return [name for name, value in inputs.items() if value not in left_out and value != defaults.get(name)]


def _refuse_options_of_resume(plan: object, inputs: Mapping[str, Any], asked: Mapping[str, object]) -> None:
    given = _given({"plan": plan, **inputs}) + [name for name, value in asked.items() if value is not None]
    if given:
        raise InvalidInputError(
            f"a resumed run goes on with what it was started with; leave out {', '.join(given)}, or start another run"
        )


def _require_what_runs(dry_run: bool) -> None:
    from autopeft.engine.stack import require_training_stack

    if not dry_run:
        require_training_stack("autopeft run")
    elif importlib.util.find_spec("plotly") is None:
        raise MissingExtraError("the report of a dry run")


def _plan_of(plan: str | Path | Recommendation | None, inputs: dict[str, Any], seed: int | None) -> Recommendation:
    if plan is None:
        if inputs["model"] is None or inputs["data"] is None:
            raise InvalidInputError("give a plan.json, or a model and data to make a plan from (--model and --data)")
        return suggest(**inputs, seed=seed or 0)
    given = _given(inputs)
    if given:
        raise InvalidInputError(
            f"the plan already says {', '.join(given)}; leave them out, or make a new plan: autopeft suggest ..."
        )
    chosen = plan if isinstance(plan, Recommendation) else read_plan(plan)
    _refuse_changed_data(chosen)
    return chosen


def _plan_for_this_machine(plan: Recommendation) -> Recommendation:
    """Returns the plan priced on the device that will train; unchanged if it was made for this machine as it is.

    Its data files are named so that the run can be resumed from any folder.
    """
    from autopeft.engine.device import unverified_note
    from autopeft.profiling.hardware import load_hardware
    from autopeft.recommend import reprice

    files = tuple(str(Path(file).absolute()) for file in plan.data.files)
    plan = replace(plan, data=replace(plan.data, files=files))
    present = load_hardware("cpu" if plan.inputs.hardware.strip().lower() == "cpu" else "auto")
    unverified = unverified_note(present.device.kind)
    if unverified is not None:
        logger.warning("%s", unverified)
    if _same_device(plan.hardware, present):
        # Of several like devices another one can be the free one now.
        return replace(plan, hardware=present)
    renewed = reprice(plan, present)
    for note in renewed.notes[:1]:
        logger.info("%s", note)
    return renewed


def _plan_for_these_libraries(plan: Recommendation) -> Recommendation:
    """Returns the plan with its candidates traced anew if it was made for other versions than are installed."""
    from autopeft.memory.trace import trace_memory
    from autopeft.memory.tracing.versions import installed_versions
    from autopeft.recommend import retrace

    renewed = retrace(plan, installed_versions(), trace_memory)
    if renewed is not plan:
        logger.info("%s", renewed.notes[0])
    return renewed


def _factory_for_these_libraries(plan: Recommendation) -> CandidateSource:
    from autopeft.memory.trace import trace_memory
    from autopeft.memory.tracing.versions import installed_versions
    from autopeft.recommend import factory_for

    return factory_for(plan, installed_versions(), trace_memory)


def _same_device(planned: HardwareProfile, present: HardwareProfile) -> bool:
    """Returns whether a plan still holds: the same device, and what it counted on still free (2 % less is noise)."""
    before, now = planned.device, present.device
    like = (before.name, before.kind, before.total_memory_bytes) == (now.name, now.kind, now.total_memory_bytes)
    return planned.origin == "probed" and like and now.free_memory_bytes >= 0.98 * before.free_memory_bytes


def _refuse_changed_data(plan: Recommendation) -> None:
    from autopeft.profiling.dataset import hash_files

    missing = next((file for file in plan.data.files if not Path(file).exists()), None)
    if missing is not None:
        raise DataError(
            f"the plan names the data {missing}, which is not there; was it moved? make a new plan: "
            "autopeft suggest ... -o plan.json"
        )
    found = hash_files(plan.data.files)
    if found != plan.data.content_hash:
        raise RunFolderError(
            f"the data has changed since the plan was made: {plan.data.source} has hash {found[:12]}, the plan says "
            f"{plan.data.content_hash[:12]}; make a new plan: autopeft suggest ... -o plan.json"
        )


def _refuse_what_is_not_trained(plan: Recommendation) -> None:
    """Raises for models and data that can be priced but not yet trained; half right would be wrong."""
    from autopeft.profiling.dataset import why_not_trained
    from autopeft.recommend.runnable import encoder_problem

    untrained = encoder_problem(plan.model)
    if untrained is not None:
        raise ModelError(untrained)
    problem = why_not_trained(plan.data.format, plan.data.source)
    if problem is not None:
        raise DataError(problem)


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
    try:
        plan, settings = folder.load_plan(), folder.load_settings()
        _require_what_runs(settings.dry_run)
        _refuse_changed_data(plan)
    except BaseException:
        folder.close()
        raise
    return _search(plan, settings, folder, on_event, on_step)


def _search(
    plan: Recommendation,
    settings: RunSettings,
    folder: RunFolder,
    on_event: Callable[[Event], None] | None,
    on_step: StepWatcher | None,
) -> Report:
    from autopeft.search import run_search

    with folder:
        runner = _runner(plan, settings, folder, on_step)
        try:
            source = None if settings.dry_run else _factory_for_these_libraries(plan)
            run_search(plan, settings, folder, runner, on_event=on_event or _ignore, source=source)
        except BaseException as error:
            shown = _error_to_show(error, folder)
            _clear_up(plan, folder, runner, withdraw=shown is error and folder.may_be_withdrawn())
            if shown is error:
                raise
            raise shown from error
        runner.close()
        _write_reports(plan, folder)
        return _report_of(folder)


def _clear_up(plan: Recommendation, folder: RunFolder, runner: Runner, *, withdraw: bool) -> None:
    """Ends the worker and reports what there is; its own errors are logged, for they must not hide the real one.

    A run that failed before there was anything to go on with is withdrawn instead, and its folder is free again.
    """

    def report() -> None:
        _write_reports(plan, folder)

    last = ("give its folder free", folder.withdraw) if withdraw else ("report", report)
    for what, action in (("end the worker", runner.close), last):
        try:
            action()
        except Exception as error:
            logger.info("after an error the run could not %s either: %s", what, error)


def _error_to_show(error: BaseException, folder: RunFolder) -> BaseException:
    """Returns what the caller shall see of an error: what the user can do, where that is known."""
    go_on = f"autopeft run --resume --output {folder.path}"
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRunError(f"interrupted; what is finished is kept; go on with: {go_on}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFolderError(f"no space left on the disk of {folder.path}; free some, then go on with: {go_on}")
    return error


def _runner(plan: Recommendation, settings: RunSettings, folder: RunFolder, on_step: StepWatcher | None) -> Runner:
    if settings.dry_run:
        from autopeft.training.fake import FakeRunner, FakeWorld

        return FakeRunner(FakeWorld.of_plan(plan))
    from autopeft.training.client import WorkerRunner

    return WorkerRunner(folder.worker_log, on_step)


def _write_reports(plan: Recommendation, folder: RunFolder) -> None:
    """Writes report.md, report.html and, with a verdict, recipe.yaml and the model card, from what the folder holds."""
    from autopeft.report import RunRecord, model_card, recipe_yaml, render_html, render_markdown

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
        if folder.adapter.is_dir():
            folder.write_report(folder.model_card, model_card(record))


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
