"""Bytes that a block keeps for its backward, and what its forward and backward hold for a moment."""

from __future__ import annotations

from autopeft.memory._block import SITES, Site
from autopeft.memory._widths import Widths
from autopeft.methods import get_method


def block_saved_bytes(w: Widths) -> int:
    """Returns the bytes that one block keeps from its forward for its backward.

    Read off the autograd graph of transformers 5.23 and peft 0.21 (docs/memory-model.md lists each tensor): norms,
    attention, MLP, inputs of linear layers, dropout masks, and, independent of the tokens, 16-bit copies that
    autocast makes of the adapter's weights.
    """
    per_token: float = _norms(w) + _attention(w) + _mlp(w) + _residual_dropout(w)
    per_token += sum(_site_input(w, site) + _adapter_values(w, site) for site in SITES)
    return int(w.tokens * per_token) + _token_free(w)


def kept_despite_checkpointing_bytes(w: Widths) -> int:
    """Returns what checkpointing does not throw away: bitsandbytes keeps int8 inputs where autograd does not see them.

    ``MatMul8bitLt`` puts its input on ``ctx`` instead of into ``save_for_backward`` (bitsandbytes 0.50).
    """
    if w.candidate.quantization != "int8":
        return 0
    return w.tokens * sum(_site_width(w, site) * _site_bytes(w, site) for site in SITES)


def first_block_unsaved_bytes(w: Widths) -> int:
    """Returns what the first block does not keep: its first norm, where nothing below it is trained.

    With checkpointing the inputs are made to require gradients, so that it keeps all.
    """
    if w.trained or w.candidate.activation_checkpointing or w.family.norm != "rms":
        return 0
    return w.tokens * 4 * (w.model.hidden_size + 1)


def freed_before_peak_bytes(w: Widths) -> int:
    """Returns what is already free when a block's backward holds most: the input of its last linear layer."""
    return int(w.tokens * _site_input(w, "mlp_out"))


def block_forward_temporary_bytes(w: Widths) -> int:
    """Returns what the end of a block's forward holds beside what is kept: the widest input in its adapter's dtype."""
    hidden, wide = w.model.hidden_size, w.model.intermediate_size
    per_token = 4 * hidden * w.stream
    if _copied(w, "mlp_out"):
        per_token += wide * w.inner + (wide * 4 if w.adapter > w.inner else 0)
    return w.tokens * per_token + _rebuilt_weights(w)


def block_backward_temporary_bytes(w: Widths) -> int:
    """Returns what a block's backward holds at its widest beside what the forward kept.

    The gradient of the stream, and around the MLP's product three tensors as wide as the MLP: the gradients of the
    product through base and adapter and their sum, or of the two factors. Quantized weights are rebuilt once more
    for the gradient of their input. Eager attention holds three matrices of scores instead, if that is more.
    """
    hidden, wide = w.model.hidden_size, w.model.intermediate_size
    stream = w.tokens * hidden * w.stream
    three = 4 + w.base if _copied(w, "mlp_out") and w.adapter > w.inner and not w.trained else 3 * w.inner
    mlp = w.tokens * wide * three
    if w.quantized:
        mlp = max(mlp, w.tokens * wide * 2 * w.inner + hidden * wide * w.base)
    if w.family.activation == "tanh":
        mlp = w.tokens * wide * (4 * w.product if not w.autocast else 14)
    return stream + max(mlp, _scores_backward(w))


def _scores_backward(w: Widths) -> int:
    """The MLP's own activations are free by then, which the matrices of scores may take the place of."""
    if w.candidate.attention != "eager":
        return 0
    scores = w.tokens * w.model.attention_heads * w.sequence_length
    freed = _mlp(w) + _site_input(w, "mlp_in") + _adapter_values(w, "mlp_in") + _norms(w) / 2
    return scores * (8 - w.base) - int(w.tokens * freed)


def _norms(w: Widths) -> int:
    """Keeps the float32 copy of the input that "rms" makes by hand and autocast makes for torch's norms on CUDA."""
    hidden, family = w.model.hidden_size, w.family
    match family.norm:
        case "rms":
            scaled = hidden * (4 if family.float_weight else w.stream) if w.trained else 0
            total = family.norms * (4 * hidden + 4 + scaled)
        case "layer":
            total = family.norms * (hidden * (4 if _float32_norms(w) else w.stream) + 8)
        case "post":
            total = family.norms * (hidden * w.stream + 8)
    if family.head_norms:
        both = w.query + w.key
        total += 4 * both + (both * (4 if family.float_weight else w.base) if w.trained else 0)
    return total


def _float32_norms(w: Widths) -> bool:
    return w.autocast and w.kind != "cpu"


