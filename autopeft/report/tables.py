"""Tables for the terminal, 80 columns wide; the caller prints them with rich."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autopeft.methods import PeftMethod
from autopeft.recommend.rejections import grouped_lines
from autopeft.report.base_scores import base_scores_table
from autopeft.report.context import data_facts, model_facts
from autopeft.report.formats import (
    batch_label,
    display_name,
    format_interval,
    format_loss,
    format_optional,
    format_rate,
    format_seconds,
    joined,
    target_label,
)
from autopeft.report.hardware import DEVICE_COLUMNS, device_facts, device_row, hardware_facts, machine_facts
from autopeft.report.memory_breakdown import epoch_peaks_table
from autopeft.specs import (
    Claim,
    DatasetProfile,
    Finding,
    HardwareProfile,
    MemoryEstimate,
    MethodSpace,
    ModelSpec,
    RankedCandidate,
    Recommendation,
    Verdict,
)
from autopeft.units import GIB, format_amount, format_duration, format_gib

EXPLAINED = 3
"""Candidates whose own reasons are printed; the others' are in the plan."""

_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def suggest_table(plan: Recommendation) -> RenderableType:
    """Returns the ranked candidates with price and reasons, then what was rejected."""
    parts: list[RenderableType] = [
        *_untouched(plan),
        _heading(plan),
        _candidates(plan),
        Text(),
        *_trade_offs(plan),
        Text(),
    ]
    shared = _shared_reasons(plan.candidates)
    if shared:
        parts += [bold("Why, for all of them"), bullets(map(str, shared)), Text()]
    own = [_own_reasons(place, entry, shared) for place, entry in enumerate(plan.candidates[:EXPLAINED], 1)]
    if any(own):
        parts += [bold("Why, one by one"), *(part for part in own if part), *_more_reasons(plan), Text()]
    if plan.rejected:
        lines = grouped_lines((entry.method, entry.variant, entry.reason) for entry in plan.rejected)
        parts += [bold("Rejected"), bullets(lines), Text()]
    if plan.notes:
        parts += [bold("Notes"), bullets(plan.notes)]
    return Group(*parts)


def methods_table(methods: Iterable[PeftMethod], spaces: Mapping[str, MethodSpace]) -> RenderableType:
    """Returns the registry: every method with its rule, its purpose and its knobs."""
    table = plain_table(("method", 8), ("changed weight", 27), ("what it does", 42))
    for method in methods:
        space = spaces[method.name]
        searched = "" if space.searched_by_default else "; only when asked for: --method " + method.name
        purpose = f"{space.summary}{searched}\nsearches {joined(space.parameters)}\n{method.paper}"
        table.add_row(*map(plain_text, (method.name, method.update_rule, purpose)), end_section=True)
    return table


def hardware_table(profile: HardwareProfile) -> RenderableType:
    """Returns a machine's devices, the one that a plan uses in detail, and what a probe could not know."""
    end = [*_noted(profile.notes), *_sources(profile)]
    if profile.device_count == 1:
        return Group(_facts(hardware_facts(profile)), *end)
    devices = plain_table(*DEVICE_COLUMNS)
    for place, device in enumerate(profile.devices):
        devices.add_row(*map(plain_text, device_row(place, device)))
    chosen: list[RenderableType] = [bold("The device that a plan uses"), _facts(device_facts(profile.device))]
    return Group(_facts(machine_facts(profile)), Text(), devices, Text(), *chosen, *end)


def _sources(profile: HardwareProfile) -> list[RenderableType]:
    checked = f" (checked {profile.checked})" if profile.checked else ""
    return [bold(f"Sources{checked}"), bullets(profile.source.splitlines() or ["not stated"])]


def model_table(model: ModelSpec) -> RenderableType:
    """Returns a model's shape and its linear layers."""
    layers = plain_table(("layer", 22), ("in", 8), ("out", 8), ("count", 6), ("role", 10), ("bias", 5), ("4-bit", 6))
    for layer in model.linear_layers:
        flags = (layer.role, "yes" if layer.has_bias else "no", "yes" if layer.quantizable else "no")
        sizes = (f"{layer.in_features:,}", f"{layer.out_features:,}", f"{layer.count:,}")
        layers.add_row(*map(plain_text, (layer.name, *sizes, *flags)))
    return Group(_facts(model_facts(model)), layers, *_noted(model.notes))


