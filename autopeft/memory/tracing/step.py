"""Runs the engine's training step on a model of fake tensors, under the recorder's eyes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.engine.optimizer import make_optimizer
from autopeft.engine.step import StepParts, training_step, update
from autopeft.memory._static import PAGED_MIN_ENTRIES
from autopeft.memory.ledger.heads import TRL_VOCABULARY_CHUNK
from autopeft.memory.overhead import WORKSPACES
from autopeft.memory.tracing.building import (
    MANY_STEPS,
    batch_of,
    blank_quantization_map,
    built_model,
    documents_in_rows,
    materialize,
    plain_tensors,
)
from autopeft.memory.tracing.costs import KernelKey
from autopeft.memory.tracing.fake_quantization import dequantizing_stand_in, inputs_kept, scale_tensors
from autopeft.memory.tracing.recorder import Allocation, AllocationRecorder, Moment, PartPeak
from autopeft.memory.tracing.request import TraceRequest
from autopeft.memory.tracing.shapes import ShapeMemory
from autopeft.memory.tracing.target_device import denominators_apart, kernels_of
from autopeft.methods import MethodContext, PeftMethod, get_method

LOAD = Moment("load")
INITIALIZATION = Moment("init")
WARM_UP = Moment("warm-up")
_BEFORE_THE_STEP = (LOAD, INITIALIZATION, WARM_UP)


class Progress:
    """Where in the step the trace is.

    Attributes:
        moment: what an allocation of this moment belongs to, outside the backward.
        module: path of the module whose forward runs.
    """

    def __init__(self) -> None:
        self.moment = LOAD
        self.module = ""
        self._backward = Moment("backward", "head")
        self._optimizer = Moment("optimizer")

    def now(self) -> Moment:
        """Returns the moment that an allocation belongs to."""
        if torch._C._current_graph_task_id() == -1 or self.moment in _BEFORE_THE_STEP:
            return self.moment
        self.moment = self._optimizer  # what follows the last backward: clipping, update, hooks
        return self._backward

    def enter_forward(self) -> None:
        """Says that the model's forward begins."""
        if self.moment not in _BEFORE_THE_STEP:
            self.moment = Moment("forward", "embedding")
            self._backward = Moment("backward", "head")

    def enter_block(self, moment: Moment) -> None:
        """Says that a block's forward begins (in a backward: runs again)."""
        if self.moment.phase == "forward" and torch._C._current_graph_task_id() == -1:
            self.moment = moment

    def leave_blocks(self) -> None:
        """Says that the last block's forward has ended."""
        self.enter_block(Moment("forward", "head"))

    def enter_backward(self, moment: Moment) -> None:
        """Says that the gradient of a block's output has arrived."""
        self._backward = moment

    def describe(self, operation: str) -> str:
        """Returns what runs, for people: the operation, and the module or the autograd node that called it."""
        short = operation.removeprefix("aten.").removesuffix(".default")
        if self.moment.phase == "optimizer" and torch._C._current_graph_task_id() == -1:
            return short
        node = torch._C._current_autograd_node() if hasattr(torch._C, "_current_autograd_node") else None
        if node is not None:
            return f"{short} in {node.name()}"
        # Without the number of the layer: the traced model is shallower than the one that is asked about.
        module = re.sub(r"\.\d+\.", ".", self.module)
        return f"{short} in {module}" if module else short


@dataclass(frozen=True, slots=True)
class ShallowTrace:
    """The trace of one model, at the depth that it was built with.

    Attributes:
        parts: part of the step -> bytes by component at its peak.
        operations: part -> what ran at its peak.
        costs: (phase, kernel class, dtype) -> [operations, bytes moved, launches].
        events: every allocation and release of the step, what was there before it first.
        trainable_parameters: parameters that require gradients.
    """

    parts: dict[str, dict[str, int]]
    operations: dict[str, str]
    costs: dict[tuple[str, KernelKey], list[float]]
    events: list[tuple[bool, Allocation, Moment]]
    trainable_parameters: int
    notes: tuple[str, ...] = field(default=())


def trace_step(request: TraceRequest, config: Any, shapes: ShapeMemory) -> ShallowTrace:
    """Returns one training step, traced when optimizer states exist.

    Args:
        request: what is traced.
        config: transformers' configuration at the depth that is traced.
        shapes: what operators make of which shapes; traces of one request may share it.
    """
    trace = _trace(request, config, shapes, warm_forward=False)
    # Trained parameters that no loss reaches have no gradient, and so no states: only a forward tells which.
    return trace if trace is not None else _require(_trace(request, config, shapes, warm_forward=True))


