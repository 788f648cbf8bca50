"""What is told of losses that cannot be right."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.specs import Candidate
from autopeft.training.loss_watch import CONSTANT_STEPS, SKIPPED_STEPS, LossWatch

CANDIDATE = Candidate(method="lora", r=8, lora_alpha=8.0, dtype="float32", learning_rate=0.5)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_step_and_learning_rate(loss: float) -> None:
    complaint = LossWatch(CANDIDATE).complaint([2.0, 1.0, loss], first_step=5)
    assert complaint is not None
    assert f"{loss} at step 7 with learning_rate 0.5 in float32; a lower learning rate" in complaint


def test_in_float16_overflow_is_named_first() -> None:
    complaint = LossWatch(replace(CANDIDATE, dtype="float16")).complaint([math.nan], first_step=30)
    assert complaint is not None
    assert complaint.index("overflow float16") < complaint.index("learning rate is too high")


def test_in_the_first_step_the_learning_rate_is_not_the_cause() -> None:
    complaint = LossWatch(CANDIDATE).complaint([math.nan], first_step=1)
    assert complaint is not None
    assert "the learning rate is not the cause" in complaint


def test_zero_from_the_start_is_masked_labels() -> None:
    watch = LossWatch(CANDIDATE)
    assert watch.complaint([0.0] * (CONSTANT_STEPS - 1), first_step=1) is None
    complaint = watch.complaint([0.0], first_step=CONSTANT_STEPS)
    assert complaint is not None
    assert "all labels are masked" in complaint


def test_zero_after_learning_is_rows_known_by_heart() -> None:
    watch = LossWatch(CANDIDATE)
    assert watch.complaint([1.0, *[0.0] * 3 * CONSTANT_STEPS], first_step=1) is None


def test_one_and_the_same_loss_is_nothing_learned() -> None:
    complaint = LossWatch(CANDIDATE).complaint([5.5606818] * CONSTANT_STEPS, first_step=1)
    assert complaint is not None
    assert "nothing is learned" in complaint


@given(st.lists(st.floats(0.01, 20.0), min_size=1, max_size=40))
def test_losses_that_differ_are_no_complaint(losses: list[float]) -> None:
    differing = [loss * (1 + 1e-4 * (index % 2)) for index, loss in enumerate(losses)]
    flat = max(differing) - min(differing) <= 1e-6 * max(differing)
    assert LossWatch(CANDIDATE).complaint(differing, first_step=1) is None or flat


def test_a_gradient_scaler_that_never_settles_is_an_overflow() -> None:
    watch = LossWatch(CANDIDATE)
    assert all(watch.count_skip(True) is None for _ in range(SKIPPED_STEPS - 1))
    assert watch.count_skip(False) is None
    complaints = [watch.count_skip(True) for _ in range(SKIPPED_STEPS)]
    assert complaints[-1] is not None
    assert "overflow float16 at every scale" in complaints[-1]
