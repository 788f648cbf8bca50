"""Bytes that live through the whole training: weights, adapters, gradients, optimizer states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.errors import InvalidInputError
from autopeft.specs import Candidate, Dtype, ModelSpec

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

NF4_BLOCK = 64
SCALE_BLOCK = 256
EIGHT_BIT_MIN_ENTRIES = 4096
"""bitsandbytes keeps float32 states for smaller tensors (``min_8bit_size``)."""
PAGED_MIN_ENTRIES = 100_000
"""bitsandbytes pages only the states of larger tensors (``get_state_buffer`` in bitsandbytes/optim/optimizer.py)."""


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


@dataclass(frozen=True, slots=True)
class TrainedTensors:
    """Trained tensors of one shape: ``(rows, columns)``; ``columns`` is 1 for vectors.

    Attributes:
        rate_factor: their learning rate as a multiple of the candidate's; the optimizer takes those of one rate
            together.
    """

    rows: int
    columns: int
    count: int
    rate_factor: float = 1.0

    @property
    def entries(self) -> int:
        """Entries of one of them."""
        return self.rows * self.columns


def optimizer_state_bytes(candidate: Candidate, tensors: Sequence[TrainedTensors], width: int) -> int:
    """Returns the bytes of optimizer states that are allocated on the device.

    AdamW keeps two states in the parameter's dtype; bitsandbytes' keeps them in float32 or in one byte with a float32
    scale for 256 entries, small tensors always in float32; Adafactor a float32 for each row and column of a matrix;
    SGD without momentum none. Paged states of large tensors live in memory that the driver moves between host and
    device: they are not allocated on the device.
    """
    return sum(each.count * _state_bytes(candidate, each, width) for each in tensors)


def _state_bytes(candidate: Candidate, tensor: TrainedTensors, width: int) -> int:
    entries = tensor.entries
    match candidate.optimizer:
        case "adamw_torch" | "adamw_torch_fused":
            return 2 * entries * width
        case "sgd":
            return 0
        case "adafactor":
            return 4 * (tensor.rows + tensor.columns) if tensor.columns > 1 else 4 * entries
        case "paged_adamw_8bit" | "paged_adamw_32bit" if entries >= PAGED_MIN_ENTRIES:
            return 8 * -(-entries // SCALE_BLOCK) if candidate.optimizer == "paged_adamw_8bit" else 0
        case "paged_adamw_32bit":
            return 8 * entries
        case "adamw_bnb_8bit" | "paged_adamw_8bit":
            small = entries < EIGHT_BIT_MIN_ENTRIES
            return 8 * entries if small else 2 * entries + 8 * -(-entries // SCALE_BLOCK)
        case "lorafa":
            raise InvalidInputError("the closed form does not know LoRA-FA's optimizer; trace it")


def optimizer_temporary_bytes(
    candidate: Candidate, tensors: Sequence[TrainedTensors], width: int, *, foreach: bool
) -> int:
    """Returns what one optimizer step allocates and frees again.

    torch's foreach AdamW takes the root of all second moments of one learning rate at once; its loop holds two copies
    of one tensor.
    Adafactor holds four float32 tensors of the size of the parameter at work. Fused kernels and bitsandbytes need
    nothing.
    """
    largest = max((each.entries for each in tensors), default=0)
    if candidate.optimizer == "adafactor":
        return 16 * largest
    if candidate.optimizer != "adamw_torch":
        return 0
    if not foreach:
        return width * 2 * largest
    entries: dict[float, int] = {}
    for each in tensors:
        entries[each.rate_factor] = entries.get(each.rate_factor, 0) + each.count * each.entries
    return width * max(entries.values(), default=0)