def _require(trace: ShallowTrace | None) -> ShallowTrace:
    assert trace is not None, "a trace whose states come from a real step is complete"
    return trace


def _trace(request: TraceRequest, config: Any, shapes: ShapeMemory, *, warm_forward: bool) -> ShallowTrace | None:
    progress = Progress()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = AllocationRecorder(progress.now, progress.describe, fakes=(mode, shapes))
    recorder.ledger.longest_row = request.sequence_length
    with ExitStack() as stack:
        stack.enter_context(blank_quantization_map())
        stack.enter_context(dequantizing_stand_in(request.candidate))
        stack.enter_context(inputs_kept(request.style.quantized_inputs_kept))
        model, notes = built_model(request, config)
        stack.enter_context(documents_in_rows(request))
        materialize(model, request, mode)
        stack.enter_context(mode)
        stack.enter_context(kernels_of(request.kind, recorder.ledger))
        stack.enter_context(denominators_apart(request.style.adam_denominators))
        _count_weights(recorder, model, request)
        parts = _step_parts(model, request)  # LoRA-FA's optimizer freezes parameters
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        reached = stack.enter_context(_watched(model, config.num_hidden_layers, progress, recorder))
        batches = [batch_of(request) for _ in range(request.candidate.gradient_accumulation_steps)]
        num_items = request.candidate.effective_batch_size * request.sequence_length
        stack.enter_context(recorder)
        recorder.add(tensor for batch in batches for tensor in batch.values())
        if _computes_initial_values(parts.method):
            progress.moment = INITIALIZATION
            parts.method.prepare(model, parts.context)
        progress.moment = WARM_UP
        if warm_forward:
            training_step(parts, batches, 1, num_items)
        else:
            _update_alone(parts, trained)
        _name_states(recorder)
        reached.clear()
        progress.moment = Moment("forward", "embedding")
        with _workspaces(recorder, request):
            training_step(parts, batches, 2, num_items)
        if not warm_forward and len(reached) < len(trained):
            return None
        return _answer(recorder, request, sum(parameter.numel() for parameter in trained), notes)


def _update_alone(parts: StepParts, trained: list[Any]) -> None:
    """Makes the optimizer's states and the method's own, without a forward, which would take as long as the step."""
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    update(parts, 1)


def _workspaces(recorder: AllocationRecorder, request: TraceRequest) -> Any:
    """The thread of the forward and that of the backward have a handle of cuBLAS each, and keep its workspace."""
    if not request.workspace_bytes:
        return nullcontext()
    return recorder.borrowed(WORKSPACES * request.workspace_bytes, "workspace", "cuBLAS workspace")


def _count_weights(recorder: AllocationRecorder, model: Any, request: TraceRequest) -> None:
    adapter = get_method(request.candidate.method).has_adapter or "peft_config" in request.candidate.options
    recorder.add((p for p in model.parameters() if p.requires_grad and adapter), "adapter_weights")
    recorder.add(model.parameters(), "base_weights")
    recorder.add(model.buffers(), "base_weights")
    recorder.add(scale_tensors(model, request.candidate), "base_weights")
    for module in model.modules():
        recorder.add(plain_tensors(module), "adapter_weights")


def _step_parts(model: Any, request: TraceRequest) -> StepParts:
    return StepParts(
        model=model,
        method=get_method(request.candidate.method),
        context=MethodContext(candidate=request.candidate, steps=MANY_STEPS, seed=0, weights=_FakeWeights(model)),
        optimizer=make_optimizer(model, request.candidate, foreach=request.kind != "cpu"),
        device_type="cpu",
        mixed_precision=request.style.mixed_precision,
        clears_first=request.style.gradients_kept,
        use_cache=request.style.key_value_cache,
        held_outputs=[] if request.style.outputs_held else None,
    )


def _computes_initial_values(method: PeftMethod) -> bool:
    return type(method).prepare is not PeftMethod.prepare and not method.reads_data


