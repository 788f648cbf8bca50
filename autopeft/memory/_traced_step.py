"""Builds a model without weights and runs the engine's training step on it, under the recorder's eyes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.engine.adapters import enable_checkpointing, inject
from autopeft.engine.base import torch_dtype
from autopeft.engine.loss import prepare_loss
from autopeft.engine.optimizer import make_optimizer
from autopeft.engine.step import StepParts, training_step
from autopeft.errors import ModelError
from autopeft.memory._depth import TracedPart
from autopeft.memory._fake_quantization import dequantizing_stand_in, pack_weights, quantize_modules, scale_tensors
from autopeft.memory._recorder import Allocation, AllocationRecorder
from autopeft.memory._static import PAGED_MIN_ENTRIES
from autopeft.memory._target_device import kernels_of
from autopeft.methods import MethodContext, get_method
from autopeft.specs import Candidate, DeviceKind

MANY_STEPS = 1000
"""Length of training that the adapter is built for: AdaLoRA then masks no rank in the two steps that are traced."""

TRL_TILE_WIDTH = 32768
"""Vocabulary entries of one tile of trl's fused head (``_CHUNKED_LOGPROB_CHUNK_SIZE``, trl 1.16)."""

WARM_UP = "warm-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is traced.

    Attributes:
        candidate: what is trained.
        config: transformers' configuration of the model, at the depth to trace.
        encoder: whether a classification head is trained instead of a language-model head.
        kind: device whose ways are taken.
        sequence_length: tokens of every row.
    """

    candidate: Candidate
    config: Any
    encoder: bool
    kind: DeviceKind
    sequence_length: int


@dataclass(slots=True)
class _Progress:
    """Where in the step the trace is."""

    segment: str = WARM_UP
    backward_part: str = "head"
    warm: bool = False

    def current(self) -> str:
        """Returns the segment that an allocation of this moment belongs to."""
        if not self.warm:
            return WARM_UP
        if torch._C._current_graph_task_id() != -1:
            self.segment = "optimizer"  # what follows the last backward: clipping, update, hooks
            return f"backward {self.backward_part}"
        return self.segment


@dataclass(frozen=True, slots=True)
class TracedStep:
    """The parts of one traced step.

    Attributes:
        parts: segment -> bytes by component at its peak.
        trainable_parameters: parameters that require gradients.
    """

    parts: dict[str, TracedPart]
    trainable_parameters: int = field(default=0)


def trace_step(setting: Setting) -> TracedStep:
    """Returns the second of two training steps, when optimizer states exist."""
    progress = _Progress()
    recorder = AllocationRecorder(progress.current)
    with ExitStack() as stack:
        stack.enter_context(dequantizing_stand_in())
        stack.enter_context(_one_document_a_row())
        stack.enter_context(_blank_quantization_map())
        model = _model_on_meta(setting)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(kernels_of(setting.kind))
        _materialize(model, setting)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        _count_weights(recorder, model, setting)
        load = TracedPart(_by_component(recorder, len(recorder.events), setting))
        parts = _step_parts(model, setting)
        stack.enter_context(_watched(model, setting, progress, recorder))
        batches = [_batch(setting) for _ in range(setting.candidate.gradient_accumulation_steps)]
        num_items = setting.candidate.effective_batch_size * setting.sequence_length
        stack.enter_context(recorder)
        training_step(parts, batches, 1, num_items)
        _name_states(recorder)
        progress.warm = True
        training_step(parts, batches, 2, num_items)
        count = sum(parameter.numel() for parameter in trained)
        found = {
            segment: TracedPart(_by_component(recorder, peak.event, setting))
            for segment, peak in recorder.peaks.items()
            if segment != WARM_UP
        }
    return TracedStep({"load": load} | found, count)


def _model_on_meta(setting: Setting) -> Any:
    candidate = setting.candidate
    with torch.device("meta"):
        model = _base_model(setting)
        quantize_modules(model, candidate)
        if not setting.encoder:
            prepare_loss(model, candidate.trainer)
        model = inject(model, candidate, MANY_STEPS, "SEQ_CLS" if setting.encoder else "CAUSAL_LM")
    if candidate.activation_checkpointing:
        enable_checkpointing(model)
    return model.train()


def _base_model(setting: Setting) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if setting.encoder else AutoModelForCausalLM
    wanted = setting.candidate.attention
    # Flash attention keeps what sdpa's fused kernel keeps; its package need not be there to trace it.
    attention = "sdpa" if wanted == "flash_attention_2" else wanted
    try:
        return auto.from_config(
            setting.config, dtype=torch_dtype(setting.candidate.dtype), attn_implementation=attention
        )
    except (ValueError, ImportError) as error:
        kind = setting.config.model_type
        first = str(error).splitlines()[0]
        raise ModelError(f"a {kind!r} model cannot be built with attention {attention!r}: {first}") from error


def _materialize(model: Any, setting: Setting) -> None:
    """Turns meta tensors into fake ones that count as the device's."""
    model.to_empty(device="cpu")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.tie_weights()
    pack_weights(model, setting.candidate, "cpu")


