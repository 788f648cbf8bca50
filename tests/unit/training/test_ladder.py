"""The ladder of what a training gives up when memory runs out."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autopeft.specs import Candidate, TrainOutcome, TrainRequest
from autopeft.training.ladder import next_lower, train_within_memory

CANDIDATE = Candidate(method="lora", r=8, lora_alpha=8.0, per_device_batch_size=4, max_length=256)
REQUEST = TrainRequest(name="t", candidate=CANDIDATE, steps=5, rungs=(), seed=0, output_folder="unused")


def whole_ladder(candidate: Candidate, *, allow_shorter: bool) -> list[tuple[str, Candidate]]:
    steps = []
    while (lower := next_lower(candidate, allow_shorter=allow_shorter)) is not None:
        steps.append(lower)
        candidate = lower[1]
    return steps


def outcome(status: Any, **more: Any) -> TrainOutcome:
    return TrainOutcome(
        status=status,
        steps=0,
        tokens=0,
        seconds=2.0,
        train_seconds=0.0,
        scores=None,
        curve=(),
        measured_peak_bytes=None,
        **more,
    )


def test_the_levers_come_in_the_declared_order() -> None:
    levers = [lever for lever, _ in whole_ladder(CANDIDATE, allow_shorter=True)]
    assert levers == [
        "per_device_batch_size",
        "per_device_batch_size",
        "activation_checkpointing",
        "optimizer",
        "max_length",
        "max_length",
    ]


def test_rows_are_cut_only_where_that_is_allowed() -> None:
    assert all(each.max_length == 256 for _, each in whole_ladder(CANDIDATE, allow_shorter=False))
    assert whole_ladder(CANDIDATE, allow_shorter=True)[-1][1].max_length == 64


@given(st.integers(1, 200), st.integers(1, 64))
def test_the_effective_batch_never_changes(batch: int, accumulation: int) -> None:
    start = replace(CANDIDATE, per_device_batch_size=batch, gradient_accumulation_steps=accumulation)
    steps = whole_ladder(start, allow_shorter=True)
    assert {each.effective_batch_size for _, each in steps} == {batch * accumulation}
    assert steps[-1][1].per_device_batch_size == 1


def test_an_optimizer_without_states_is_kept() -> None:
    plain = replace(CANDIDATE, optimizer="sgd")
    assert "optimizer" not in [lever for lever, _ in whole_ladder(plain, allow_shorter=True)]


def test_every_rung_and_all_seconds_are_in_the_outcome() -> None:
    def train(request: TrainRequest) -> TrainOutcome:
        fits = request.candidate.per_device_batch_size == 1
        return outcome("complete") if fits else outcome("oom", error="full")

    found = train_within_memory(REQUEST, train)
    assert found.status == "complete"
    assert found.seconds == 6.0
    assert found.trained == replace(CANDIDATE, per_device_batch_size=1, gradient_accumulation_steps=4)
    assert found.details["memory_ladder"] == [
        {"lever": "per_device_batch_size", "before": 4, "after": 2, "error": "full"},
        {"lever": "per_device_batch_size", "before": 2, "after": 1, "error": "full"},
    ]


def test_at_the_bottom_it_is_out_of_memory_with_all_that_was_tried() -> None:
    found = train_within_memory(REQUEST, lambda _: outcome("oom", error="full"))
    assert found.status == "oom"
    assert found.error is not None
    assert "also after per_device_batch_size 4 to 2" in found.error
    assert "optimizer adamw_torch to adamw_bnb_8bit" in found.error


def test_a_training_that_fits_is_left_alone() -> None:
    fine = outcome("complete")
    assert train_within_memory(REQUEST, lambda _: fine) is fine
