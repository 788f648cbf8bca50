"""Compares predicted with published step times; fits nothing.

    PYTHONPATH=benchmarks python benchmarks/step_time.py [--source NAME ...] [--reuse] [--rows]

Every published row on one device with a step time and known lengths is traced in its environment, which
``python -m accuracy.environments`` builds. Its costs are priced for its device; rank correlation and ratio errors are
printed by source, with and without one common factor a source. Traces are kept in ``.cache/step_time.json``;
``--reuse`` takes them from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accuracy.environments import environment_python
from accuracy.records import AccuracyRow, load_models, load_rows

from autopeft.memory.step_time import phase_seconds, seconds_from_costs
from autopeft.memory.tracing.request import KernelCost, TraceRequest
from autopeft.profiling.hardware import load_hardware
from autopeft.specs import Candidate, Device, OptionValue, StepStyle

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".cache" / "step_time.json"

SUITE = "peft_metamath"
SUITE_LENGTH = 224
"""Tokens a row is padded to in the mean batch of the PEFT suite: the mean of its rows, 209.9, and what padding adds in
batches of 4 out of sorted buckets of 80 (assumed 5 to 8 %; the data set is not at hand)."""

REFERENCE = "results/lora--llama-3.2-3B-rank32.json"

_CHILD = """
import json, logging, sys, warnings
warnings.filterwarnings("ignore"); logging.disable(logging.ERROR)
from autopeft.memory.tracing.core import trace
from autopeft.memory.tracing.request import TraceRequest
for line in sys.stdin:
    key, content = json.loads(line)
    try:
        answer = {"costs": trace(TraceRequest.from_dict(content)).to_dict()["costs"]}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:200]}
    print("answer " + json.dumps([key, answer]), flush=True)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", help="only these sources")
    parser.add_argument("--reuse", action="store_true", help="take kept traces where there are any")
    parser.add_argument("--rows", action="store_true", help="print every row")
    options = parser.parse_args(arguments)
    rows = [row for row in load_rows() if _is_comparable(row) and row.source in (options.source or [row.source])]
    traces = traced_costs(rows, reuse=options.reuse)
    for source in sorted({row.source for row in rows}):
        _print_source(source, [row for row in rows if row.source == source], traces, every=options.rows)
    return 0


def _is_comparable(row: AccuracyRow) -> bool:
    """Whether there is a time of one known device, of known lengths and an optimizer that a candidate can name."""
    known = row.hardware is not None and row.optimizer_class is None
    lengths = row.time_scope == "fixed_lengths" or row.source == SUITE
    return row.seconds_per_step is not None and row.devices == 1 and known and lengths


