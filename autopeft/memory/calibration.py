"""Corrects predictions by what this machine measured; every step is arithmetic on the stored observations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autopeft.engine.stack import stack_versions
from autopeft.memory.calibration_store import (
    KINDS,
    CalibrationStore,
    MeasuredKind,
    Observation,
    predicted_bytes,
    traits_of,
    versions_of,
)
from autopeft.specs import Candidate, Device, HardwareProfile, MemoryEstimate, ModelSpec, OptionValue

Scope = Literal["configuration", "family", "device"]

RATIO_LIMIT = 2.0
"""No error of the memory model is believed to be larger (its widest stated one is 25 %). A measurement beyond it counts
as this much; running out of memory with more than this much to spare is put down to another user of the device."""

SIZE_RANGE = 4.0
"""Only predictions within this factor are compared: what formulas leave out has fixed parts (workspaces, libraries),
whose share of a small training says nothing about a large one."""

RESIDENT_SIZE_RANGE = 1.5
"""The same for resident memory, whose fixed part grows with the size of a step: beside its tensors a tiny model's
process took 0.55 GiB (`autopeft calibrate`, torch 2.13), a SmolLM2-135M-shaped one 1.0 GiB (see overhead.py)."""

UNCERTAIN_COMPONENTS = ("activations", "logits", "temporaries")
"""What a correction changes first: weights, gradients and optimizer states are counted exactly."""

RESIDENT_NOTE = (
    "memory of the process holds libraries and freed memory not yet returned, more of it the longer a worker trains: "
    "it is known within about 20 %, and is no measure of the tensors"
)
"""Measured with torch 2.13 on two cores, tiny llama: eight two-step trainings in one worker 578 to 610 MiB; the four
trainings of one `autopeft run` in one worker, scoring included, 909, 941, 1123 and 1249 MiB."""

_SCOPES: tuple[Scope, ...] = ("configuration", "family", "device")
_SCOPE_TEXT = {"configuration": "of this kind", "family": "of this model family", "device": "of other models"}
_KIND_TEXT = {"max_allocated": "allocated", "max_reserved": "reserved", "resident": "resident"}

Pricer = Callable[..., MemoryEstimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The estimate that is to be corrected, as observations are compared with it.

    Attributes:
        data: content hash of the data that it is for; None for full rows.
        sizes: its bytes by kind of measurement.
    """

    device: str
    versions: Mapping[str, str]
    model_type: str
    traits: Mapping[str, OptionValue]
    data: str | None
    predicted_by: str
    sizes: Mapping[MeasuredKind, int]
    relative_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """How far predictions of one kind were off.

    Attributes:
        factor: what the prediction is multiplied by.
        relative_error: half-width of the corrected figure's interval, as a share of it.
        runs: measurements that it is made of.
        bounds: one-sided observations that raised it.
        scope: how like the estimate the measured trainings are.
    """

    kind: MeasuredKind
    factor: float
    relative_error: float
    runs: int
    bounds: int
    scope: Scope

    @property
    def sentence(self) -> str:
        """What the correction is, for an estimate's assumptions."""
        figure = f"{_KIND_TEXT[self.kind]} memory x {self.factor:.3f} (± {self.relative_error:.1%})"
        if not self.runs:
            return f"raised by {_runs(self.bounds)} on this device that needed more: {figure}"
        raised = f", raised by {_runs(self.bounds)} that needed more" if self.bounds else ""
        return f"calibrated with {_runs(self.runs)} {_SCOPE_TEXT[self.scope]} on this device{raised}: {figure}"


