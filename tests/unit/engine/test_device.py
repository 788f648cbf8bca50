"""Devices that the installed torch cannot use are refused; nothing falls back to the processor."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from autopeft.engine.device import require_device, torch_device, unverified_note
from autopeft.errors import HardwareError
from autopeft.specs import DeviceKind

ON_A_PROCESSOR = not (torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available())


@pytest.mark.skipif(not ON_A_PROCESSOR, reason="this torch can use an accelerator")
@pytest.mark.parametrize("kind", [kind for kind in get_args(DeviceKind) if kind != "cpu"])
def test_a_torch_that_cannot_use_the_plans_device_is_refused_with_what_it_takes(kind: DeviceKind) -> None:
    with pytest.raises(HardwareError, match=f"a {kind} device, but the installed torch .* --hardware cpu"):
        require_device(kind)


def test_the_processor_can_always_be_used() -> None:
    require_device("cpu")


def test_rocm_is_cuda_to_torch_and_every_kind_has_a_name_that_torch_knows() -> None:
    assert torch_device("rocm") == "cuda"
    assert {torch.device(torch_device(kind)).type for kind in get_args(DeviceKind)} == {"cuda", "xpu", "mps", "cpu"}


def test_what_nothing_was_checked_on_is_called_unverified() -> None:
    said = {kind for kind in get_args(DeviceKind) if unverified_note(kind) is not None}
    assert said == {"rocm", "xpu", "mps"}
    assert "unverified" in (unverified_note("rocm") or "")
