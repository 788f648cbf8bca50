"""Which device torch computes on, and whether the installed torch can; there is no silent way to the processor."""

from __future__ import annotations

from autopeft.errors import HardwareError
from autopeft.specs import UNVERIFIED_KINDS, DeviceKind

_TORCH_NAMES: dict[DeviceKind, DeviceKind] = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "mps": "mps", "cpu": "cpu"}
_BUILDS: dict[DeviceKind, str] = {
    "cuda": "a build for CUDA and a driver for it (https://pytorch.org/get-started/locally)",
    "rocm": "a build for ROCm (https://pytorch.org/get-started/locally)",
    "xpu": "a build for Intel GPUs (pip install torch --index-url https://download.pytorch.org/whl/xpu)",
    "mps": "macOS 14 or newer on an Apple chip",
}
UNVERIFIED = (
    "unverified: nobody has checked autopeft's predictions and trainings on {kind} devices yet; compare the estimates"
    " with what you measure, and report it"
)


def torch_device(kind: DeviceKind) -> DeviceKind:
    """Returns the name by which torch knows a kind of device: ROCm's are called "cuda"."""
    return _TORCH_NAMES[kind]


def unverified_note(kind: DeviceKind) -> str | None:
    """Returns what to tell about a kind of device that nothing was checked on; None for the others."""
    return UNVERIFIED.format(kind=kind) if kind in UNVERIFIED_KINDS else None


def require_device(kind: DeviceKind) -> None:
    """Checks that the installed torch can compute on a kind of device.

    Raises:
        HardwareError: with what is installed and what is needed. Nothing trains on the processor in its place.
    """
    import torch

    if kind == "cpu" or _is_usable(kind):
        return
    raise HardwareError(
        f"the plan is for a {kind} device, but the installed torch {torch.__version__} cannot use one; it takes"
        f" {_BUILDS[kind]}. Nothing was trained on the processor in its place: ask for that with --hardware cpu"
    )


def require_picked_device(planned: str, picked: str) -> None:
    """Checks that transformers and accelerate chose the device that the plan is for; environment variables move them.

    Args:
        planned: as torch calls it, with or without an index.
        picked: likewise.

    Raises:
        HardwareError: with both, and the variables that may be the reason.
    """
    wanted, found = planned.partition(":")[0], picked.partition(":")[0]
    if wanted == found:
        return
    raise HardwareError(
        f"the plan is for {wanted}, but transformers' Trainer chose {found}; nothing was trained there in its place. "
        "Unset ACCELERATE_USE_CPU and ACCELERATE_TORCH_DEVICE, or plan for that device with --hardware"
    )


def _is_usable(kind: DeviceKind) -> bool:
    import torch

    if kind == "mps":
        return bool(torch.backends.mps.is_available())
    if kind == "xpu":
        return bool(torch.xpu.is_available())
    is_rocm = torch.version.hip is not None
    return bool(torch.cuda.is_available()) and is_rocm == (kind == "rocm")
