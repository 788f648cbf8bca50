"""The store survives what happens to files, and corrections have the properties that they are trusted for."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.engine.stack import stack_versions
from autopeft.errors import AutoPeftError
from autopeft.memory.calibration import (
    RATIO_LIMIT,
    Calibration,
    Wanted,
    apply,
    calibrated,
    calibration_for,
    correction,
)
from autopeft.memory.calibration_store import (
    KINDS,
    CalibrationStore,
    Observation,
    predicted_bytes,
    traits_of,
    versions_of,
)
from autopeft.memory.closed_form import estimate_memory
from autopeft.memory.observing import Training, observations_of
from autopeft.specs import Candidate, Device, HardwareProfile, MemoryEstimate, ModelSpec, TrainOutcome
from autopeft.units import GIB

GPU = Device(name="Test GPU", kind="cuda", total_memory_bytes=24 * GIB, free_memory_bytes=24 * GIB)
TRAITS = {"method": "lora", "quantization": "none", "dtype": "bfloat16"}
VERSIONS = {"torch": "2.13.0", "peft": "0.21.2"}
ROW = Observation(
    device="Test GPU",
    kind="max_allocated",
    model="a-llama",
    model_type="llama",
    versions=VERSIONS,
    traits=TRAITS,
    batch_size=4,
    sequence_length=512,
    data=None,
    predicted_by="closed_form",
    predicted_bytes=10 * GIB,
    measured_bytes=10 * GIB,
    oom_at_bytes=None,
    predicted_seconds=None,
    measured_seconds=None,
    source="calibrate",
)
WANTED = Wanted(
    device="Test GPU",
    versions=VERSIONS,
    model_type="llama",
    traits=TRAITS,
    data=None,
    predicted_by="closed_form",
    sizes=dict.fromkeys(KINDS, 10 * GIB),
    relative_error=0.05,
)

ratios = st.floats(min_value=0.6, max_value=1.9)


def measured(ratio: float, **changes: object) -> Observation:
    return replace(ROW, measured_bytes=round(ratio * ROW.predicted_bytes), **changes)  # type: ignore[arg-type]


def too_small(ratio: float) -> Observation:
    return replace(ROW, measured_bytes=None, oom_at_bytes=round(ratio * ROW.predicted_bytes))


def factor(*rows: Observation) -> float:
    """Returns the factor; 1 where there is no correction."""
    found = correction(rows, WANTED, "max_allocated")
    return 1.0 if found is None else found.factor


# The formula


@given(st.lists(ratios, max_size=6), st.lists(ratios, max_size=4), ratios)
def test_more_runs_out_of_memory_never_lower_the_factor(seen: list[float], limits: list[float], one: float) -> None:
    rows = [*map(measured, seen), *map(too_small, limits)]
    assert factor(*rows, too_small(one)) >= factor(*rows)


@given(st.integers(1, 8))
def test_exact_predictions_are_not_changed_and_become_surer(count: int) -> None:
    found = correction([ROW] * count, WANTED, "max_allocated")
    assert found is not None
    assert found.factor == 1.0
    assert found.relative_error == pytest.approx(0.05 / math.sqrt(count + 1))


@given(st.permutations([measured(ratio) for ratio in (0.9, 0.95, 1.1, 1.3)] + [too_small(1.02), too_small(0.8)]))
def test_the_order_of_the_observations_does_not_matter(rows: list[Observation]) -> None:
    in_order = sorted(rows, key=lambda row: row.found_bytes)
    assert correction(rows, WANTED, "max_allocated") == correction(in_order, WANTED, "max_allocated")


@given(st.lists(ratios, min_size=1, max_size=9))
def test_the_factor_lies_between_no_change_and_the_measured_ratios(seen: list[float]) -> None:
    found = factor(*map(measured, seen))
    assert min(1.0, *seen, 1.0) - 1e-9 <= found <= max(1.0, *seen, 1.0) + 1e-9


@given(st.lists(ratios, min_size=3, max_size=9), st.floats(0.01, 100))
def test_one_odd_run_among_equal_ones_does_not_decide(seen: list[float], odd: float) -> None:
    same = [seen[0]] * len(seen)
    assert factor(*map(measured, [*same, odd])) == pytest.approx(factor(*map(measured, same)), rel=0.05)


def test_a_run_that_needed_more_counts_in_full() -> None:
    assert factor(measured(1.1)) == pytest.approx(1.1)


def test_runs_that_needed_less_are_shrunk_towards_no_change() -> None:
    # Worked by hand: n equal ratios of 0.81 give 0.81 ** (n / (n + 1)); 0.81 ** (1/2) = 0.9, 0.81 ** (3/4) = 0.8538.
    assert factor(measured(0.81)) == pytest.approx(0.9)
    assert factor(*[measured(0.81)] * 3) == pytest.approx(0.8538, abs=1e-4)


def test_a_limit_that_was_too_small_raises_and_is_counted() -> None:
    found = correction([measured(0.9), too_small(1.05)], WANTED, "max_allocated")
    assert found is not None
    assert (found.factor, found.runs, found.bounds) == (pytest.approx(1.05), 1, 1)
    assert "raised by 1 run that needed more" in found.sentence


def test_a_limit_below_the_prediction_says_nothing() -> None:
    assert correction([too_small(0.8)], WANTED, "max_allocated") is None


def test_running_out_of_memory_with_very_much_to_spare_is_put_down_to_others() -> None:
    assert correction([too_small(RATIO_LIMIT * 1.01)], WANTED, "max_allocated") is None


def test_measurements_on_other_data_only_raise() -> None:
    """Their rows may have been shorter than those that memory was predicted for."""
    assert correction([measured(0.7, data="aa")], WANTED, "max_allocated") is None
    assert factor(measured(1.2, data="aa")) == pytest.approx(1.2)
    found = correction([measured(0.81, data="aa")], replace(WANTED, data="aa"), "max_allocated")
    assert found is not None
    assert found.factor == pytest.approx(0.9)


@pytest.mark.parametrize(
    "change",
    [
        {"device": "Test GPU 2"},
        {"versions": VERSIONS | {"peft": "0.20.0"}},
        {"predicted_by": "traced"},
        {"kind": "max_reserved"},
        {"predicted_bytes": 10 * GIB // 5},
        {"predicted_bytes": 50 * GIB},
    ],
)
def test_what_is_not_comparable_is_not_compared(change: dict[str, object]) -> None:
    assert correction([replace(ROW, **change)], WANTED, "max_allocated") is None  # type: ignore[arg-type]


def test_the_narrowest_scope_with_measurements_is_used() -> None:
    other_family = measured(1.5, model_type="gpt2")
    other_method = measured(1.3, traits=TRAITS | {"method": "dora"})
    rows = [other_family, other_method, measured(1.1)]
    for expected, scope in ((1.1, "configuration"), (1.3, "family"), (1.5, "device")):
        found = correction(rows, WANTED, "max_allocated")
        assert found is not None
        assert (found.factor, found.scope) == (pytest.approx(expected), scope)
        rows.pop()


def test_resident_memory_is_corrected_by_the_difference() -> None:
    """The process is 100 MiB larger than foretold, whatever it trains: 1.1 of 1,000 MiB, 1.0833 of 1,200 MiB."""
    row = replace(ROW, kind="resident", predicted_bytes=1000, measured_bytes=1100)
    for size, expected in ((1000, 1.1), (1200, 1.08333)):
        found = correction([row], replace(WANTED, sizes=dict.fromkeys(KINDS, size)), "resident")
        assert found is not None
        assert found.factor == pytest.approx(expected, abs=1e-5)


# Estimates


@pytest.fixture
def estimate(make_candidate: Callable[..., Candidate], llama: ModelSpec) -> MemoryEstimate:
    return estimate_memory(make_candidate(), llama, GPU, sequence_length=128)


@given(st.lists(st.floats(0.55, 1.9), min_size=3, max_size=3), st.sets(st.sampled_from(KINDS), min_size=1))
def test_a_corrected_estimate_adds_up(found: list[float], kinds: set[str]) -> None:
    components = {"base_weights": 7_000_003, "gradients": 11, "activations": 900_001, "temporaries": 333}
    peak = sum(components.values())
    plain = MemoryEstimate(
        peak_memory_bytes=peak,
        peak_reserved_bytes=peak + 100_000,
        overhead_bytes=600_000,
        required_bytes=peak + 600_000,
        components=components,
        phases={"load": 7_000_003, "backward": peak},
        phase_components={"load": {"base_weights": 7_000_003}, "backward": components},
        trainable_parameters=1,
        seconds_per_step=None,
        source="closed_form",
        relative_error=0.05,
    )
    rows = [
        replace(ROW, kind=kind, predicted_bytes=peak, measured_bytes=round(ratio * peak))
        for kind, ratio in zip(KINDS, found, strict=True)
    ]
    wanted = replace(WANTED, sizes={kind: predicted_bytes(plain, kind) for kind in KINDS})
    corrections = [correction(rows, wanted, kind) for kind in KINDS if kind in kinds]
    changed = apply(plain, [each for each in corrections if each is not None])
    assert changed.source == "calibrated"
    assert sum(changed.components.values()) == changed.peak_memory_bytes == max(changed.phases.values())
    assert {name: sum(parts.values()) for name, parts in changed.phase_components.items()} == changed.phases
    assert min(changed.components.values()) >= 0
    assert changed.peak_memory_bytes <= changed.peak_reserved_bytes <= changed.required_bytes
    assert changed.overhead_bytes == changed.required_bytes - changed.peak_memory_bytes


def test_what_is_counted_exactly_stays_where_the_rest_can_change(estimate: MemoryEstimate) -> None:
    wanted = replace(WANTED, sizes={kind: predicted_bytes(estimate, kind) for kind in KINDS})
    row = replace(ROW, predicted_bytes=100 * 2**20, measured_bytes=110 * 2**20)
    wanted = replace(wanted, sizes=wanted.sizes | {"max_allocated": 100 * 2**20})
    found = correction([row], wanted, "max_allocated")
    assert found is not None
    changed = apply(estimate, [found])
    assert changed.peak_memory_bytes == round(1.1 * estimate.peak_memory_bytes)
    assert changed.components["base_weights"] == estimate.components["base_weights"]
    assert changed.components["activations"] > estimate.components["activations"]
    assert changed.assumptions[-1] == (
        "calibrated with 1 run of this kind on this device: allocated memory x 1.100 (± 3.5%)"
    )


def observed(estimate: MemoryEstimate, candidate: Candidate, ratio: float) -> Observation:
    """Returns a row of this machine's versions."""
    return replace(
        ROW,
        versions=versions_of(stack_versions()),
        traits=traits_of(candidate),
        predicted_bytes=estimate.peak_memory_bytes,
        measured_bytes=round(ratio * estimate.peak_memory_bytes),
    )


