"""Traces every published row with its record's libraries; writes results.json and docs/memory-accuracy.md.

python -m accuracy.measure                     traces (cached), writes both files
python -m accuracy.measure --rows ID           traces some rows and prints them, writes nothing
python -m accuracy.measure --rows ID --write   puts them in the place of the rows that were there
python -m accuracy.measure --stale             names the rows that other tracing code than the present was asked about
python -m accuracy.measure --check             traces one row of every kind again; fails where a figure is another
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from accuracy.environments import environment_python
from accuracy.lengths import batch_orders
from accuracy.litgpt_rows import litgpt_candidate, litgpt_config
from accuracy.page import RESULTS, load_entries, write_page
from accuracy.records import ARCHITECTURES, AccuracyRow, MeasuredKind, Measurement, load_models, load_rows
from autopeft.errors import AutoPeftError
from autopeft.memory.overhead import context_bytes, workspace_bytes
from autopeft.memory.step_time import seconds_from_costs
from autopeft.memory.trace import answers_to
from autopeft.memory.trace_cache import tracing_code_hash
from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.profiling.hardware import load_hardware
from autopeft.specs import Device, StepStyle

DECLARED_LONGEST = {"peft_metamath": 704}
"""Tokens of a source's longest batch where only a cap is published. peft_metamath: its data cannot be had here. Rows of
at most 1,300 characters are kept, and 1,304 characters are the shortest text of more than 768 tokens (data.py), so the
longest row of the 20,000 that are trained on is shorter than 768. Of the lengths below, 704 gives the published maximum
of plain LoRA r 32; it is one number for the whole suite, and the other 35 rows are predicted with it."""

OLD_CHECKPOINTING = ("hf-4.48",)
"""Environments whose Trainer checkpoints in torch's reentrant way unless told otherwise (before transformers 5)."""

SPOTS = ("fms_accel-001", "fms_accel-085", "litgpt_resource-002", "peft_metamath-129", "qwen_readme-001")
"""One quick row of every kind: both environments, full and LoRA, 16 and 4 bits, a loop and model code of others."""

SAME_FIGURE = 0.0005
"""Figures of the page have three decimals, of 3 to 80 GiB."""

STATIC = ("base_weights", "adapter_weights", "optimizer_states", "workspace")


def request_of(row: AccuracyRow, device: Device | None) -> TraceRequest:
    """Returns what has to be traced for a row."""
    model = load_models()[row.model]
    candidate = row.candidate
    options = dict(candidate.options)
    adapter = adapter_of(row)
    if adapter is not None:
        options["peft_config"] = json.dumps(adapter)
    method = candidate.method if adapter is None else _hooks_of(adapter)
    # Rows of the records are full, however they were packed.
    candidate = dataclasses.replace(candidate, method=method, options=options, packing=False)
    config, code = model.built_config, model.code_path
    if row.architecture == "litgpt":
        config, code = litgpt_config(model.config, candidate), str(ARCHITECTURES / "litgpt.py")
        candidate = litgpt_candidate(candidate)
    return TraceRequest(
        candidate=candidate,
        model_type=config["model_type"],
        config=config,
        encoder=row.task == "sequence_classification",
        kind="cuda",
        sequence_length=DECLARED_LONGEST.get(row.source, row.sequence_length),
        style=style_of(row),
        workspace_bytes=workspace_bytes(device),
        model_code=code,
        batch_orders=orders_of(row),
    )


def adapter_of(row: AccuracyRow) -> dict[str, Any] | None:
    """Returns the adapter as peft's configuration, where a candidate does not say all of it; else None."""
    if row.peft_config is not None or not row.full_modules or row.task != "causal_lm":
        return row.peft_config
    candidate = row.candidate
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": candidate.r,
        "lora_alpha": candidate.lora_alpha,
        "lora_dropout": candidate.lora_dropout,
        "target_modules": list(candidate.target_modules),
        "modules_to_save": list(row.full_modules),
    }


def orders_of(row: AccuracyRow) -> tuple[tuple[int, ...], ...]:
    """Returns the orders of batch lengths that a row's reserved memory is replayed over; none if all are alike."""
    if row.row_lengths is None:
        return ()
    return batch_orders(row.row_lengths, row.sequence_length, row.candidate.per_device_batch_size)


