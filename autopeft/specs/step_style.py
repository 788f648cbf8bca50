"""How a loop runs its training step, where it is not autopeft's own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStyle:
    """Habits of a training loop that memory depends on; the defaults are autopeft's own.

    Attributes:
        mixed_precision: whether the forward runs under autocast; None means autopeft's rule: a 16-bit base with
            float32 adapters does.
        outputs_held: whether a variable keeps the model's outputs, and with them the logits, until the next forward
            has made new ones. Hand-written loops do; transformers' Trainer lets go of them before the backward.
        reentrant_checkpointing: torch's older way of activation checkpointing, transformers' default before 5.0.
        key_value_cache: whether the forward collects keys and values as for generation: what a loop gets that does not
            say ``use_cache=False``, except with activation checkpointing.
        float32_norms: whether norm weights are in float32 and embeddings and head in the base's dtype: what
            older versions of trl leave of ``prepare_model_for_kbit_training``.
        gradients_kept: whether gradients are cleared when the next step begins instead of when this one ends.
        cache_emptied: whether the loop empties the allocator's cache before the largest batch, so that nothing of
            earlier batches is held when it comes.
        host_buffers: whether buffers that peft makes on the host stay there (BOFT's permutation), as in a loop that
            loads the base onto the device and never moves the whole model; transformers' Trainer moves it.
        padded: whether rows are of unequal length, so that there is a padding mask.
        float32_logits: whether the model returns float32 logits, as transformers' models did before 4.45; who holds the
            outputs then holds 4 bytes an entry.
        quantized_inputs_kept: whether frozen 4-bit layers keep their inputs until the graph goes, as bitsandbytes did
            before 0.43.2 (its CHANGELOG.md: "activations being unnecessary for frozen parameters").
        adam_denominators: whether foreach Adam and AdamW make a second temporary of a state's size, as torch 2.0 did,
            whose ``_multi_tensor_adamw`` added epsilon out of place.
    """

    mixed_precision: bool | None = None
    outputs_held: bool = False
    reentrant_checkpointing: bool = False
    key_value_cache: bool = False
    float32_norms: bool = False
    gradients_kept: bool = False
    cache_emptied: bool = False
    host_buffers: bool = False
    padded: bool = False
    float32_logits: bool = False
    quantized_inputs_kept: bool = False
    adam_denominators: bool = False
