"""What of the GPU check runs without a GPU: its plan, its training steps, its checks of values and its text."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from autopeft.errors import AutoPeftError, NothingFitsError
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model
from autopeft.specs import MemoryEstimate
from autopeft.testing import CPU, tiny_llama
from autopeft.units import GIB

AMPLE_DISK = 1000 * GIB
NAMES = (
    "LoRA bfloat16",
    "LoRA bfloat16, checkpointing",
    "DoRA bfloat16",
    "QLoRA nf4",
    "LoftQ nf4",
)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("gpu_check")


@pytest.fixture
def report(check: ModuleType) -> ModuleType:
    return importlib.import_module("gpu_report")


def estimate(peak_gib: float, seconds: float | None = 1.0) -> MemoryEstimate:
    peak = int(peak_gib * GIB)
    return MemoryEstimate(
        peak_memory_bytes=peak,
        peak_reserved_bytes=peak + GIB,
        overhead_bytes=2 * GIB,
        required_bytes=peak + 2 * GIB,
        components={},
        phases={},
        trainable_parameters=1,
        seconds_per_step=seconds,
        source="traced",
        relative_error=0.03,
    )


def test_without_a_cuda_gpu_it_says_so_in_one_sentence(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "needs a CUDA GPU" in err


@pytest.mark.parametrize(
    ("device", "model"),
    [
        ("a100-80gb", "llama-3.2-3b"),
        ("rtx-4090", "llama-3.2-3b"),
        ("t4", "llama-3.2-1b"),
        ("rtx-3060-12gb", "llama-3.2-1b"),
    ],
)
def test_the_largest_model_whose_every_configuration_fits_is_chosen(check: ModuleType, device: str, model: str) -> None:
    found = load_hardware(device).device
    spec = check.choose_model(found, AMPLE_DISK)
    largest = max(
        check.estimate_memory(candidate, spec, found, sequence_length=check.SEQUENCE_LENGTH).required_bytes
        for candidate in check.configurations(spec, found).values()
    )
    assert largest <= found.free_memory_bytes
    assert load_model(model).id == spec.id


def test_a_smaller_device_or_disk_gets_a_smaller_model(check: ModuleType) -> None:
    device = load_hardware("rtx-4090").device
    sizes = [
        check.choose_model(replace(device, free_memory_bytes=size * GIB), AMPLE_DISK).parameter_count
        for size in (5, 8, 12, 24)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert check.choose_model(device, 2 * GIB).parameter_count < check.choose_model(device, AMPLE_DISK).parameter_count


def test_a_device_without_room_is_told_what_is_needed(check: ModuleType) -> None:
    full = replace(load_hardware("t4").device, free_memory_bytes=GIB // 4)
    with pytest.raises(NothingFitsError, match=r"gpu-check needs [0-9.]+ (GiB|MiB) of free device memory.*Tesla T4"):
        check.choose_model(full, AMPLE_DISK)


def test_a_device_without_bfloat16_is_checked_in_float16(check: ModuleType) -> None:
    device = load_hardware("t4").device
    found = check.configurations(load_model("llama-3.2-1b"), device)
    assert {candidate.dtype for candidate in found.values()} == {"float16"}


@pytest.mark.parametrize("name", NAMES)
def test_each_configuration_trains_as_the_engine_trains(
    check: ModuleType, report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(check, "SEQUENCE_LENGTH", 16)
    spec = load_model(str(tiny_llama(tmp_path)))
    (tmp_path / "random").mkdir()
    folder = check.write_random_model(spec, tmp_path / "random", "bfloat16", "cpu")
    reached = []
    candidate = check.configurations(load_model(str(folder)), CPU)[name]
    details = check.train_steps(folder, candidate, "cpu", lambda: reached.append(True))
    assert reached == [True]
    if "LoftQ" in name:
        measured = report.Measured(
            peak_bytes=1, reserved_bytes=1, device_bytes=1, seconds_per_step=1.0, details=details
        )
        row = report.Row(name=name, closed_form=estimate(1), traced=estimate(1), measured=measured)
        assert check.loftq_check([row]).startswith("the quantization error falls in all 14 layers")


def test_the_configurations_are_the_tested_ones(check: ModuleType) -> None:
    assert tuple(check.configurations(load_model("llama-3.2-1b"), CPU)) == NAMES


def test_loftq_that_does_not_help_fails_the_check(check: ModuleType, report: ModuleType) -> None:
    details = {"quantization_error_before": {"q": 0.1, "v": 0.1}, "quantization_error_after": {"q": 0.05, "v": 0.2}}
    measured = report.Measured(peak_bytes=1, reserved_bytes=1, device_bytes=1, seconds_per_step=1.0, details=details)
    row = report.Row(name="LoftQ nf4", closed_form=estimate(1), traced=estimate(1), measured=measured)
    with pytest.raises(AutoPeftError, match="does not fall in 1 of 2 layers"):
        check.loftq_check([row])


def test_nf4_of_the_processor_agrees_with_itself(check: ModuleType) -> None:
    text = check.nf4_check("cpu")
    assert "differs from the processor's by 0.0e+00" in text


def test_a_bfloat16_product_is_off_by_less_than_a_hundredth(check: ModuleType) -> None:
    # bfloat16 keeps 8 bits: rounding the result alone is off by about 2^-9 = 2.0e-3.
    text = check.product_check("cpu", "bfloat16", size=64)
    assert 1e-4 < float(text.split()[2].rstrip(",")) < 1e-2


def test_errors_in_the_table_are_relative_to_the_measurement(report: ModuleType) -> None:
    measured = report.Measured(
        peak_bytes=10 * GIB, reserved_bytes=11 * GIB, device_bytes=12 * GIB, seconds_per_step=2.0, details={}
    )
    row = report.Row(name="LoRA", closed_form=estimate(11), traced=estimate(9.9, None), measured=measured)
    assert report.format_row(row) == (
        "| LoRA | 11.00 (+10.0%) | 9.90 (-1.0%) | 10.00 | 10.90 (-0.9%) | 11.00 | 11.90 (-0.8%) | 12.00 | 1.00 | 2.00 |"
    )


def test_a_configuration_that_failed_says_why_in_its_line(report: ModuleType) -> None:
    problem = report.one_line(RuntimeError("out of memory | on cuda\nmore"))
    row = report.Row(name="DoRA", closed_form=estimate(11), traced=None, measured=None, problem=problem)
    assert report.format_row(row) == (
        "| DoRA | 11.00 | - | RuntimeError: out of memory / on cuda | - | - | - | - | - | - |"
    )


def test_the_block_holds_device_versions_every_line_and_every_check(report: ModuleType) -> None:
    rows = [report.Row(name=name, closed_form=estimate(1), traced=None, measured=None) for name in NAMES]
    block = report.format_block(load_hardware("l40s"), "a tiny model", rows, {"nf4 kernels": "fine"})
    assert "NVIDIA L40S, capability 8.9" in block
    assert "autopeft 0.1.0" in block
    assert [line.split(" | ")[0] for line in block.splitlines() if "not measured" in line] == [f"| {n}" for n in NAMES]
    assert "**nf4 kernels**: fine" in block
