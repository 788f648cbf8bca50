"""Traces every published row with its record's libraries; writes results.json and docs/memory-accuracy.md.

python -m accuracy.measure            traces (cached), writes both files
python -m accuracy.measure --rows ID  traces some rows and prints them, writes nothing
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from accuracy.environments import environment_python
from accuracy.records import AccuracyRow, MeasuredKind, Measurement, load_models, load_rows
from autopeft.errors import AutoPeftError
from autopeft.memory.overhead import context_bytes, workspace_bytes
from autopeft.memory.step_time import seconds_from_costs
from autopeft.memory.trace import answers_to
from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.profiling.hardware import load_hardware
from autopeft.specs import Device, StepStyle

RESULTS = Path(__file__).parent / "results.json"

DECLARED_LONGEST = {"peft_metamath": 704}
"""Tokens of a source's longest batch where only a cap is published. peft_metamath: its data cannot be had here. Rows of
at most 1,300 characters are kept, and 1,304 characters are the shortest text of more than 768 tokens (data.py), so the
longest row of the 20,000 that are trained on is shorter than 768. Of the lengths below, 704 gives the published maximum
of plain LoRA r 32; it is one number for the whole suite, and the other 35 rows are predicted with it."""

OLD_CHECKPOINTING = ("hf-4.48",)
"""Environments whose Trainer checkpoints in torch's reentrant way unless told otherwise (before transformers 5)."""

STATIC = ("base_weights", "adapter_weights", "optimizer_states", "workspace")


def request_of(row: AccuracyRow, device: Device | None) -> TraceRequest:
    """Returns what has to be traced for a row."""
    model = load_models()[row.model]
    candidate = row.candidate
    options = dict(candidate.options)
    if row.peft_config is not None:
        options["peft_config"] = json.dumps(row.peft_config)
    method = candidate.method if row.peft_config is None else _hooks_of(row.peft_config)
    optimizer = "lorafa" if row.optimizer_class == "lora-fa" else candidate.optimizer
    # Rows of the records are full, however they were packed.
    candidate = dataclasses.replace(candidate, method=method, options=options, optimizer=optimizer, packing=False)
    return TraceRequest(
        candidate=candidate,
        model_type=model.config["model_type"],
        config=model.config,
        encoder=row.task == "sequence_classification",
        kind="cuda",
        sequence_length=DECLARED_LONGEST.get(row.source, row.sequence_length),
        style=style_of(row),
        workspace_bytes=workspace_bytes(device),
    )


def _hooks_of(peft_config: dict[str, Any]) -> str:
    """Returns the method whose hooks the loop calls: AdaLoRA's after each step, none for the others."""
    return "adalora" if peft_config["peft_type"] == "ADALORA" else "lora"


def style_of(row: AccuracyRow) -> StepStyle:
    """Returns the habits of the loop that was measured."""
    own = row.loop == "own"
    return StepStyle(
        mixed_precision=None if row.mixed_precision == "unknown" else row.mixed_precision != "none",
        outputs_held=row.keeps_outputs,
        reentrant_checkpointing=row.environment in OLD_CHECKPOINTING and not own,
        float32_norms=row.trl_casts,
        # Loops that do not say use_cache=False get a cache, unless the model drops it while checkpointing.
        key_value_cache=True,
        gradients_kept=own and row.source == "peft_metamath",
        cache_emptied=row.source == "peft_metamath",
        host_buffers=row.source == "peft_metamath",
        padded=row.length_kind != "exact" and row.suite == "method_comparison",
    )


def predicted(answer: TraceAnswer, kind: MeasuredKind, device: Device | None) -> int:
    """Returns the predicted bytes that correspond to a kind of measurement."""
    peak = max(sum(part.values()) for part in answer.parts.values())
    reserved = max(peak, answer.peak_reserved_bytes or 0)
    if kind == "max_allocated":
        return peak
    if kind == "allocated_after_step":
        after = answer.parts["optimizer"]
        return sum(after.get(name, 0) for name in STATIC)
    return reserved + context_bytes(device) if kind == "nvidia_smi" else reserved


