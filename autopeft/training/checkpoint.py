"""Checkpoints of a long training, and the way back after it was killed.

transformers writes optimizer, schedule and random states. The weights are ours: peft's own loading would cut AdaLoRA's
masked ranks off and forget its importance statistics.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.engine.step import StepParts
from autopeft.specs import Job, RungReport, TrainRequest, from_json, to_json

FEWEST_STEPS = 10
PARTS = 10
"""A killed training loses at most a tenth of its steps, or FEWEST_STEPS."""

KEPT = 2
"""While one checkpoint is being written, the one before it is still whole."""

_WEIGHTS = "trained.pt"
_PROGRESS = "progress.json"
_FINGERPRINT = "fingerprint.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a training has come to at a checkpoint, beside weights and states.

    Attributes:
        pending_losses: of the optimizer steps since the last look at them.
    """

    step: int
    tokens: int
    train_seconds: float
    first_step_seconds: float | None
    curve: tuple[RungReport, ...]
    pending_losses: tuple[float, ...]


def checkpoint_steps(steps: int) -> int:
    """Returns after how many steps a checkpoint is written."""
    return max(FEWEST_STEPS, math.ceil(steps / PARTS))


def fingerprint(job: Job, request: TrainRequest) -> str:
    """Returns a hash of all that decides a training: the same hash, the same loss curve."""
    decided = (job.model, job.revision, job.data_hash, job.max_length, job.seed, job.choose_rows, job.test_rows)
    text = repr((decided, request.steps, request.seed, request.rungs)) + to_json(request.candidate)
    return hashlib.sha256(text.encode()).hexdigest()


def open_checkpoints(folder: Path, wanted: str) -> Path | None:
    """Returns the newest whole checkpoint of the training with this fingerprint; None if it must begin anew.

    A folder with checkpoints of another training is emptied.
    """
    mark = folder / _FINGERPRINT
    if not mark.is_file() or mark.read_text(encoding="ascii") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(wanted, encoding="ascii")
        return None
    whole = [entry for entry in folder.glob("checkpoint-*") if (entry / _PROGRESS).is_file()]
    return max(whole, key=lambda entry: int(entry.name.rpartition("-")[2]), default=None)


def write_progress(checkpoint: Path, progress: Progress) -> None:
    """Writes the last file of a checkpoint, which makes it whole."""
    temporary = checkpoint / f".{_PROGRESS}.tmp"
    temporary.write_text(to_json(progress), encoding="utf-8")
    temporary.replace(checkpoint / _PROGRESS)


def read_progress(checkpoint: Path) -> Progress:
    """Returns what the training had come to."""
    path = checkpoint / _PROGRESS
    return from_json(path.read_text(encoding="utf-8"), Progress, str(path))


def write_weights(folder: Path, parts: StepParts) -> None:
    """Writes the trained weights as they are, and what the method keeps beside them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach() for name, value in parts.model.named_parameters() if value.requires_grad}
    torch.save({"weights": weights, "method": parts.method.training_state(parts.model)}, folder / _WEIGHTS)


def load_weights(checkpoint: Path, parts: StepParts) -> None:
    """Puts the weights of a checkpoint, and what the method kept beside them, into a freshly prepared model."""
    import torch

    device = next(parts.model.parameters()).device
    state: dict[str, Any] = torch.load(checkpoint / _WEIGHTS, map_location=device, weights_only=True)
    trained = {name: value for name, value in parts.model.named_parameters() if value.requires_grad}
    assert trained.keys() == state["weights"].keys(), "the fingerprint says that it is the same training"
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(state["weights"][name])
    parts.method.load_training_state(parts.model, state["method"])