def correction(observations: Iterable[Observation], wanted: Wanted, kind: MeasuredKind) -> Correction | None:
    """Returns the correction of one kind; None where nothing comparable was observed.

    Compared are observations of the same device, versions, kind and way of predicting, whose prediction lies within
    SIZE_RANGE (RESIDENT_SIZE_RANGE) of the wanted one. Each gives a ratio x: measured / predicted for the allocator's
    figures; for resident memory 1 + (measured - predicted) / wanted, because its error is mostly the fixed size of the
    process and not a share.

    - Two-sided are measurements of full rows, and of the same data. The narrowest scope that has any is used:
      same family and traits, else same family, else same device. With m the median of log x over these n,
      log factor = m if m > 0, else m * n / (n + 1): an upward correction counts in full, since too low a prediction
      ends out of memory; a downward one is shrunk towards none as if one exact prediction had been seen before.
    - One-sided are, of the same family and traits: trainings that ran out of memory (the need is above x) and
      measurements on other data, whose rows may have been shorter than the prediction's (the need is at least x). The
      largest of the former and the median of the latter raise the factor, and never lower it.

    The interval counts the estimate's own error e as one more observation: sqrt((e^2 + sum (log x - log factor)^2) /
    (n + 1)). The median keeps one odd run from deciding; ratios are cut at RATIO_LIMIT.

    Left out: how the error varies with rank, batch and length within the scope. The choice of a median, of one
    pseudo-observation and of the limits is a judgement, not fitted to anything.
    """
    rows = [row for row in observations if row.kind == kind and _comparable(row, wanted)]
    scope, measured = _two_sided(rows, wanted)
    logs = [_log_ratio(row, wanted) for row in measured]
    middle = statistics.median(logs) if logs else 0.0
    unraised = middle if middle > 0 else middle * len(logs) / (len(logs) + 1)
    bounds = [bound for bound in _lower_bounds(rows, wanted) if bound > unraised]
    if not logs and not bounds:
        return None
    log_factor = max([unraised, *bounds])
    squares = math.fsum((log - log_factor) ** 2 for log in logs)
    return Correction(
        kind=kind,
        factor=math.exp(log_factor),
        relative_error=math.sqrt((wanted.relative_error**2 + squares) / (len(logs) + 1)),
        runs=len(logs),
        bounds=len(bounds),
        scope=scope,
    )


def apply(estimate: MemoryEstimate, corrections: Sequence[Correction]) -> MemoryEstimate:
    """Returns the corrected estimate, which says so; without corrections the same one.

    Reserved memory follows allocated memory, and required memory the reserved, where they were not measured themselves.
    Context and libraries stay as they are. The interval is the allocated memory's, else the reserved memory's; resident
    memory has its own, looser one, in its sentence.
    """
    if not corrections:
        return estimate
    by_kind = {found.kind: found for found in corrections}
    allocated, reserved, resident = (by_kind.get(kind) for kind in KINDS)
    factor = allocated.factor if allocated else 1.0
    phases = {name: round(size * factor) for name, size in estimate.phases.items()}
    peak = round(estimate.peak_memory_bytes * factor)
    held_factor = _reserved_factor(factor, reserved)
    held = max(peak, round(estimate.peak_reserved_bytes * held_factor))
    required = max(peak, round((estimate.required_bytes - estimate.context) * held_factor)) + estimate.context
    if resident is not None:
        required = max(held, round(estimate.required_bytes * resident.factor))
    return replace(
        estimate,
        peak_memory_bytes=peak,
        peak_reserved_bytes=held,
        overhead_bytes=required - peak,
        required_bytes=required,
        components=_components(estimate.components, peak),
        phases=phases,
        phase_components={name: _components(parts, phases[name]) for name, parts in estimate.phase_components.items()},
        source="calibrated",
        uncorrected=estimate,
        relative_error=next(
            (found.relative_error for found in (allocated, reserved) if found), estimate.relative_error
        ),
        assumptions=(*estimate.assumptions, *(found.sentence for found in corrections)),
    )


class Calibration:
    """What is known of one device, as it was when this was made: a plan does not change while it is being made."""

    def __init__(self, observations: Iterable[Observation], device: Device, data: str | None = None) -> None:
        """Keeps what holds for the device and the installed versions.

        Args:
            observations: of any device.
            device: what estimates are for.
            data: content hash of the data that they are for; None for full rows.
        """
        self._device = device.name
        self._data = data
        self._versions = versions_of(stack_versions())
        self._rows = [row for row in observations if row.device == device.name and row.versions == self._versions]

    def corrected(self, estimate: MemoryEstimate, candidate: Candidate, model: ModelSpec) -> MemoryEstimate:
        """Returns an estimate, corrected where something comparable was observed."""
        if not self._rows or estimate.source == "calibrated":
            return estimate
        wanted = Wanted(
            device=self._device,
            versions=self._versions,
            model_type=model.model_type,
            traits=traits_of(candidate),
            data=self._data,
            predicted_by=estimate.source,
            sizes={kind: predicted_bytes(estimate, kind) for kind in KINDS},
            relative_error=estimate.relative_error,
        )
        found = [correction(self._rows, wanted, kind) for kind in KINDS]
        return apply(estimate, [each for each in found if each is not None])

    def pricer(self, price: Pricer) -> Pricer:
        """Returns ``price``, whose estimates are corrected: ``estimate_memory``, ``trace_memory`` or their like."""

        def corrected(
            candidate: Candidate, model: ModelSpec, device: Device | None, *, sequence_length: int
        ) -> MemoryEstimate:
            return self.corrected(price(candidate, model, device, sequence_length=sequence_length), candidate, model)

        return corrected


