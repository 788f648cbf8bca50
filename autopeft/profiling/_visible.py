"""Which of a machine's CUDA devices a process may use, from its environment variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopeft.errors import HardwareError

# The empty text and -1 are CUDA's own; Slurm writes NoDevFiles into jobs that asked for no GPU.
_HIDES_ALL = frozenset({"", "-1", "NoDevFiles"})
INSTEAD = "to plan without it, name a device (autopeft hardware lists them), or give --hardware cpu for the processor"


def hides_all(visible: str | None) -> bool:
    """Returns whether the value of CUDA_VISIBLE_DEVICES leaves no device, whatever the machine has."""
    return visible is not None and visible.split(",")[0].strip() in _HIDES_ALL


def visible_indices(
    visible: str | None,
    uuids: Sequence[str],
    parents: Sequence[int] | None = None,
    variable: str = "CUDA_VISIBLE_DEVICES",
) -> list[int]:
    """Returns the positions in ``uuids`` that the value of CUDA_VISIBLE_DEVICES selects, in its order.

    As in CUDA, an entry is a GPU's number, the beginning of one GPU's UUID or the whole UUID of a MIG instance; a GPU
    that is split stands for its first instance, and -1 ends the list. CUDA also stops, in silence, at an entry that
    names no device; here that is an error, since a run would use fewer devices than its user wrote.

    Args:
        visible: None selects all.
        uuids: of all devices, in the driver's order; MIG instances in place of the GPU that they divide.
        parents: number of the GPU that each device is or is a part of; None where nothing is split.
        variable: whose value it is; AMD's follow the same rules.
    """
    if visible is None:
        return list(range(len(uuids)))
    numbers = list(range(len(uuids))) if parents is None else list(parents)
    chosen: list[int] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry == "-1":
            break
        index = _index_of(entry, uuids, numbers)
        if index is None or index in chosen:
            problem = "names no single device of this machine" if index is None else "stands there twice"
            raise HardwareError(
                f"{variable}={visible!r}: {entry!r} {problem}; allowed are 0 to {max(numbers)}"
                f" and {', '.join(uuids)}; {INSTEAD}"
            )
        chosen.append(index)
    return chosen


def _index_of(entry: str, uuids: Sequence[str], numbers: Sequence[int]) -> int | None:
    if entry.isdecimal():
        return numbers.index(int(entry)) if int(entry) in numbers else None
    if entry.startswith("MIG-"):
        return uuids.index(entry) if entry in uuids else None
    matches = [index for index, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def order_notes(names: set[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the warning that NVML numbers by bus and CUDA, unless told otherwise, puts the fastest first."""
    if len(names) < 2 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return ()
    return (
        f"this machine has different GPUs ({', '.join(sorted(names))}), which CUDA may number in another order;"
        " set CUDA_DEVICE_ORDER=PCI_BUS_ID to be sure that the first one here is the first one there",
    )
