"""Scores a model on held-out rows, per example."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from autopeft.engine.loss import row_losses
from autopeft.specs import Scores
from autopeft.training.data import Collator, TokenRow

ROWS_PER_FORWARD = 8


def score_rows(model: Any, rows: Sequence[TokenRow], collator: Collator, device: str) -> Scores:
    """Returns the loss of every row, in the order given; rows of like length share a forward."""
    import torch

    begin = time.monotonic()
    was_training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    losses = [0.0] * len(rows)
    counts = [0] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), ROWS_PER_FORWARD):
            chosen = order[start : start + ROWS_PER_FORWARD]
            batch = _on_device(collator([rows[index].columns for index in chosen]), device)
            row_sums, row_counts = row_losses(model, batch)
            for index, loss, count in zip(chosen, row_sums.tolist(), row_counts.tolist(), strict=True):
                losses[index], counts[index] = loss, count
    model.train(was_training)
    return Scores(
        eval_loss=sum(losses) / sum(counts),
        losses=tuple(losses),
        supervised_tokens=tuple(counts),
        seconds=time.monotonic() - begin,
    )


def _on_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value if isinstance(value, int) else value.to(device) for name, value in batch.items()}
