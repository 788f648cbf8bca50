"""Predicts the seconds of a traced step: a roofline for kernels of each class and size, and the host that starts them.

Nothing here needs torch: the trace counts, this module knows devices. docs/memory-model.md says how well it predicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from autopeft.memory.rates import DeviceRates, HostRates, device_rates, host_rates
from autopeft.specs import Device, TimeEstimate

if TYPE_CHECKING:
    from autopeft.memory.tracing.request import KernelCost

PHASES = ("forward", "backward", "optimizer")
PRODUCTS = ("matmul", "attention")
"""Kernel classes that are measured against the FLOP/s of their dtype."""


def seconds_from_costs(costs: Iterable[KernelCost], device: Device | None) -> TimeEstimate:
    """Returns the time of one traced optimizer step.

    The host starts kernels ahead of the device, which works them off in order:

        host += calls x seconds a call + kernels x seconds a launch
        device = max(device + sum of kernels, host)

    phase by phase; a kernel takes ``latency + max(FLOPs / reached FLOP/s, bytes / reached bandwidth)``. A copy between
    host and device takes ``bytes / speed`` of both, since memory that is not pinned makes each wait for the other.

    Leaves out data loading, communication between devices, and all that a loop does between steps.

    Args:
        costs: ``TraceAnswer.costs``.
        device: what trains; None leaves the seconds unknown.
    """
    counted = list(costs)
    flops = sum(cost.flops for cost in counted if cost.kind in PRODUCTS)
    if device is None:
        return TimeEstimate(seconds_per_step=None, flops_per_step=flops, assumptions=("no device was named",))
    rates = device_rates(device)
    missing = rates.missing({cost.dtype for cost in counted if cost.kind in PRODUCTS})
    if missing:
        return TimeEstimate(seconds_per_step=None, flops_per_step=flops, assumptions=(missing,))
    seconds = _timeline(counted, rates, host_rates())
    return TimeEstimate(seconds_per_step=seconds, flops_per_step=flops, assumptions=rates.assumptions)


def phase_seconds(costs: Iterable[KernelCost], device: Device) -> dict[str, tuple[float, float]]:
    """Returns what each phase keeps busy, as ``(host seconds, device seconds)``.

    Args:
        costs: ``TraceAnswer.costs``.
        device: one whose speed is known.
    """
    counted = list(costs)
    rates, host = device_rates(device), host_rates()
    return {phase: _busy([cost for cost in counted if cost.phase == phase], rates, host) for phase in PHASES}


def _timeline(costs: list[KernelCost], rates: DeviceRates, host: HostRates) -> float:
    started = finished = 0.0
    for phase in PHASES:
        host_seconds, device_seconds = _busy([cost for cost in costs if cost.phase == phase], rates, host)
        started += host_seconds
        finished = max(finished + device_seconds, started)
    return finished


def _busy(costs: list[KernelCost], rates: DeviceRates, host: HostRates) -> tuple[float, float]:
    device_seconds = sum(_kernel_seconds(cost, rates) for cost in costs)
    if not rates.queued:
        return 0.0, device_seconds
    moved_bytes = sum(cost.moved_bytes for cost in costs if cost.kind == "transfer")
    waiting = moved_bytes / host.transfer_bytes_per_second
    host_seconds = sum(host.seconds(cost.phase, cost.kind, cost.launches) for cost in costs)
    return host_seconds + waiting, device_seconds + waiting


def _kernel_seconds(cost: KernelCost, rates: DeviceRates) -> float:
    """Returns the device's time for the kernels of one class and size."""
    if cost.kind in ("call", "sync", "transfer") or not cost.launches:
        return 0.0
    moving = rates.seconds_to_move(cost.kind, cost.moved_bytes, cost.moved_bytes / cost.launches)
    computing = rates.seconds_to_compute(cost.kind, cost.dtype, cost.flops) if cost.kind in PRODUCTS else 0.0
    return cost.launches * rates.latency_seconds(cost.kind) + max(moving, computing)
