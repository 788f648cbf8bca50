"""Predicts the peak memory of training steps by arithmetic: no torch, no weights, microseconds a candidate.

The step of each structure (method, dtypes, storage, ... of one model) is recorded once by the ledger; what remains is
a product of its coefficients with each candidate's rank, rows and length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import ModelError
from autopeft.memory import _static as static
from autopeft.memory._families import buffer_bytes, head_parameters, known_model_types, why_unknown, window_of
from autopeft.memory._structure import Structure, rank_and_structure
from autopeft.memory._trained import trainable_parameters, trained_tensors
from autopeft.memory.ledger.heads import TRL_TOKEN_CHUNK
from autopeft.memory.ledger.rows import Rows
from autopeft.memory.ledger.tape import PARTS
from autopeft.memory.overhead import WORKSPACES, context_bytes, fragmentation_bytes, overhead_bytes, workspace_bytes
from autopeft.memory.timing import Load, estimate_time
from autopeft.methods import get_method
from autopeft.specs import Candidate, Device, MemoryEstimate, ModelSpec

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

KNOWN_ERROR = 0.03
"""Half-width of the stated interval against a trace; measured, see docs/memory-model.md."""

HELD = ("base_weights", "adapter_weights", "optimizer_states")
"""What is there in every phase of a step."""

_STRUCTURE = attrgetter(
    "method", "r", "target_modules", "quantization", "double_quantization", "dtype", "adapter_dtype", "lora_dropout",
    "activation_checkpointing", "optimizer", "attention", "trainer", "prepare_kbit",
)  # fmt: skip


_TIMED = attrgetter(
    "method", "r", "target_modules", "quantization", "dtype", "adapter_dtype", "activation_checkpointing"
)


class UnsupportedArchitectureError(ModelError):
    """The closed form does not know the model; the text says why, and what it knows."""

    def __init__(self, model: ModelSpec, reason: str) -> None:
        known = ", ".join(known_model_types())
        super().__init__(
            f"{model.id}: {reason}, so that only a trace can price it; install 'autopeft[train]' to trace it, or "
            f"choose a model of a known type: {known}"
        )


class UnsupportedMethodError(ModelError):
    """The closed form does not know the method's step."""

    def __init__(self, method: str) -> None:
        super().__init__(
            f"{unknown_step(method)}, so that only a trace can price it; install 'autopeft[train]' to trace it, or "
            "choose another method"
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """What candidates of one structure and rank share.

    Attributes:
        held: bytes by ``HELD``.
        initial: what computing the adapter's initial values holds beside the weights.
        optimizer: gradients and temporaries of the optimizer's phase.
    """

    candidate: Candidate
    structure: Structure
    rank: float
    held: tuple[int, int, int]
    workspace: int
    initial: int
    optimizer: tuple[int, int]
    trainable: int


@dataclass(frozen=True, slots=True)
class EstimateArrays:
    """Estimates of many candidates, in their order.

    Attributes:
        peak_memory_bytes: maximum allocated.
        peak_reserved_bytes, required_bytes: as in MemoryEstimate.
        phases: peak bytes by phase ("load", "forward", "backward", "optimizer").
        trainable_parameters: how many parameters require gradients.
    """

    peak_memory_bytes: Integers
    peak_reserved_bytes: Integers
    required_bytes: Integers
    phases: dict[str, Integers]
    trainable_parameters: Integers
    _candidates: Sequence[Candidate]
    _model: ModelSpec
    _device: Device | None
    _groups: Sequence[_Group]
    _group_of: Integers
    _numbers: Floats
    _rows: Integers
    _lengths: Integers

    def __len__(self) -> int:
        return len(self._candidates)

    def alike(self) -> list[tuple[Candidate, Integers]]:
        """Returns the candidates in sets that differ in rows, length and forwards alone, as far as time is concerned.

        Each set is one of its members and the places of all of them.
        """
        sets: dict[Any, int] = {}
        set_of_group = []
        for group in self._groups:
            options = tuple(sorted(group.candidate.options.items()))
            set_of_group.append(sets.setdefault((_TIMED(group.candidate), options), len(sets)))
        set_of = np.array(set_of_group, dtype=np.int64)[self._group_of]
        order = np.argsort(set_of, kind="stable")
        ends = np.cumsum(np.bincount(set_of, minlength=len(sets)))
        return [(self._candidates[int(places[0])], places) for places in np.split(order, ends[:-1])]

    def load(self, places: Integers) -> Load:
        """Returns the rows, lengths and forwards of some candidates, as arrays."""
        forwards = [self._candidates[place].gradient_accumulation_steps for place in places.tolist()]
        return Load(self._rows[places], self._lengths[places].astype(np.float64), np.array(forwards))

    def estimate(self, index: int) -> MemoryEstimate:
        """Returns the estimate of one candidate, with its components, time and assumptions."""
        group = self._groups[self._group_of[index]]
        components = _phase_components(group, self._numbers[index])
        phases = {name: sum(parts.values()) for name, parts in components.items()}
        widest = max(phases, key=lambda name: phases[name])
        peak = phases[widest]
        overhead = overhead_bytes(self._device, peak)
        length = int(self._lengths[index])
        time = estimate_time(self._candidates[index], self._model, self._device, sequence_length=length)
        return MemoryEstimate(
            peak_memory_bytes=peak,
            peak_reserved_bytes=peak + overhead.fragmentation_bytes,
            overhead_bytes=overhead.total_bytes,
            required_bytes=peak + overhead.total_bytes,
            components=components[widest],
            phases=phases,
            phase_components=components,
            trainable_parameters=group.trainable,
            context_bytes=overhead.context_bytes,
            seconds_per_step=time.seconds_per_step,
            source="closed_form",
            relative_error=KNOWN_ERROR,
            assumptions=(
                f"every row has {length} tokens, none of them padding",
                overhead.assumption,
                *time.assumptions,
            ),
        )


def estimate_memory(
    candidate: Candidate, model: ModelSpec, device: Device | None, *, sequence_length: int
) -> MemoryEstimate:
    """Returns the predicted memory and time of one training step.

    The peak is the largest of four phases: load, forward (the loss), backward, optimizer. docs/memory-model.md says
    how they are found, what is left out and the measured error.

    Args:
        candidate: what is trained.
        model: its base model.
        device: what trains; None means an unnamed CUDA device of unknown speed.
        sequence_length: tokens of a row, padding included.

    Raises:
        UnsupportedArchitectureError: if the closed form does not know the model; see ``covers``.
        UnsupportedMethodError: if it does not know a method's step.
    """
    return estimate_many([candidate], model, device, sequence_length=sequence_length).estimate(0)


def estimate_many(
    candidates: Sequence[Candidate],
    model: ModelSpec,
    device: Device | None,
    *,
    sequence_length: int | Sequence[int],
) -> EstimateArrays:
    """Returns the predicted memory of many candidates for one model and device.

    Raises:
        UnsupportedArchitectureError: if the closed form does not know the model; see ``covers``.
        UnsupportedMethodError: if it does not know a method's step.

    Args:
        candidates: of any methods.
        model: their base model.
        device: what trains; None means an unnamed CUDA device of unknown speed.
        sequence_length: tokens of a row, padding included; one for all, or one for each.
    """
    reason = covers(model)
    if reason is not None:
        raise UnsupportedArchitectureError(model, reason)
    for method in dict.fromkeys(each.method for each in candidates):
        if unknown_step(method) is not None:
            raise UnsupportedMethodError(method)
    lengths = np.broadcast_to(np.asarray(sequence_length, dtype=np.int64), (len(candidates),))
    groups, group_of = _grouped(candidates, lengths, model, device)
    rows = np.fromiter((each.per_device_batch_size for each in candidates), np.int64, len(candidates))
    ranks = np.array([group.rank for group in groups])[group_of]
    numbers = _numbers(rows, lengths, ranks)
    held = _of_groups(groups, group_of, lambda group: sum(group.held) + group.workspace)
    load = _of_groups(groups, group_of, lambda group: sum(group.held[:2]))
    initial = _of_groups(groups, group_of, lambda group: group.initial)
    optimizer = _of_groups(groups, group_of, lambda group: sum(group.optimizer))
    phases = {
        "load": load,
        "init": load + initial,
        "forward": held.copy(),
        "backward": held.copy(),
        "optimizer": held + optimizer,
    }
    _add_moments(phases, groups, group_of, numbers)
    peak = np.maximum.reduce(list(phases.values()))
    reserved = peak + fragmentation_bytes(peak).astype(np.int64)
    required = reserved + context_bytes(device)
    trainable = _of_groups(groups, group_of, lambda group: group.trainable)
    return EstimateArrays(
        peak, reserved, required, phases, trainable, candidates, model, device, groups, group_of, numbers, rows, lengths
    )


def _of_groups(groups: Sequence[_Group], group_of: Integers, value: Callable[[_Group], int]) -> Integers:
    """Returns each candidate's value of its group."""
    found: Integers = np.array([value(group) for group in groups], dtype=np.int64)[group_of]
    return found


def _grouped(
    candidates: Sequence[Candidate], lengths: Integers, model: ModelSpec, device: Device | None
) -> tuple[list[_Group], Integers]:
    """Returns the groups, and which one each candidate belongs to."""
    places: dict[Any, int] = {}
    groups: list[_Group] = []
    group_of = np.empty(len(candidates), dtype=np.int64)
    beyond = (lengths >= window_of(model)).tolist()
    for index, candidate in enumerate(candidates):
        options = tuple(sorted(candidate.options.items())) if candidate.options else ()
        key = (_STRUCTURE(candidate), candidate.gradient_accumulation_steps > 1, beyond[index], options)
        place = places.get(key)
        if place is None:
            place = places[key] = len(groups)
            groups.append(_group(candidate, int(lengths[index]), model, device))
        group_of[index] = place
    return groups, group_of


def _group(candidate: Candidate, length: int, model: ModelSpec, device: Device | None) -> _Group:
    kind = device.kind if device else "cuda"
    method = get_method(candidate.method)
    rank, structure = rank_and_structure(candidate, model, kind, length)
    trainable = trainable_parameters(candidate, model)
    tensors = trained_tensors(candidate, model)
    width = static.DTYPE_BYTES[(candidate.adapter_dtype if method.has_adapter else None) or candidate.dtype]
    states = static.optimizer_state_bytes(candidate, tensors, width) + method.extra_static_bytes(candidate, model)
    adapter = trainable * width if method.has_adapter else 0
    temporary = static.optimizer_temporary_bytes(candidate, tensors, width, foreach=kind != "cpu")
    base = static.base_weight_bytes(candidate, model) + head_parameters(model)[0] * static.DTYPE_BYTES[candidate.dtype]
    held = (base + buffer_bytes(model), adapter, states)
    return _Group(
        candidate=candidate,
        structure=structure,
        rank=rank,
        held=held,
        workspace=WORKSPACES * workspace_bytes(device),
        initial=method.init_temporary_bytes(candidate, model),
        optimizer=(trainable * width, temporary),
        trainable=trainable,
    )


def _numbers(rows: Integers, lengths: Integers, ranks: Floats) -> Floats:
    """Returns the values of the ledger's units, ``(candidates, units)``, in their order."""
    tokens = rows * lengths
    tile = np.minimum(tokens - rows, TRL_TOKEN_CHUNK)
    ones = np.ones(len(rows))
    columns = (ones, tokens, tokens * lengths, ranks, tokens * ranks, lengths, lengths * lengths, tile, rows)
    return np.stack(columns, axis=1).astype(np.float64)


def _add_moments(phases: dict[str, Integers], groups: Sequence[_Group], group_of: Integers, numbers: Floats) -> None:
    """Adds to forward and backward what their widest moment holds, one structure at a time."""
    structures = {id(group.structure): group.structure for group in groups}
    structure_of = np.array([id(group.structure) for group in groups])[group_of]
    for key, structure in structures.items():
        members = np.flatnonzero(structure_of == key)
        for name, moments in (("forward", structure.forward), ("backward", structure.backward)):
            phases[name][members] += _widest(moments, numbers[members])


def _widest(moments: Rows, numbers: Floats) -> Integers:
    found: Integers = np.rint((numbers @ moments.coefficients.T).max(axis=1)).astype(np.int64)
    return found


def _phase_components(group: _Group, numbers: Floats) -> dict[str, dict[str, int]]:
    held = dict(zip(HELD, group.held, strict=True))
    found = {"load": {name: held[name] for name in HELD[:2]}}
    if group.initial:
        found["init"] = found["load"] | {"temporaries": group.initial}
    held |= {"workspace": group.workspace} if group.workspace else {}
    for name, moments in (("forward", group.structure.forward), ("backward", group.structure.backward)):
        moment = int((moments.coefficients @ numbers).argmax())
        parts = np.rint(moments.parts[moment] @ numbers).astype(np.int64).tolist()
        found[name] = held | {part: size for part, size in zip(PARTS, parts, strict=True) if size}
    found["optimizer"] = held | dict(zip(("gradients", "temporaries"), group.optimizer, strict=True))
    return found


def covers(model: ModelSpec) -> str | None:
    """Returns why the closed form does not know a model, in one sentence; None if it does.

    ``autopeft.memory.pricing.price_memory`` traces what it does not cover.
    """
    return why_unknown(model)


def unknown_step(method: str) -> str | None:
    """Returns why the closed form does not know a method's step, in one clause; None if it does."""
    known = get_method(method)
    return None if known.closed_form else f"the closed form does not know a step of {known.title}"
