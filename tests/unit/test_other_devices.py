"""Several devices, and devices of other makers; what the probe answers is made up, torch is the real one."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autopeft
from autopeft.engine.base import OriginalWeights
from autopeft.engine.step import StepParts
from autopeft.errors import HardwareError, NothingFitsError
from autopeft.methods import MethodContext, get_method
from autopeft.profiling import hardware
from autopeft.profiling.dataset import hash_files
from autopeft.specs import Candidate, HardwareProfile, Job, Recommendation, TrainRequest
from autopeft.training.data import Collator
from autopeft.training.process import worker_environment
from autopeft.units import GIB

OTHER_KINDS = {"rocm": "mi300x", "xpu": "arc-b580", "mps": "m4-max"}


def found(name: str, selector: str | None = None) -> HardwareProfile:
    """Returns what a probe would find of a machine with this device."""
    profile = hardware.load_hardware(name)
    devices = tuple(replace(device, selector=selector) for device in profile.devices)
    return replace(profile, origin="probed", checked=None, devices=devices)


def suggest(model: Path, data: Path, **options: object) -> Recommendation:
    return autopeft.suggest(model=str(model), data=str(data), methods=["lora"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "name"), OTHER_KINDS.items())
def test_a_plan_for_a_device_of_another_maker_says_that_it_is_unverified(
    kind: str, name: str, tiny_model: Path, number_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hardware._HERE, "auto", lambda: found(name))
    plan = suggest(tiny_model, number_data)
    assert plan.hardware.device.kind == kind
    assert any(note.startswith("unverified") and kind in note for note in plan.notes)
    assert plan.candidates[0].candidate.dtype == "bfloat16"
    assert {entry.candidate.quantization for entry in plan.candidates} == {"none", "nf4"}


def test_an_older_apple_chip_computes_in_float32(tiny_model: Path, number_data: Path) -> None:
    plan = suggest(tiny_model, number_data, hardware="m1")
    assert {entry.candidate.dtype for entry in plan.candidates} == {"float32"}


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="torch has an accelerator")
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_worker_refuses_a_device_that_its_torch_cannot_use(
    kind: str, tiny_model: Path, number_data: Path, tmp_path: Path
) -> None:
    from autopeft.training.session import Session

    job = Job(
        model=str(tiny_model),
        revision=None,
        data_files=(str(number_data),),
        data_hash=hash_files((str(number_data),)),
        data_format="prompt_completion",
        columns={"prompt": "prompt", "completion": "completion"},
        max_length=32,
        device=kind,  # type: ignore[arg-type]
        memory_limit_bytes=None,
        cache_folder=str(tmp_path),
        choose_rows=20,
        test_rows=30,
        seed=0,
    )
    with pytest.raises(HardwareError, match=f"for a {kind} device, but the installed torch"):
        Session(job)


@pytest.mark.parametrize("device", ["mps", "cuda", "cpu"])
def test_a_worker_is_not_led_to_another_device_by_the_environment(device: str) -> None:
    leading = {"PYTORCH_ENABLE_MPS_FALLBACK": "1", "ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    environment = worker_environment({**leading, "HF_HOME": "kept"}, device)
    assert not set(leading) & set(environment)
    assert environment["HF_HOME"] == "kept"


@pytest.mark.parametrize("planned", ["mps", "cuda"])
def test_a_trainer_that_would_train_on_the_processor_instead_is_refused(
    planned: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autopeft.training.trainer import CandidateTrainer, trainer_config

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    candidate = Candidate(method="lora", r=8, lora_alpha=16, dtype="float32")
    request = TrainRequest(name="trial", candidate=candidate, steps=2, rungs=(), seed=0, output_folder=str(tmp_path))
    context = MethodContext(candidate=candidate, steps=2, seed=0, weights=OriginalWeights(tiny_model))
    parts = StepParts(
        model=torch.nn.Identity(), method=get_method("lora"), context=context, optimizer=None, device_type=planned
    )
    config = trainer_config(candidate, request, planned)
    assert config.device.type == "cpu"
    with pytest.raises(HardwareError, match=f"the plan is for {planned}, but transformers' Trainer chose cpu"):
        CandidateTrainer(parts, config, (), Collator(0, keeps_logits=False), None)


def test_a_run_warns_of_what_is_unverified_and_plans_for_that_device(
    tiny_model: Path,
    number_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(hardware._HERE, "auto", lambda: found("m4-max"))
    with caplog.at_level(logging.WARNING):
        autopeft.run(
            suggest(tiny_model, number_data, hardware="rtx-4090"), trials=1, dry_run=True, output=tmp_path / "run"
        )
    assert any("unverified" in record.message for record in caplog.records)
    plan = Recommendation.from_dict(json.loads((tmp_path / "run" / "plan.json").read_text()))
    assert plan.hardware.device.kind == "mps"


def test_a_plan_that_asked_for_the_processor_runs_there_whatever_else_there_is(
    tiny_model: Path, number_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hardware._HERE, "auto", lambda: found("mi300x"))
    plan = suggest(tiny_model, number_data, hardware="cpu")
    assert plan.hardware.device.kind == "cpu"
    autopeft.run(plan, trials=1, dry_run=True, output=tmp_path / "run")
    kept = Recommendation.from_dict(json.loads((tmp_path / "run" / "plan.json").read_text()))
    assert kept.hardware.device.kind == "cpu"


def test_of_several_devices_the_plan_names_the_one_that_trains(tiny_model: Path, number_data: Path) -> None:
    plan = suggest(tiny_model, number_data, hardware="t4 + 2x rtx-4090")
    assert plan.hardware.device.name == "NVIDIA GeForce RTX 4090"
    assert any("one of the 3 devices, here device 1, NVIDIA GeForce RTX 4090" in note for note in plan.notes)
    alone = suggest(tiny_model, number_data, hardware="rtx-4090")
    assert [entry.candidate for entry in plan.candidates] == [entry.candidate for entry in alone.candidates]


def test_the_memory_of_several_devices_is_not_added_up_and_the_error_says_so(
    tiny_model: Path, number_data: Path
) -> None:
    # Llama-3-8B takes at least 6 GiB; eight times 4 GiB do not help.
    with pytest.raises(NothingFitsError, match="of 8 devices one trains a candidate: device 0, Tesla T4"):
        autopeft.suggest(model="llama-3-8b", data=str(number_data), hardware="8x t4", budget_memory="4GiB")


@pytest.mark.parametrize("hardware_text", ["rtx-4090", "2x rtx-4090"])
def test_a_budget_below_the_devices_size_holds_for_each_device(
    tiny_model: Path, number_data: Path, hardware_text: str
) -> None:
    plan = suggest(tiny_model, number_data, hardware=hardware_text, budget_memory="8GiB")
    assert {entry.available_bytes for entry in plan.candidates} == {8 * GIB}


@pytest.mark.parametrize(
    ("selector", "device", "expected"),
    [
        ("CUDA_VISIBLE_DEVICES=MIG-11111111-aaaa", "cuda", {"CUDA_VISIBLE_DEVICES": "MIG-11111111-aaaa"}),
        ("ROCR_VISIBLE_DEVICES=GPU-2", "rocm", {"CUDA_VISIBLE_DEVICES": "3,1", "ROCR_VISIBLE_DEVICES": "GPU-2"}),
        (None, "cuda", {"CUDA_VISIBLE_DEVICES": "3"}),
    ],
)
def test_a_worker_sees_the_device_of_the_plan_alone(
    selector: str | None, device: str, expected: dict[str, str]
) -> None:
    environment = worker_environment({"CUDA_VISIBLE_DEVICES": "3,1"}, device, selector)
    assert {name: value for name, value in environment.items() if name.endswith("_VISIBLE_DEVICES")} == expected
