"""Which storages of the base a model and a device allow."""

from __future__ import annotations

from dataclasses import replace

from autopeft.specs import Candidate, Device, ModelSpec, Quantization


def quantization_problem(quantization: Quantization, model: ModelSpec, device: Device) -> str | None:
    """Returns why the base cannot be stored so on this device; None if it can.

    A checkpoint that bitsandbytes quantized is loaded as it is stored, and as nothing else; of other quantized
    checkpoints the base is "none": it stays as it is.
    """
    stored = model.stored_format
    if stored is not None and stored.base != "none" and quantization == "none":
        return f"the checkpoint holds {stored.base} weights and none in 16 bits: its base is {stored.base}"
    if quantization == "none":
        return None
    if model.stored_quantization and (stored is None or stored.base != quantization):
        return f"the checkpoint is already quantized ({model.stored_quantization}), which {quantization} cannot replace"
    if model.kind == "encoder":
        # transformers 5.23 quantizes the classification head as well, and peft cannot wrap it then.
        return (
            f"the classification head of {model.id} would be stored as {quantization} too, and cannot be trained then"
        )
    supported = device.supports_nf4 if quantization == "nf4" else device.supports_int8
    return None if supported else f"{device.name} does not support {quantization} storage"


def priced_as_stored(candidate: Candidate, model: ModelSpec) -> tuple[Candidate, str | None]:
    """Returns the candidate whose memory stands for this one's over an already quantized checkpoint, and a remark.

    Packed weights of other packages are taken for bitsandbytes' of the same width: 4 bits and a scale for 64 to 128
    weights, unpacked layer by layer. GPTQ with groups of 128 takes 4.16 bits a weight, nf4 4.13; wider or narrower
    packings, and the packages' own buffers, are left out. Not measured.
    """
    stored = model.stored_format
    if stored is None or model.kind == "encoder":
        return candidate, None
    if stored.base == candidate.quantization != "none":
        return replace(candidate, double_quantization=stored.base == "nf4" and stored.double_quantization), None
    if candidate.quantization != "none" or stored.priced_as == "none":
        return candidate, None
    quantization = "int8" if (stored.bits or 0) > 4 else stored.priced_as
    priced = replace(
        candidate, quantization=quantization, double_quantization=quantization == "nf4", prepare_kbit=False
    )
    return priced, f"the base stays as {stored.title} weights, whose memory is taken for that of {quantization}"
