"""Which storages of the base a model and a device allow."""

from __future__ import annotations

from autopeft.specs import Device, ModelSpec, Quantization


def quantization_problem(quantization: Quantization, model: ModelSpec, device: Device) -> str | None:
    """Returns why the base cannot be stored so on this device; None if it can."""
    if quantization == "none":
        return None
    if model.stored_quantization:
        return f"the checkpoint is already quantized ({model.stored_quantization}), which {quantization} cannot replace"
    if model.kind == "encoder":
        # transformers 5.23 quantizes the classification head as well, and peft cannot wrap it then.
        return (
            f"the classification head of {model.id} would be stored as {quantization} too, and cannot be trained then"
        )
    supported = device.supports_nf4 if quantization == "nf4" else device.supports_int8
    return None if supported else f"{device.name} does not support {quantization} storage"
