"""The model card of a finished run's adapter: README.md in the hub's format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import Any

import yaml

from autopeft.report.recipe import load_snippet, winners_training
from autopeft.report.record import RunRecord
from autopeft.specs import Candidate, TrialResult, Verdict
from autopeft.units import format_duration

_UNKNOWN = "unknown to autopeft"
_JOULES_PER_KWH = 3.6e6


def model_card(record: RunRecord) -> str:
    """Returns README.md of the adapter's folder: metadata that the hub reads, then what was made of what, and how well.

    Raises:
        RunFolderError: if the run has no verdict yet.
    """
    # Refuses a run without a verdict. A card may be published, so it names no folder of this machine that it can avoid.
    snippet = load_snippet(replace(record, folder="."))
    verdict = record.verdict
    assert verdict is not None, "load_snippet has seen to it"
    training = winners_training(record, verdict)
    metadata = yaml.safe_dump(_metadata(record, verdict.winner), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{metadata}---",
        f"# {verdict.winner.method} for {record.plan.model.id}",
        verdict.conclusion,
        "## What it is\n\n" + _table(_facts(record, verdict.winner, training)),
        "## Why this method\n\n" + "\n".join(f"- {line}" for line in (verdict.winner_reason, *verdict.caveats)),
        "## Held-out loss\n\n" + _scores(verdict),
        "## What it took\n\n" + _table(_costs(record, verdict, training)),
        f"## Load it\n\n```python\n{snippet}```",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(record: RunRecord, winner: Candidate) -> dict[str, Any]:
    """Returns what the hub reads; a key stands there only where its value is known."""
    plan = record.plan
    adapter = bool(winner.target_modules)
    known = {
        "license": plan.model.license,
        "library_name": "peft" if adapter else "transformers",
        "base_model": plan.model.id if plan.model.format == "hub" else None,
        "base_model_relation": ("adapter" if adapter else "finetune") if plan.model.format == "hub" else None,
        "pipeline_tag": "text-generation",
        "tags": ["autopeft", winner.method, *(["lora"] if adapter and winner.method != "lora" else [])],
    }
    return {key: value for key, value in known.items() if value is not None}


def _facts(record: RunRecord, winner: Candidate, training: TrialResult) -> list[tuple[str, str]]:
    model, data = record.plan.model, record.plan.data
    rank = f"rank {winner.r}, alpha {winner.lora_alpha:g}, on {', '.join(winner.target_modules)}" if winner.r else ""
    return [
        ("base model", f"{model.id}{f' at {model.revision}' if model.revision else ''}"),
        ("licence of the base", model.license or _UNKNOWN),
        ("data", f"{PurePath(data.source).name}, {data.example_count:,} rows, SHA-256 `{data.content_hash}`"),
        ("licence of the data", _UNKNOWN),
        ("method", f"{winner.method}{f', {rank}' if rank else ''}"),
        ("base while training", f"{winner.quantization} quantization, {winner.dtype}"),
        ("learning rate", f"{winner.learning_rate:g}, {winner.scheduler}"),
        ("batch", f"{winner.effective_batch_size} rows of up to {winner.max_length} tokens"),
        ("training", f"{training.steps} steps, {training.tokens:,} tokens, seed {training.seed}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(training.versions.items()))),
    ]


def _scores(verdict: Verdict) -> str:
    """Returns the losses on the test split, and the winner's differences with their intervals."""
    against = {comparison.right: comparison for comparison in verdict.comparisons if comparison.left == "winner"}
    lines = ["| | loss (nats a token) | winner less it (95 % interval) |", "|---|---|---|"]
    for name, loss in verdict.losses.items():
        found = against.get(name)
        interval = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]" if found else ""
        lines.append(f"| {name} | {loss:.4f} | {interval} |")
    cut = [f"- {line}" for line in verdict.cut]
    return "\n".join([*lines, *(["", "What the budget cut:", "", *cut] if cut else [])])


def _costs(record: RunRecord, verdict: Verdict, training: TrialResult) -> list[tuple[str, str]]:
    device = record.plan.hardware.device
    watts = device.power_limit_watts or device.power_watts
    energy = f"{_UNKNOWN}, as is the power of the device"
    if watts is not None:
        spent = watts * verdict.seconds / _JOULES_PER_KWH
        energy = f"at most {spent:.3g} kWh for the whole search: {watts:g} W times its duration, the device alone"
    return [
        ("hardware", device.name),
        ("this training", format_duration(training.seconds)),
        ("the whole search", format_duration(verdict.seconds)),
        ("energy", energy),
    ]


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])