class _FakeWeights:
    """Stands for the original checkpoint: a method reads one matrix at a time, in float32, onto the device."""

    def __init__(self, model: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._modules = dict(base.named_modules())

    def weight(self, module_path: str) -> torch.Tensor:
        module = self._modules[module_path]
        return torch.empty(module.out_features, module.in_features, dtype=torch.float32)


@contextmanager
def _watched(model: Any, layers: int, progress: Progress, recorder: AllocationRecorder) -> Iterator[set[int]]:
    """Tells the progress where the step is; yields the trained parameters that a gradient has reached."""
    reached: set[int] = set()
    handles = [model.register_forward_pre_hook(lambda *_: progress.enter_forward())]
    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(_naming(progress, path))]
    blocks = _blocks(model, layers)
    for index, block in enumerate(blocks):
        part = _part_name(index, len(blocks))
        handles += [
            block.register_forward_pre_hook(_entering(progress, Moment("forward", part, index))),
            block.register_forward_hook(_leaving(progress, Moment("backward", part, index), index == len(blocks) - 1)),
        ]

    def arrived(parameter: Any) -> None:
        reached.add(id(parameter))
        recorder.name([parameter.grad], "gradients")

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles += [parameter.register_post_accumulate_grad_hook(arrived) for parameter in trained]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def _naming(progress: Progress, path: str) -> Any:
    def name(*_: Any) -> None:
        progress.module = path

    return name


def _entering(progress: Progress, moment: Moment) -> Any:
    def enter(*_: Any) -> None:
        progress.enter_block(moment)

    return enter


def _part_name(index: int, count: int) -> str:
    if index == count - 1:
        return "last"
    return {0: "first", 1: "second"}.get(index, "inner")


def _leaving(progress: Progress, moment: Moment, last: bool) -> Any:
    """Returns a forward hook: when the gradient of a block's output arrives, the block's backward begins."""

    def watch_output(module: Any, args: Any, output: Any) -> None:
        del module, args
        tensor = output[0] if isinstance(output, tuple) else output
        if tensor.requires_grad:
            tensor.register_hook(lambda _: progress.enter_backward(moment))
        if last:
            progress.leave_blocks()

    return watch_output


def _blocks(model: Any, layers: int) -> list[Any]:
    """Returns the transformer blocks: the first list of modules that is as long as the model is deep."""
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            return list(module)
    raise AssertionError(f"the model has no list of {layers} blocks")


def _name_states(recorder: AllocationRecorder) -> None:
    """Whatever the first update left behind without a name is a state: the optimizer's, or the method's own."""
    for allocation in recorder.live_at(len(recorder.events)):
        if allocation.moment == WARM_UP:
            allocation.component = allocation.component or "optimizer_states"


def _answer(recorder: AllocationRecorder, request: TraceRequest, trained: int, notes: tuple[str, ...]) -> ShallowTrace:
    highest: dict[str, PartPeak] = {}
    for moment, peak in recorder.peaks.items():
        if moment != WARM_UP and (moment.name not in highest or peak.bytes > highest[moment.name].bytes):
            highest[moment.name] = peak
    parts = {name: _by_component(recorder, peak.event, request) for name, peak in highest.items()}
    return ShallowTrace(
        parts=parts,
        operations={name: peak.operation for name, peak in highest.items()},
        costs={key: value for key, value in recorder.ledger.sums.items() if key[0] not in ("load", "init", "warm-up")},
        events=recorder.events,
        trainable_parameters=trained,
        notes=notes,
    )


def _by_component(recorder: AllocationRecorder, event: int, request: TraceRequest) -> dict[str, int]:
    totals: dict[str, int] = {}
    for allocation in recorder.live_at(event):
        if not is_paged(allocation, request):
            name = _component(allocation, request)
            totals[name] = totals.get(name, 0) + allocation.size
    return totals


def is_paged(allocation: Allocation, request: TraceRequest) -> bool:
    """Returns whether bitsandbytes keeps this state in memory that the driver pages, which is not the device's.

    On the host processor, where the trace runs, it falls back to ordinary memory.
    """
    width = {"paged_adamw_8bit": 1, "paged_adamw_32bit": 4}.get(request.candidate.optimizer)
    if width is None or request.kind == "cpu" or allocation.component != "optimizer_states":
        return False
    return allocation.size >= PAGED_MIN_ENTRIES * width


def _component(allocation: Allocation, request: TraceRequest) -> str:
    if allocation.component:
        return allocation.component
    vocabulary = request.config.get("vocab_size")
    if not request.encoder and allocation.last_dimension in (vocabulary, TRL_VOCABULARY_CHUNK):
        return "logits"
    return "activations" if allocation.moment.phase == "forward" else "temporaries"
