"""Bytes that live through the whole training: weights, adapters, gradients, optimizer states."""

from __future__ import annotations

from autopeft.specs import Candidate, Dtype, ModelSpec

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

NF4_BLOCK = 64
SCALE_BLOCK = 256
EIGHT_BIT_MIN_ENTRIES = 4096
"""bitsandbytes keeps float32 states for smaller parameters (``min_8bit_size``)."""


def base_weight_bytes(candidate: Candidate, model: ModelSpec) -> int:
    """Returns the bytes of the base weights as they are stored while training.

    Quantized layers take 0.5 byte (nf4) or 1 byte (int8) a weight and their scales; biases, norms, embeddings and
    heads stay in ``dtype``, or become float32 where ``prepare_model_for_kbit_training`` runs.
    """
    if candidate.quantization == "none":
        return model.parameter_count * DTYPE_BYTES[candidate.dtype]
    quantized_weights = 0
    quantized_bytes = 0
    for layer in model.linear_layers:
        if layer.quantizable:
            quantized_weights += layer.count * layer.in_features * layer.out_features
            size = quantized_matrix_bytes(candidate, layer.in_features, layer.out_features)
            quantized_bytes += layer.count * size
    width = 4 if candidate.prepare_kbit else DTYPE_BYTES[candidate.dtype]
    return quantized_bytes + (model.parameter_count - quantized_weights) * width


def quantized_matrix_bytes(candidate: Candidate, in_features: int, out_features: int) -> int:
    """Returns the bytes of one quantized weight matrix with its scales.

    nf4: one float32 scale for 64 weights; double quantization stores it in one byte and one float32 for 256 scales
    (QLoRA, arXiv 2305.14314, section 3). int8: one float32 for a row.
    """
    count = in_features * out_features
    if candidate.quantization == "int8":
        return count + 4 * out_features
    blocks = -(-count // NF4_BLOCK)
    scales = blocks + 4 * -(-blocks // SCALE_BLOCK) if candidate.double_quantization else 4 * blocks
    return -(-count // 2) + scales


def optimizer_state_bytes(candidate: Candidate, model: ModelSpec, trainable: int, width: int) -> int:
    """Returns the bytes of optimizer states on the device.

    AdamW keeps two states in the parameter's dtype; 8-bit AdamW two bytes and two float32 scales for 256 entries;
    Adafactor a row and a column of float32 for a matrix; SGD without momentum none. Paged states live in memory that
    the driver moves between host and device: they are not allocated on the device.
    """
    match candidate.optimizer:
        case "adamw_torch" | "adamw_torch_fused":
            return 2 * trainable * width
        case "adamw_bnb_8bit":
            return 2 * trainable + 8 * trainable // SCALE_BLOCK
        case "adafactor":
            return _adafactor_bytes(candidate, model)
        case "sgd" | "paged_adamw_8bit" | "paged_adamw_32bit":
            return 0


def _adafactor_bytes(candidate: Candidate, model: ModelSpec) -> int:
    rows_and_columns = 0
    for layer in model.linear_layers:
        if not candidate.target_modules:
            rows_and_columns += layer.count * (layer.in_features + layer.out_features)
        elif layer.name in candidate.target_modules:
            rows_and_columns += layer.count * (layer.in_features + layer.out_features + 2 * (candidate.r or 0))
    return 4 * rows_and_columns


def optimizer_temporary_bytes(candidate: Candidate, model: ModelSpec, trainable_bytes: int, *, foreach: bool) -> int:
    """Returns what one optimizer step allocates and frees again.

    torch's foreach AdamW takes the root of all second moments at once; its loop and every other optimizer work on
    one parameter at a time. The fused kernels and bitsandbytes need nothing.
    """
    if candidate.optimizer in ("adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"):
        return 0
    if foreach and candidate.optimizer == "adamw_torch":
        return trainable_bytes
    if candidate.optimizer == "sgd":
        return 0
    largest = max((layer.in_features * layer.out_features for layer in model.linear_layers), default=0)
    return 4 * largest if not candidate.target_modules else 0
