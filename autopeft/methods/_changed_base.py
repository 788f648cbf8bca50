"""Methods that take the adapter's start out of the base weights, and how their adapters fit the untouched base.

W becomes ``W - s B0 A0``, so that with the start ``B0 A0`` the model answers as before. A trained ``B A`` fits that
base alone; on the untouched W it is ``s (B A - B0 A0)``, a plain LoRA adapter of twice the rank and the same scaling.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

START = "autopeft_start"
"""peft's name of the untrained adapter while it is subtracted."""


def start_of(model: Any) -> dict[str, torch.Tensor]:
    """Returns a copy of the untrained adapter on the host, as peft saves it."""
    from peft import get_peft_model_state_dict

    kept = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept.items()}


def save_for_untouched_base(model: Any, folder: Path, start: Mapping[str, torch.Tensor]) -> None:
    """Writes the trained adapter as plain LoRA of twice the rank, by peft's own conversion.

    Exact in exact arithmetic. Where the base is stored in 16 bits, ``W - s B0 A0`` was rounded to them when the adapter
    was made, and the saved adapter stands on the unrounded W.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        initial = Path(scratch) / START
        initial.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in start.items()}, initial / "adapter_model.safetensors")
        config = copy.deepcopy(model.peft_config["default"])
        config.init_lora_weights = True
        config.save_pretrained(initial)
        model.save_pretrained(
            folder, path_initial_model_for_weight_conversion=str(initial), save_embedding_layers=False
        )


def quantized_base_problem(title: str, quantization: str) -> str:
    """Returns why a method that changes the base is not offered on a quantized one."""
    return (
        f"{title} takes its start out of the base weights; on a {quantization} base they would have to be quantized "
        f"anew, and the adapter would fit no base but that one; quantization is {quantization!r}, use 'none', or loftq"
    )