def data_table(data: DatasetProfile) -> RenderableType:
    """Returns a data set's size and shape, and the findings, worst first."""
    found = [_finding(finding) for finding in data.findings] or [Text("No finding changes a decision.")]
    scores = data.base_scores
    untouched = [] if scores is None else [Text(), bold("The untouched base model"), base_scores_table(scores), Text()]
    return Group(_facts(data_facts(data)), *untouched, bold("Findings"), *found)


def estimate_table(estimate: MemoryEstimate) -> RenderableType:
    """Returns the predicted memory of one configuration, by component and by phase, and what it holds for."""
    facts = [
        ("required", format_gib(estimate.required_bytes)),
        ("peak allocated", f"{format_gib(estimate.peak_memory_bytes)} (± {estimate.relative_error:.0%})"),
        ("peak reserved", format_gib(estimate.peak_reserved_bytes)),
        *((f"  {name.replace('_', ' ')}", format_gib(size)) for name, size in estimate.components.items() if size),
        *((f"  peak in {name}", format_gib(size)) for name, size in estimate.phases.items()),
        ("trainable parameters", f"{estimate.trainable_parameters:,}"),
        ("time of a step", format_seconds(estimate.seconds_per_step)),
        ("found by", estimate.source.replace("_", " ")),
        *((("set by", estimate.peak_operation),) if estimate.peak_operation else ()),
        *((("versions", _versions(estimate)),) if estimate.versions else ()),
    ]
    batches = [] if estimate.epoch_peaks is None else [epoch_peaks_table(estimate.epoch_peaks)]
    return Group(_facts(facts), *batches, bold("Assumptions"), bullets(estimate.assumptions))


def _versions(estimate: MemoryEstimate) -> str:
    return ", ".join(f"{name} {version}" for name, version in estimate.versions.items())


def verdict_table(verdict: Verdict) -> RenderableType:
    """Returns the conclusion, the ranking of the methods, the comparisons, and what the budget cut."""
    ranking = plain_table(
        ("method", 10),
        ("r", 4),
        ("learning rate", 14),
        ("choose loss", 12),
        ("test loss", 10),
        ("against the first", 28),
    )
    for place, entry in enumerate(verdict.ranking):
        candidate = entry.candidate
        against_first = format_interval(entry.against_best) if place else "-"
        losses = (format_loss(entry.choose_loss), format_loss(entry.test_loss), against_first)
        settings = (entry.method, format_optional(candidate.r), format_rate(candidate.learning_rate))
        ranking.add_row(*map(plain_text, (*settings, *losses)))
    compared = plain_table(("full training, test split", 26), ("loss", 8), ("winner against it (95 %)", 34))
    against = {comparison.right: comparison for comparison in verdict.comparisons if comparison.left == "winner"}
    for name, loss in verdict.losses.items():
        shown = format_interval(against[name]) if name in against else ""
        compared.add_row(*map(plain_text, (display_name(name), format_loss(loss), shown)))
    parts: list[RenderableType] = [
        bold("Verdict"),
        plain_text(verdict.conclusion),
        Text(),
        ranking,
        Text(),
        compared,
        Text(),
    ]
    for title, lines in (("What the budget cut", verdict.cut), ("What the figures do not cover", verdict.caveats)):
        if lines:
            parts += [bold(title), bullets(lines)]
    return Group(*parts)


def _untouched(plan: Recommendation) -> list[RenderableType]:
    """Returns what the untouched base model scores, before all else: it may make the rest needless."""
    scores = plan.data.base_scores
    if scores is None or scores.advice is None:
        return []
    return [bold(scores.advice.sentence), base_scores_table(scores), Text()]


def _heading(plan: Recommendation) -> Text:
    device = plan.hardware.device
    batch = f"{plan.data.example_count:,} examples, {plan.data.mean_tokens:.0f} tokens on average"
    memory = f"{format_gib(device.free_memory_bytes)} free"
    lines = (
        f"model     {plan.model.id}",
        f"data      {plan.data.source}: {batch}",
        f"hardware  {device.name}: {memory}{_of_several(plan.hardware)}",
        *([] if plan.inputs.objective == "balanced" else [f"objective {plan.inputs.objective}"]),
        *([f"serve     {plan.inputs.serve}"] if plan.inputs.serve else []),
    )
    return plain_text("\n".join(lines))


def _of_several(hardware: HardwareProfile) -> str:
    count = hardware.device_count
    return "" if count == 1 else f" (device {hardware.device_index} of {count}; each candidate trains on one)"