def traced_costs(rows: Sequence[AccuracyRow], *, reuse: bool) -> dict[str, dict[str, Any]]:
    """Returns row id -> ``{"costs": [...]}`` or ``{"error": "..."}``, and keeps each on disk as it comes."""
    kept: dict[str, dict[str, Any]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    wanted = [row for row in rows if not reuse or "costs" not in kept.get(row.id, {})]
    KEPT.parent.mkdir(exist_ok=True)
    for name in sorted({row.environment for row in wanted}):
        for key, answer in _traced_there(name, [row for row in wanted if row.environment == name]):
            kept[key] = answer
            KEPT.write_text(json.dumps(kept))
    return kept


def _traced_there(environment: str, rows: Sequence[AccuracyRow]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields row id and answer; one process of the environment answers all."""
    questions = "".join(json.dumps([row.id, request_of(row).to_dict()]) + "\n" for row in rows)
    with tempfile.TemporaryFile("w+") as asked:
        asked.write(questions)
        asked.seek(0)
        process = subprocess.Popen(
            [environment_python(environment), "-c", _CHILD],
            stdin=asked,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line.startswith("answer "):
                    key, answer = json.loads(line.removeprefix("answer "))
                    yield key, answer
    if process.wait():
        raise SystemExit(f"tracing in {environment} ended early, with {process.returncode}")


def request_of(row: AccuracyRow) -> TraceRequest:
    """Returns what is traced for a published row."""
    model = load_models()[row.model]
    config = dict(model.built_config)
    in_suite = row.source == SUITE
    return TraceRequest(
        candidate=_candidate_of(row),
        model_type=config["model_type"],
        config=config,
        encoder=row.task == "sequence_classification",
        kind="cuda",
        sequence_length=SUITE_LENGTH if in_suite else row.sequence_length,
        style=StepStyle(
            mixed_precision=row.mixed_precision not in ("none", "unknown"),
            outputs_held=row.keeps_outputs,
            key_value_cache=row.loop == "own" and not row.candidate.activation_checkpointing,
            reentrant_checkpointing=row.environment == "hf-4.48",
            float32_norms=row.trl_casts,
            padded=in_suite,
            host_buffers=in_suite,
        ),
        model_code=model.code_path,
    )


def _candidate_of(row: AccuracyRow) -> Candidate:
    candidate = row.candidate
    adapter = row.peft_config
    if adapter is None and row.full_modules:
        adapter = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": candidate.r,
            "lora_alpha": candidate.lora_alpha,
            "lora_dropout": candidate.lora_dropout,
            "target_modules": list(candidate.target_modules),
            "modules_to_save": list(row.full_modules),
        }
    if adapter is None:
        return candidate
    options: dict[str, OptionValue] = {"peft_config": json.dumps({"task_type": "CAUSAL_LM"} | adapter)}
    return dataclasses.replace(
        candidate, method="lora", r=8, lora_alpha=8.0, target_modules=("q_proj",), options=options
    )


def _print_source(source: str, rows: Sequence[AccuracyRow], traces: dict[str, dict[str, Any]], *, every: bool) -> None:
    compared, names = [], []
    for row in rows:
        answer = traces[row.id]
        if "error" in answer:
            print(f"  {row.id:22s} not traced: {answer['error']}")
            continue
        assert row.hardware is not None
        assert row.seconds_per_step is not None
        device = load_hardware(row.hardware).device
        costs = [KernelCost(**each) for each in answer["costs"]]
        predicted = seconds_from_costs(costs, device).seconds_per_step
        assert predicted is not None
        compared.append((predicted, row.seconds_per_step))
        names.append(row)
        if every:
            _print_row(row, predicted, row.seconds_per_step, costs, device)
    _print_errors(source, compared)
    if source == SUITE:
        _print_ratios(names, compared)


def _print_row(row: AccuracyRow, predicted: float, measured: float, costs: list[KernelCost], device: Device) -> None:
    c = row.candidate
    rows = f"{c.per_device_batch_size}x{c.gradient_accumulation_steps}"
    what = f"{c.method} {c.quantization} {rows} x {row.sequence_length}"
    if row.source == SUITE:
        what = row.location.removeprefix("results/").replace("--llama-3.2-3B", "").removesuffix(".json")
    phases = " ".join(f"{h:.3f}/{d:.3f}" for h, d in phase_seconds(costs, device).values())
    figures = f"{predicted:8.4f} {measured:8.4f} {predicted / measured:6.3f}"
    print(f"  {row.id:20s} {row.model.partition('/')[2]:18s} {what:38s} {figures}  {phases}")


def _print_errors(source: str, compared: Sequence[tuple[float, float]]) -> None:
    if len(compared) < 3:
        print(f"{source}: {len(compared)} rows, too few")
        return
    predicted, measured = np.array(compared).T
    ratios = predicted / measured
    factor = float(np.exp(np.median(np.log(ratios))))
    print(
        f"{source}: {len(compared)} rows, rank correlation {spearman(predicted, measured):.3f}; "
        f"predicted / measured: median {np.median(ratios):.3f}, from {ratios.min():.2f} to {ratios.max():.2f}; "
        f"ratio error median {_median_error(ratios):.1%}, "
        f"without one common factor {_median_error(ratios / factor):.1%}"
    )


def _median_error(ratios: Any) -> float:
    return float(np.median(np.abs(ratios - 1)))


def _print_ratios(rows: Sequence[AccuracyRow], compared: Sequence[tuple[float, float]]) -> None:
    """Prints what each method takes as a multiple of plain LoRA of rank 32."""
    reference = next((pair for row, pair in zip(rows, compared, strict=True) if row.location == REFERENCE), None)
    if reference is None:
        return
    errors = []
    for row, (predicted, measured) in zip(rows, compared, strict=True):
        ours, theirs = predicted / reference[0], measured / reference[1]
        errors.append(abs(ours / theirs - 1))
        print(f"    {row.location.removeprefix('results/'):58s} {ours:6.2f} x LoRA, measured {theirs:6.2f} x")
    print(f"  ratio to LoRA r 32: median error {np.median(errors):.1%}, worst {max(errors):.1%}")


def spearman(first: Iterable[float], second: Iterable[float]) -> float:
    """Returns the rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Iterable[float]) -> Any:
    listed = np.asarray(list(values))
    return np.array([((listed < each).sum() + (listed <= each).sum()) / 2 for each in listed])


if __name__ == "__main__":
    sys.exit(main())