def _attention(w: Widths) -> int:
    """Fused kernels keep query, key, value, output and one float32 a head; eager keeps matrices of scores."""
    width, heads = w.base, w.model.attention_heads
    if w.candidate.attention == "eager":
        capped = w.base if w.family.soft_capped else 0
        return heads * w.sequence_length * (4 + w.base + capped) + 3 * w.query * width
    total = (2 * w.query + 2 * w.key) * width + 4 * heads
    return total + (w.query + w.key) * width if w.family.fused_projections else total


def _mlp(w: Widths) -> int:
    wide = w.model.intermediate_size
    match w.family.activation:
        case "gated":
            return 3 * wide * w.inner
        case "gelu":
            return wide * w.inner
        case "tanh":
            return wide * (w.inner + 3 * (4 if _float32_norms(w) else w.base))


def _residual_dropout(w: Widths) -> int:
    """CUDA keeps one byte an element; the host processor a tensor of factors."""
    key, default = w.family.dropout_key
    if not key or not w.model.config.get(key, default):
        return 0
    return 2 * w.model.hidden_size * (w.base if w.kind == "cpu" else 1)


def _site_width(w: Widths, site: Site) -> int:
    match site:
        case "attention_in" | "mlp_in":
            return w.model.hidden_size
        case "attention_out":
            return w.query
        case "mlp_out":
            return w.model.intermediate_size


def _site_bytes(w: Widths, site: Site) -> int:
    """Bytes of an element of what the linear layers of a site read."""
    return {"attention_in": w.normed, "attention_out": w.base, "mlp_in": w.normed, "mlp_out": w.inner}[site]


def _copied(w: Widths, site: Site) -> bool:
    """Whether each adapted layer of a site makes its own copy of the input.

    Plain layers cast it to the adapter's dtype, and autocast back to 16 bits; quantized ones leave that to autocast,
    which copies only what is float32. Dropout copies in any case.
    """
    if not w.sites[site]:
        return False
    read = _site_bytes(w, site)
    if w.candidate.lora_dropout > 0 or read != w.product:
        return True
    host_asks_cuda = w.kind == "cpu"
    return w.adapter != read and not (w.quantized and w.autocast and not host_asks_cuda)


def _site_input(w: Widths, site: Site) -> float:
    """Bytes a token that the linear layers of a site keep of their input."""
    width, read = _site_width(w, site), _site_bytes(w, site)
    layers = w.sites[site]
    # What the attention itself keeps as its output is not kept twice.
    shared = 0 if site == "attention_out" and not _output_is_cloned(w) else width * read
    if w.trained:
        return shared
    int8 = shared if w.candidate.quantization == "int8" else 0
    if not layers:
        return int8
    if not _copied(w, site):
        return max(shared, int8)
    each = width * w.product
    if w.candidate.lora_dropout > 0:
        each += width * (w.adapter if w.kind == "cpu" else 1)
    return int8 + each * sum(layer.count for layer in layers) / w.model.layers


def _output_is_cloned(w: Widths) -> bool:
    """Whether the attention's output is laid out by head, so that joining the heads copies it."""
    return w.candidate.attention == "eager" or w.family.fused_projections


def _adapter_values(w: Widths, site: Site) -> float:
    """Bytes a token of ``A x`` of every adapted layer; DoRA keeps the base's and the adapter's outputs too."""
    method = get_method(w.candidate.method)
    total = 0
    for layer in w.sites[site]:
        rank = method.layer_parameters(w.candidate, layer) // (layer.in_features + layer.out_features)
        total += layer.count * rank * w.product
        if w.dora:
            answer = _site_bytes(w, site) if w.quantized else w.base
            total += layer.count * layer.out_features * (answer + w.product)
    return total / w.model.layers


def _token_free(w: Widths) -> int:
    if w.trained:
        return 0
    method = get_method(w.candidate.method)
    total = 0
    for layer in w.layers:
        total += layer.count * method.layer_saved_bytes(w.candidate, layer)
        if w.autocast:
            total += layer.count * w.base * method.layer_parameters(w.candidate, layer)
    return total // w.model.layers


def _rebuilt_weights(w: Widths) -> int:
    """DoRA's norm needs base weight, update, scaled update and their sum, each ``(out, in)``, one layer at a time.

    The update is the adapter applied to an identity matrix ``(in, in)``, which its backward would need.
    """
    if not w.dora:
        return 0
    matrices = 3 + (1 if w.adapter != w.base or w.quantized else 0)
    return max(
        (
            layer.in_features * (layer.out_features * w.adapter * matrices + layer.in_features * w.product)
            for layer in w.layers
        ),
        default=0,
    )
