"""Tells from the training losses that a training is broken, and the likely cause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from autopeft.specs import Candidate

CONSTANT_STEPS = 20
"""So many optimizer steps with one and the same loss, on other rows each, are no coincidence."""

CONSTANT_SPREAD = 1e-6
"""Relative spread of losses below which they are the same: float32's resolution, with room for summation order."""

SKIPPED_STEPS = 25
"""So many skipped steps in a row are an overflow that does not end: the scaler halves each time, from 65536 to 2^-9."""


@dataclass(slots=True)
class LossWatch:
    """Looks at the loss of each optimizer step of one training.

    Attributes:
        candidate: what is trained; its settings are named as causes.
        skipped: optimizer steps in a row that float16's gradient scaler left out.
    """

    candidate: Candidate
    skipped: int = 0
    _recent: list[float] = field(default_factory=list)
    _began_at_zero: bool = True

    def complaint(self, losses: Sequence[float], first_step: int) -> str | None:
        """Returns what is wrong with the losses and the likely cause, in one sentence; None if nothing is.

        Args:
            losses: of the optimizer steps since the last call.
            first_step: number of the first of them, from 1.
        """
        for step, loss in enumerate(losses, first_step):
            if not math.isfinite(loss):
                return self._not_finite(step, loss)
        self._recent = [*self._recent, *losses][-CONSTANT_STEPS:]
        self._began_at_zero = self._began_at_zero and not any(losses)
        if len(self._recent) == CONSTANT_STEPS and self._is_suspicious():
            return self._constant(first_step + len(losses) - 1)
        return None

    def count_skip(self, skipped: bool) -> str | None:
        """Counts a step that the gradient scaler did or did not skip; returns what is wrong after too many.

        Args:
            skipped: whether it was.
        """
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped < SKIPPED_STEPS:
            return None
        return (
            f"float16's gradient scaler skipped {self.skipped} optimizer steps in a row: the gradients overflow "
            "float16 at every scale; train in bfloat16 or float32"
        )

    def _is_suspicious(self) -> bool:
        """Returns whether the last losses are the same; of zeros only where there was never anything else.

        Rows that are known by heart come to a loss of exactly zero too.
        """
        low, high = min(self._recent), max(self._recent)
        if high == 0:
            return self._began_at_zero
        return high - low <= CONSTANT_SPREAD * abs(high)

    def _not_finite(self, step: int, loss: float) -> str:
        candidate = self.candidate
        start = (
            f"the training loss became {loss} at step {step} with learning_rate {candidate.learning_rate:g} in "
            f"{candidate.dtype}; "
        )
        if candidate.dtype == "float16":
            return start + (
                "the likely cause first: activations above 65504 overflow float16 (train in bfloat16 or float32), "
                "or the learning rate is too high"
            )
        if step == 1:
            return start + (
                "no step was taken before, so the learning rate is not the cause: check the checkpoint for broken "
                "weights, and the data for rows without a supervised token"
            )
        return start + "a lower learning rate or a wider dtype trains"

    def _constant(self, step: int) -> str:
        loss = self._recent[-1]
        start = f"the training loss was {loss:.6g} in each of the {CONSTANT_STEPS} steps up to step {step}; "
        if loss == 0:
            return start + (
                "a loss of zero means that no token counts: all labels are masked, by truncation or by the format; "
                "raise max_length or check the columns"
            )
        return start + (
            f"nothing is learned: the output no longer depends on the input (learning_rate "
            f"{self.candidate.learning_rate:g} too high, weights saturated), or no gradient reaches the trained weights"
        )