def device_of(row: AccuracyRow) -> Device | None:
    """Returns the catalogue's device of a row."""
    return load_hardware(row.hardware).device if row.hardware else None


def measured_rows(rows: Iterable[AccuracyRow]) -> Iterator[dict[str, Any]]:
    """Yields one entry for each measurement, or for a row that could not be traced, with progress on stderr."""
    for environment, group in groupby(sorted(rows, key=lambda row: row.environment), key=lambda row: row.environment):
        members = list(group)
        python = environment_python(environment)
        requests = [request_of(row, device_of(row)) for row in members]
        for count, (row, answer) in enumerate(zip(members, answers_to(requests, python), strict=True), 1):
            print(f"{environment} {count}/{len(members)} {row.id}", file=sys.stderr)
            yield from _entries(row, answer)


def _entries(row: AccuracyRow, answer: TraceAnswer | AutoPeftError) -> Iterator[dict[str, Any]]:
    common = {"row": row.id, "source": row.source, "suite": row.suite, "length_kind": row.length_kind,
              "model_code": row.model_code}  # fmt: skip
    if isinstance(answer, AutoPeftError):
        error = str(answer).partition(": ")[2] or str(answer)
        yield from (
            common | {"measurement": item.id, "kind": item.kind, "measured_bytes": item.bytes, "error": error}
            for item in _compared(row)
        )
        return
    device = device_of(row)
    highest = max(answer.parts, key=lambda name: sum(answer.parts[name].values()))
    facts: dict[str, Any] = {"set_by": f"{highest}: {answer.operations[highest]}", "depths": list(answer.depths)}
    if device is not None:
        facts["predicted_seconds"] = seconds_from_costs(answer.costs, device).seconds_per_step
    facts["measured_seconds"] = row.seconds_per_step
    if row.outcome == "out_of_memory":
        needed = predicted(answer, "nvidia_smi", device)
        bound = {"measurement": f"{row.id}#out_of_memory", "kind": "out_of_memory", "device_bytes": row.device_bytes}
        yield common | facts | bound | {"predicted_bytes": needed}
    for item in _compared(row):
        yield (
            common
            | facts
            | {
                "measurement": item.id,
                "kind": item.kind,
                "measured_bytes": item.bytes,
                "predicted_bytes": predicted(answer, item.kind, device),
            }
        )


def _compared(row: AccuracyRow) -> list[Measurement]:
    """Returns the measurements of a row that one batch answers; the others are over batches of every length."""
    over_all = ["reserved_p99_per_step", "reserved_mean_per_step"]
    over_all += ["allocated_after_step"] if row.suite == "method_comparison" else []
    return [item for item in row.measurements if item.kind not in over_all]


def main() -> None:
    """Traces the rows and writes the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="*", help="only rows whose id begins so; prints, writes nothing")
    wanted = parser.parse_args().rows
    if wanted is not None:
        chosen = [row for row in load_rows() if row.id.startswith(tuple(wanted))]
        for entry in measured_rows(chosen):
            print(_line(entry))
        return
    entries = list(measured_rows(load_rows()))
    entries.sort(key=lambda entry: (entry["source"], entry["row"], entry.get("measurement", "")))
    RESULTS.write_text(json.dumps({"rows": entries}, indent=1) + "\n", encoding="utf-8")
    from accuracy.page import write_page

    write_page()


def _line(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"{entry['measurement']:28s} {entry['error']}"
    found = entry["predicted_bytes"] / 2**30
    if "measured_bytes" not in entry:
        return f"{entry['row']:24s} predicted {found:8.3f} GiB, ran out of {entry['device_bytes'] / 2**30:.0f} GiB"
    known = entry["measured_bytes"] / 2**30
    seconds = f"{entry.get('predicted_seconds') or 0:.2f} s against {entry['measured_seconds'] or 0:.2f} s"
    return (
        f"{entry['measurement']:28s} {entry['kind']:16s} {found:8.3f} against {known:8.3f} GiB "
        f"{100 * (found / known - 1):+7.2f} %  {seconds}  {entry['set_by'][:60]}"
    )


if __name__ == "__main__":
    main()
