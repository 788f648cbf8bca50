"""What a plan says of the devices it is for."""

from __future__ import annotations

from autopeft.engine.device import unverified_note
from autopeft.specs import HardwareProfile


def device_notes(hardware: HardwareProfile) -> tuple[str, ...]:
    """Returns which of several devices is used and why, and what nothing was checked on; one sentence each."""
    notes = []
    if hardware.device_count > 1:
        notes.append(
            f"one candidate trains on one of the {hardware.device_count} devices, here {hardware.choice}; memory of"
            " several devices is not added up"
        )
    unverified = unverified_note(hardware.device.kind)
    return tuple(notes) if unverified is None else (*notes, unverified)


def one_device_hint(hardware: HardwareProfile) -> str:
    """Returns what to add to an error about memory where there are several devices; "" with one."""
    if hardware.device_count == 1:
        return ""
    return f" (of {hardware.device_count} devices one trains a candidate: {hardware.choice})"
