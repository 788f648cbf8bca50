"""Bytes of the head, its logits and the loss."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.memory._widths import Widths

TRL_TOKEN_CHUNK = 4096
TRL_VOCABULARY_CHUNK = 32768
"""Tile of logits that trl's fused head works on (trl 1.16: ``TOKEN_CHUNK_SIZE`` in trl/kernels/chunked_logprob.py,
``_CHUNKED_LOGPROB_CHUNK_SIZE`` in trl/trainer/utils.py)."""


@dataclass(frozen=True, slots=True)
class LossBytes:
    """Bytes beside the blocks.

    Attributes:
        norm: kept by the last norm and for the head's weight gradient.
        forward: logits and loss when the forward ends.
        backward: logits and gradients at the widest moment before the blocks' backward.
        states: hidden states that trl's head reads, cut off at the last position.
    """

    norm: int
    forward: int
    backward: int
    states: int


def loss_bytes(w: Widths) -> LossBytes:
    """Returns the bytes of head and loss.

    transformers: logits in the compute dtype, their float32 copy and its log-softmax; in the backward log-softmax,
    the gradient of the picked entries and of the logits: 12 bytes an entry. trl: one tile of logits, hidden states,
    and a float32 gradient of the hidden states; beside them, for a trained head, one of the weight.
    """
    hidden = w.model.hidden_size
    float_norm = w.family.norm == "rms" or (w.autocast and w.kind != "cpu")
    norm = w.tokens * hidden * ((4 if float_norm else w.stream) + (w.stream if w.trained else 0))
    if w.model.kind == "encoder":
        return LossBytes(0, 0, 0, 0)
    if w.candidate.trainer == "trl":
        forward, backward = _tiled(w)
        return LossBytes(norm, forward, backward, 2 * w.tokens * hidden * w.stream)
    entries = w.tokens * w.model.vocab_size
    logits = w.base if w.base == 2 else 0
    capped = w.base if w.family.soft_capped else 0
    return LossBytes(norm, entries * (8 + logits + capped), entries * (12 + capped), 0)


def _tiled(w: Widths) -> tuple[int, int]:
    hidden, vocabulary = w.model.hidden_size, w.model.vocab_size
    rows = min(w.tokens, TRL_TOKEN_CHUNK)
    tile = rows * TRL_VOCABULARY_CHUNK * w.base
    upcast = rows * hidden * w.base if w.stream != w.base else 0
    if w.quantized and w.candidate.prepare_kbit:
        upcast += min(vocabulary, 2 * TRL_VOCABULARY_CHUNK) * hidden * w.base
    forward = tile + upcast
    backward = tile + 4 * w.tokens * hidden + upcast
    if w.trained:
        backward += (4 + w.base) * vocabulary * hidden
    if w.kind == "cpu":
        # Without Triton the tile is folded in torch. Forward: logits, exponentials and their product in float32, one
        # mask. Backward: logits twice, log-probabilities, probabilities, gradient, one mask, its float32 and a
        # difference.
        entries = rows * min(vocabulary, TRL_VOCABULARY_CHUNK)
        forward, backward = forward + 13 * entries, backward + 29 * entries
    return forward, backward