def _count_weights(recorder: AllocationRecorder, model: Any, setting: Setting) -> None:
    adapter = get_method(setting.candidate.method).has_adapter
    recorder.add((p for p in model.parameters() if p.requires_grad and adapter), "adapter_weights")
    recorder.add(model.parameters(), "base_weights")
    recorder.add(model.buffers(), "base_weights")
    recorder.add(scale_tensors(model), "base_weights")


def _step_parts(model: Any, setting: Setting) -> StepParts:
    method = get_method(setting.candidate.method)
    foreach = setting.kind != "cpu"
    return StepParts(
        model=model,
        method=method,
        context=MethodContext(candidate=setting.candidate, steps=MANY_STEPS, seed=0, weights=_NoWeights()),
        optimizer=make_optimizer(model, setting.candidate, foreach=foreach),
        device_type="cpu",
    )


class _NoWeights:
    """A trace never reads the original weights: ``prepare`` is not part of a step."""

    def weight(self, module_path: str) -> torch.Tensor:
        raise AssertionError(f"a traced step asked for the original weight of {module_path}")


def _batch(setting: Setting) -> dict[str, Any]:
    rows = setting.candidate.per_device_batch_size
    tokens = torch.zeros(rows, setting.sequence_length, dtype=torch.long)
    labels = torch.zeros(rows, dtype=torch.long) if setting.encoder else tokens
    # Without a mask every row is full: a mask of ones would be read by value to find that out.
    return {"input_ids": tokens, "labels": labels}


@contextmanager
def _one_document_a_row() -> Iterator[None]:
    """Answers without reading values that rows are not packed, so that attention needs no mask but the causal one."""
    from transformers import masking_utils

    with mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None):
        yield


@contextmanager
def _blank_quantization_map() -> Iterator[None]:
    """Spares bitsandbytes' 8-bit optimizers the values of their code book, which fake tensors cannot be sorted by."""
    from bitsandbytes import functional

    with mock.patch.object(functional, "create_dynamic_map", _blank_map):
        yield


def _blank_map(**settings: Any) -> torch.Tensor:
    del settings
    return torch.empty(256)


@contextmanager
def _watched(model: Any, setting: Setting, progress: _Progress, recorder: AllocationRecorder) -> Iterator[None]:
    """Tells the progress where the step is, by hooks on the model, its blocks and its trained parameters."""
    handles = [model.register_forward_pre_hook(lambda *_: _begin_forward(progress))]
    blocks = _blocks(model, setting.config.num_hidden_layers)
    for index, block in enumerate(blocks):
        part = _part_name(index, len(blocks))
        handles.append(block.register_forward_hook(_entering(progress, part)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles += [p.register_post_accumulate_grad_hook(lambda p: recorder.name([p.grad], "gradients")) for p in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _begin_forward(progress: _Progress) -> None:
    if progress.warm:
        progress.segment, progress.backward_part = "forward", "head"


def _part_name(index: int, count: int) -> str:
    if index == count - 1:
        return "last"
    return {0: "first", 1: "second"}.get(index, "inner")


def _entering(progress: _Progress, part: str) -> Any:
    """Returns a forward hook: when the gradient of a block's output arrives, the block's backward begins."""

    def watch_output(module: Any, args: Any, output: Any) -> None:
        del module, args
        tensor = output[0] if isinstance(output, tuple) else output
        if tensor.requires_grad:
            tensor.register_hook(lambda _: setattr(progress, "backward_part", part))

    return watch_output


def _blocks(model: Any, layers: int) -> list[Any]:
    """Returns the transformer blocks: the first list of modules that is as long as the model is deep."""
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            return list(module)
    raise AssertionError(f"the model has no list of {layers} blocks")


def _name_states(recorder: AllocationRecorder) -> None:
    """Whatever the first step left behind without a name is a state: the optimizer's, or the method's own."""
    for allocation in recorder.live_at(len(recorder.events)):
        allocation.component = allocation.component or "optimizer_states"


def _by_component(recorder: AllocationRecorder, event: int, setting: Setting) -> dict[str, int]:
    totals: dict[str, int] = {}
    for allocation in recorder.live_at(event):
        if _is_paged(allocation, setting):
            continue
        name = _component(allocation, setting)
        totals[name] = totals.get(name, 0) + allocation.size
    return totals


def _is_paged(allocation: Allocation, setting: Setting) -> bool:
    """Whether bitsandbytes would keep this state in memory that the driver pages, which no device memory is taken for.

    On the host processor, where the trace runs, it falls back to ordinary memory.
    """
    width = {"paged_adamw_8bit": 1, "paged_adamw_32bit": 4}.get(setting.candidate.optimizer)
    if width is None or setting.kind == "cpu" or allocation.component != "optimizer_states":
        return False
    return allocation.size >= PAGED_MIN_ENTRIES * width


def _component(allocation: Allocation, setting: Setting) -> str:
    if allocation.component:
        return allocation.component
    if not setting.encoder and allocation.last_dimension in (setting.config.vocab_size, TRL_TILE_WIDTH):
        return "logits"
    return "activations" if allocation.segment == "forward" else "temporaries"
