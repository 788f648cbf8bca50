"""Scores a model on held-out rows, per example."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from autopeft.engine.loss import row_losses
from autopeft.errors import AutoPeftError
from autopeft.specs import Candidate, Scores
from autopeft.training.data import TokenRow


class ScoreError(AutoPeftError):
    """The held-out loss is no finite number."""


def score_rows(
    model: Any,
    rows: Sequence[TokenRow],
    collator: Callable[[list[dict[str, list[int]]]], dict[str, Any]],
    candidate: Candidate,
    device: str,
    on_rows: Callable[[int], None] | None = None,
) -> Scores:
    """Returns the loss of every row, in the order given; rows of like length share a forward.

    A forward takes as many rows as one of the training, whose memory was priced.

    Args:
        model: with or without adapter, prepared for the candidate's loss.
        rows: each with a supervised token.
        collator: makes batches of them.
        candidate: says how many rows a forward takes and whose loss is computed.
        device: that the model is on.
        on_rows: told how many rows are done.

    Raises:
        ScoreError: if the loss is no finite number.
    """
    import torch

    begin = time.monotonic()
    was_training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    losses = [0.0] * len(rows)
    counts = [0] * len(rows)
    size = candidate.per_device_batch_size
    with torch.inference_mode():
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = _on_device(collator([rows[index].columns for index in chosen]), device)
            row_sums, row_counts = row_losses(model, batch, candidate.trainer)
            for index, loss, count in zip(chosen, row_sums.tolist(), row_counts.tolist(), strict=True):
                losses[index], counts[index] = loss, count
            if on_rows is not None:
                on_rows(start + len(chosen))
    model.train(was_training)
    eval_loss = sum(losses) / sum(counts)
    if not math.isfinite(eval_loss):
        raise ScoreError(
            f"the held-out loss became {eval_loss} ({candidate.method}, learning_rate {candidate.learning_rate:g}, "
            f"{candidate.dtype}); a lower learning rate or a wider dtype gives a number"
        )
    return Scores(
        eval_loss=eval_loss,
        losses=tuple(losses),
        supervised_tokens=tuple(counts),
        seconds=time.monotonic() - begin,
    )


def _on_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    import torch

    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