def _candidates(plan: Recommendation) -> Table:
    table = plain_table(
        ("#", 2), ("method", 8), ("r", 3), ("alpha", 5), ("targets", 11), ("base", 5), ("batch\nx acc.", 6),
        ("learn.\nrate", 7), ("GiB of\navailable", 13), ("time", 7),
    )  # fmt: skip
    for place, entry in enumerate(plan.candidates, 1):
        candidate = entry.candidate
        cells = (
            str(place),
            candidate.method,
            format_optional(candidate.r),
            format_optional(candidate.lora_alpha),
            target_label(candidate, plan.model),
            _base_label(entry),
            batch_label(candidate),
            format_rate(candidate.learning_rate),
            f"{_gib(entry.estimate.required_bytes)}/{_gib(entry.available_bytes)}",
            "unknown" if entry.predicted_seconds is None else format_duration(entry.predicted_seconds),
        )
        table.add_row(*map(plain_text, cells))
    return table


def _trade_offs(plan: Recommendation) -> list[RenderableType]:
    """Returns what each candidate gives and takes, and whether another one beats it in everything."""
    table = plain_table(
        ("#", 2), ("method", 8), ("base", 5), ("quality", 7), ("GiB", 7), ("time", 8), ("cost", 8), ("max kWh", 8),
        ("on front", 8),
    )  # fmt: skip
    for place, entry in enumerate(plan.candidates, 1):
        cells = (
            str(place),
            entry.candidate.method,
            _base_label(entry),
            f"{entry.quality_points:+.2f}",
            _gib(entry.estimate.required_bytes),
            "unknown" if entry.predicted_seconds is None else format_duration(entry.predicted_seconds),
            _amount(entry.predicted_cost),
            _amount(entry.energy_kwh),
            "yes" if entry.on_front else "no",
        )
        table.add_row(*map(plain_text, cells))
    return [bold("Trade-offs: points of quality, memory, time, cost of one full training"), table]


def _amount(amount: float | None) -> str:
    return "unknown" if amount is None else format_amount(amount)


def _gib(size_bytes: int) -> str:
    size = size_bytes / GIB
    return f"{size:.2f}" if size < 100 else f"{size:.1f}"


def _base_label(entry: RankedCandidate) -> str:
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    quantization = entry.candidate.quantization
    return short[entry.candidate.dtype] if quantization == "none" else quantization


def _shared_reasons(candidates: Sequence[RankedCandidate]) -> tuple[Claim, ...]:
    if len(candidates) < 2:
        return ()
    first, *others = (entry.reasons for entry in candidates)
    return tuple(reason for reason in first if all(reason in reasons for reasons in others))


def _own_reasons(place: int, entry: RankedCandidate, shared: tuple[Claim, ...]) -> RenderableType | None:
    own = [reason for reason in entry.reasons if reason not in shared]
    if not own:
        return None
    return Group(plain_text(f"{place}  {entry.candidate.method} ({_base_label(entry)})"), bullets(map(str, own)))


def _more_reasons(plan: Recommendation) -> list[RenderableType]:
    left = len(plan.candidates) - EXPLAINED
    if left <= 0:
        return []
    which = "the other" if left == 1 else f"the other {left}"
    return [plain_text(f"The reasons for {which} are in the plan: --json prints it, -o plan.json keeps it.")]


def _finding(finding: Finding) -> RenderableType:
    line = Text.assemble((finding.severity, _SEVERITY_STYLES[finding.severity]), "  ", plain_text(finding.message))
    advice = [f"what to do: {finding.advice}"] if finding.advice else []
    return Group(line, bullets([*finding.examples, *advice]))


def _noted(notes: Sequence[str]) -> list[RenderableType]:
    return [bold("Notes"), bullets(notes)] if notes else []


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(width=24, overflow="fold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(plain_text(name, "bold"), plain_text(value))
    return table


def plain_table(*columns: tuple[str, int]) -> Table:
    """Returns an empty table with columns of names and largest widths."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name, width in columns:
        table.add_column(name, max_width=width, overflow="fold")
    return table


def bullets(lines: Iterable[str]) -> RenderableType:
    """Returns lines as a list, each with a dash."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row("-", plain_text(line))
    return Padding(grid, (0, 0, 0, 2))


def bold(text: str) -> Text:
    """Returns a heading."""
    return Text(text, style="bold")


def plain_text(text: str, style: str = "") -> Text:
    """Returns text in which neither rich's markup nor a terminal's control characters mean anything."""
    return Text(re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text), style=style)