def calibration_for(hardware: HardwareProfile, data: str | None = None) -> Calibration | None:
    """Returns what is known of the device that this machine has; None for a device described by catalogue or file.

    The same inputs and catalogue device give the same plan everywhere, so what this machine measured is no part of it.
    """
    if hardware.origin != "probed":
        return None
    return Calibration(CalibrationStore().read(), hardware.device, data)


def calibrated(
    estimate: MemoryEstimate,
    candidate: Candidate,
    model: ModelSpec,
    hardware: HardwareProfile,
    data: str | None = None,
) -> MemoryEstimate:
    """Returns an estimate corrected by what this machine measured; unchanged for another machine's device.

    Args:
        estimate: as it was predicted.
        candidate: what it is for.
        model: its base model.
        hardware: whose first device it is for.
        data: content hash of the data that it is for; None for full rows.
    """
    known = calibration_for(hardware, data)
    return estimate if known is None else known.corrected(estimate, candidate, model)


def _comparable(row: Observation, wanted: Wanted) -> bool:
    same = (row.device, row.versions, row.predicted_by) == (wanted.device, wanted.versions, wanted.predicted_by)
    apart = row.predicted_bytes / wanted.sizes[row.kind]
    widest = RESIDENT_SIZE_RANGE if row.kind == "resident" else SIZE_RANGE
    return same and 1 / widest <= apart <= widest


def _two_sided(rows: Sequence[Observation], wanted: Wanted) -> tuple[Scope, list[Observation]]:
    found = [row for row in rows if row.measured_bytes is not None and row.data in (None, wanted.data)]
    for scope in _SCOPES:
        inside = [row for row in found if _within(row, wanted, scope)]
        if inside:
            return scope, inside
    return "configuration", []


def _within(row: Observation, wanted: Wanted, scope: Scope) -> bool:
    family = row.model_type == wanted.model_type
    return {
        "configuration": family and row.traits == wanted.traits,
        "family": family,
        "device": True,
    }[scope]


def _lower_bounds(rows: Sequence[Observation], wanted: Wanted) -> list[float]:
    """Returns the logs that the factor is known not to be below; of measurements on other data only their median."""
    alike = [row for row in rows if _within(row, wanted, "configuration")]
    limits = [_log_ratio(row, wanted, cut=False) for row in alike if row.measured_bytes is None]
    believed = [limit for limit in limits if limit <= math.log(RATIO_LIMIT)]
    others = [
        _log_ratio(row, wanted)
        for row in alike
        if row.measured_bytes is not None and row.data not in (None, wanted.data)
    ]
    return believed + ([statistics.median(others)] if others else [])


def _log_ratio(row: Observation, wanted: Wanted, *, cut: bool = True) -> float:
    if row.kind == "resident":
        ratio = 1 + (row.found_bytes - row.predicted_bytes) / wanted.sizes[row.kind]
    else:
        ratio = row.found_bytes / row.predicted_bytes
    ratio = max(1 / RATIO_LIMIT, ratio)
    return math.log(min(RATIO_LIMIT, ratio) if cut else ratio)


def _reserved_factor(allocated: float, reserved: Correction | None) -> float:
    if reserved is None:
        return allocated
    # Without a measurement a bound only raises what the allocated memory says.
    return reserved.factor if reserved.runs else max(allocated, reserved.factor)


def _components(components: Mapping[str, int], peak: int) -> dict[str, int]:
    """Returns the components at another peak: what is counted exactly stays, unless the rest cannot take the change."""
    total = sum(components.values())
    loose = [name for name in components if name in UNCERTAIN_COMPONENTS]
    room = sum(components[name] for name in loose)
    if room == 0 or room + peak - total < 0:
        loose, room = list(components), total
    changed = {name: round(components[name] * (room + peak - total) / room) for name in loose}
    largest = max(loose, key=lambda name: components[name])
    changed[largest] += peak - total + room - sum(changed.values())
    return {**components, **changed}


def _runs(count: int) -> str:
    return f"{count} run" + ("" if count == 1 else "s")