def _hooks_of(peft_config: dict[str, Any]) -> str:
    """Returns the method whose hooks the loop calls: AdaLoRA's after each step, none for the others."""
    return "adalora" if peft_config["peft_type"] == "ADALORA" else "lora"


def style_of(row: AccuracyRow) -> StepStyle:
    """Returns the habits of the loop that was measured."""
    own = row.loop == "own"
    return StepStyle(
        mixed_precision=None if row.mixed_precision == "unknown" else row.mixed_precision != "none",
        outputs_held=row.keeps_outputs,
        reentrant_checkpointing=row.reentrant if own else row.environment in OLD_CHECKPOINTING,
        float32_norms=row.trl_casts,
        # Loops that do not say use_cache=False get a cache, unless the model drops it while checkpointing.
        key_value_cache=True,
        gradients_kept=own and row.source == "peft_metamath",
        cache_emptied=row.source == "peft_metamath",
        host_buffers=row.source == "peft_metamath",
        padded=row.length_kind != "exact" and row.suite == "method_comparison",
        float32_logits="float32_logits" in row.old_habits,
        quantized_inputs_kept="quantized_inputs_kept" in row.old_habits,
        adam_denominators="adam_denominators" in row.old_habits,
    )


def predicted(answer: TraceAnswer, kind: MeasuredKind, device: Device | None) -> int:
    """Returns the predicted bytes that correspond to a kind of measurement.

    Who names no counter of torch's is taken to have read the device's memory, the context in it.
    """
    peak = max(sum(part.values()) for part in answer.parts.values())
    reserved = max(peak, answer.peak_reserved_bytes or 0)
    if kind == "max_allocated":
        return peak
    if kind == "allocated_after_step":
        after = answer.parts["optimizer"]
        return sum(after.get(name, 0) for name in STATIC)
    return reserved if kind == "max_reserved" else reserved + context_bytes(device)


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
              "model_code": row.model_code, "traced_by": tracing_code_hash()}  # fmt: skip
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
    parser.add_argument("--rows", nargs="*", help="only rows whose id begins so; prints them")
    parser.add_argument("--write", action="store_true", help="with --rows: replace these rows in both files")
    parser.add_argument("--stale", action="store_true", help="name the rows traced by other code than the present")
    parser.add_argument("--check", action="store_true", help="trace one row of every kind again, and compare")
    wanted = parser.parse_args()
    if wanted.stale:
        print("\n".join(stale_rows(load_entries())))
        return
    if wanted.check:
        spots = [row for row in load_rows() if row.id in SPOTS]
        sys.exit("\n".join(changed_figures(_told(measured_rows(spots)), load_entries())) or None)
    chosen = [row for row in load_rows() if wanted.rows is None or row.id.startswith(tuple(wanted.rows))]
    entries = list(_told(measured_rows(chosen)))
    if wanted.rows is None or wanted.write:
        kept = [] if wanted.rows is None else load_entries()
        _write(entries + [entry for entry in kept if entry["row"] not in {row.id for row in chosen}])


def _told(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        print(_line(entry), flush=True)
        yield entry


def _write(entries: list[dict[str, Any]]) -> None:
    entries.sort(key=lambda entry: (entry["source"], entry["row"], entry.get("measurement", "")))
    RESULTS.write_text(json.dumps({"rows": entries}, indent=1) + "\n", encoding="utf-8")
    write_page()


def stale_rows(entries: Iterable[dict[str, Any]]) -> list[str]:
    """Returns the rows whose figures come from other tracing code than the present, or from before it was noted."""
    return sorted({entry["row"] for entry in entries if entry.get("traced_by") != tracing_code_hash()})


def changed_figures(fresh: Iterable[dict[str, Any]], kept: Iterable[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each figure that a new trace gives and the table does not, within SAME_FIGURE."""
    known = {entry["measurement"]: entry.get("predicted_bytes") for entry in kept}
    changes = []
    for entry in fresh:
        before, now = known.get(entry["measurement"]), entry.get("predicted_bytes")
        if before is None or now is None or abs(now / before - 1) > SAME_FIGURE:
            changes.append(
                f"{entry['measurement']}: the table says {before} bytes, the present code {now}; call: make accuracy"
            )
    return changes


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