def test_only_a_probed_device_is_calibrated(
    make_candidate: Callable[..., Candidate],
    llama: ModelSpec,
    estimate: MemoryEstimate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    CalibrationStore().append(observed(estimate, make_candidate(), 1.2))
    probed = HardwareProfile(name="Test GPU", origin="probed", devices=(GPU,))
    catalogue = replace(probed, origin="catalogue")
    changed = calibrated(estimate, make_candidate(), llama, probed)
    assert changed.source == "calibrated"
    assert changed.peak_memory_bytes == pytest.approx(1.2 * estimate.peak_memory_bytes, abs=1)
    assert calibrated(estimate, make_candidate(), llama, catalogue) is estimate
    assert calibration_for(catalogue) is None


def test_a_pricer_corrects_once_and_as_of_when_it_was_made(
    make_candidate: Callable[..., Candidate], llama: ModelSpec, estimate: MemoryEstimate
) -> None:
    rows = [observed(estimate, make_candidate(), 1.2)]
    price = Calibration(rows, GPU).pricer(estimate_memory)
    twice = Calibration(rows, GPU).pricer(price)
    rows.append(observed(estimate, make_candidate(), 1.9))
    first = price(make_candidate(), llama, GPU, sequence_length=128)
    assert first.peak_memory_bytes == pytest.approx(1.2 * estimate.peak_memory_bytes, abs=1)
    assert twice(make_candidate(), llama, GPU, sequence_length=128) == first


def test_without_observations_an_estimate_is_the_same(
    make_candidate: Callable[..., Candidate], llama: ModelSpec, estimate: MemoryEstimate
) -> None:
    assert Calibration([], GPU).corrected(estimate, make_candidate(), llama) is estimate


# What a training measured


def outcome(status: str, **changes: object) -> TrainOutcome:
    plain = TrainOutcome(
        status="complete",
        steps=3,
        tokens=1,
        seconds=1.0,
        train_seconds=1.0,
        scores=None,
        curve=(),
        measured_peak_bytes=None,
    )
    return replace(plain, status=status, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "ended", "expected"),
    [
        (
            "cuda",
            outcome("complete", measured_peak_bytes=5 * GIB, measured_peak_kind="max_allocated"),
            [("max_allocated", 5 * GIB, None)],
        ),
        # The context of half a GiB is no part of what the allocator may hold.
        ("cuda", outcome("oom"), [("max_reserved", None, 8 * GIB - GIB // 2)]),
        (
            "cpu",
            outcome("oom", measured_peak_bytes=9 * GIB, measured_peak_kind="resident"),
            [("resident", None, 8 * GIB)],
        ),
        ("cpu", outcome("oom"), []),
        ("cuda", outcome("failed", measured_peak_bytes=5 * GIB, measured_peak_kind="max_allocated"), []),
    ],
    ids=["measured", "out of memory on a GPU", "over the limit of a host", "another limit of a host", "failed"],
)
def test_measured_and_predicted_are_of_one_kind(
    make_candidate: Callable[..., Candidate],
    llama: ModelSpec,
    kind: str,
    ended: TrainOutcome,
    expected: list[tuple[str, int | None, int | None]],
) -> None:
    device = replace(GPU, kind=kind)  # type: ignore[arg-type]
    estimate = estimate_memory(make_candidate(), llama, device, sequence_length=128)
    training = Training(
        candidate=make_candidate(),
        model=llama,
        device=device,
        data=None,
        sequence_length=128,
        limit_bytes=8 * GIB,
        versions={"torch": "2.13.0", "numpy": "2"},
        source="trial",
    )
    rows = observations_of(training, estimate, ended, seconds=None)
    assert [(row.kind, row.measured_bytes, row.oom_at_bytes) for row in rows] == expected
    assert all(row.predicted_bytes == predicted_bytes(estimate, row.kind) for row in rows)
    assert all(row.versions == {"torch": "2.13.0"} for row in rows)


# The store


def test_the_store_gives_back_what_was_put_in(tmp_path: Path) -> None:
    store = CalibrationStore(tmp_path / "new" / "calibration.jsonl")
    assert store.read() == ()
    for row in (ROW, too_small(1.1)):
        store.append(row)
    assert store.read() == (ROW, too_small(1.1))


def test_damaged_lines_are_passed_over_with_a_warning_that_names_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CalibrationStore(tmp_path / "calibration.jsonl")
    store.append(ROW)
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + b'{"device": 3}\n' + whole[: len(whole) // 2])
    store.append(too_small(1.1))
    with caplog.at_level(logging.WARNING):
        assert store.read() == (ROW, too_small(1.1))
    told = [record.getMessage() for record in caplog.records]
    assert [text.partition(" is no observation")[0] for text in told] == [f"{store.path}, line {n}" for n in (2, 3)]


def test_a_row_without_a_result_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CalibrationStore(tmp_path / "calibration.jsonl")
    store.append(ROW)
    content = json.loads(store.path.read_text()) | {"measured_bytes": None}
    store.path.write_text(json.dumps(content) + "\n")
    assert store.read() == ()
    assert "either measured_bytes or oom_at_bytes" in caplog.text


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "calibration.jsonl").mkdir()
    store = CalibrationStore(tmp_path / "calibration.jsonl")
    with pytest.raises(AutoPeftError, match=r"cannot write the calibration store .*calibration\.jsonl"):
        store.append(ROW)
    with pytest.raises(AutoPeftError, match=r"cannot read the calibration store .*calibration\.jsonl"):
        store.read()


def test_several_writers_at_a_time_lose_nothing(tmp_path: Path) -> None:
    store = CalibrationStore(tmp_path / "calibration.jsonl")
    store.append(ROW)
    script = (
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from autopeft.memory.calibration_store import CalibrationStore\n"
        "store = CalibrationStore(Path(sys.argv[1]))\nrow = store.read()[0]\n"
        "for number in range(100):\n    store.append(replace(row, model=sys.argv[2], batch_size=number + 1))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(store.path), name]) for name in ("one", "two")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    rows = store.read()[1:]
    for name in ("one", "two"):
        assert [row.batch_size for row in rows if row.model == name] == list(range(1, 101))


def test_the_store_is_in_the_cache_folder(cache_of_the_tests: Path) -> None:
    assert CalibrationStore().path == cache_of_the_tests / "calibration.jsonl"


def test_calibration_needs_no_torch() -> None:
    code = (
        "import sys\nimport autopeft.memory.calibration, autopeft.memory.observing\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
