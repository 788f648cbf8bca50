"""Makes fake tensors without asking torch's dispatcher, which takes most of the time that building a model takes."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def fake_of(mode: FakeTensorMode, tensor: torch.Tensor, device: str = "cpu") -> Any:
    """Returns a fake tensor of a mode with the shape and dtype of a tensor, and a storage of its own."""
    with torch._C._DisableTorchDispatch():
        return FakeTensor(mode, torch.empty_like(tensor, device="meta", requires_grad=False), torch.device(device))


def as_parameter(tensor: Any, requires_grad: bool = False) -> Any:
    """Returns a tensor as a parameter; a fake one becomes it as it is."""
    if type(tensor) is torch.Tensor:
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    tensor._is_param = True  # how torch marks parameters that have a class of their own
    return tensor.requires_grad_(requires_grad)
