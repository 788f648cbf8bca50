"""The sections that say under which conditions it was measured: rejections, data, reproducibility."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from autopeft.methods import registry
from autopeft.report.content import Cell, Section, Table, facts_table, text_rows
from autopeft.report.formats import NOT_MEASURED, format_share, format_size, joined
from autopeft.report.hardware import hardware_facts
from autopeft.report.record import RunRecord
from autopeft.specs import Candidate, DatasetProfile, Finding, ModelSpec, RejectedCandidate, TruncationPoint
from autopeft.specs.data import PaddingPoint
from autopeft.units import counted, format_count

_DEEPEST = 4


def rejected_section(record: RunRecord) -> Section:
    """Returns what was not tried, or did not work, with the reason."""
    rejected = Table(
        caption="Rejected before the search",
        columns=("method", "variant", "smallest need (GiB)", "reason"),
        rows=tuple(map(_rejected_row, record.plan.rejected)),
    )
    broken = [trial for trial in record.trials if trial.status in ("failed", "oom", "timeout")]
    failures = Table(
        caption="Trainings that did not finish",
        columns=("name", "method", "status", "error"),
        rows=text_rows((t.name, t.candidate.method, t.status, t.error or "no error text is recorded") for t in broken),
    )
    tables = tuple(table for table in (rejected, _not_tried(record), failures) if table.rows)
    paragraphs = () if tables else ("Nothing was rejected and no training failed.",)
    return Section(anchor="rejected", title="Rejected, and why", paragraphs=paragraphs, tables=tables)


def _not_tried(record: RunRecord) -> Table:
    """Returns the planned candidates that no training had, as far as the manifest knows why."""
    tried = {(trial.candidate.method, trial.candidate.quantization) for trial in record.trials}
    planned = [(entry["method"], entry["variant"], entry["reason"]) for entry in record.manifest.get("not_tried", ())]
    rows = text_rows(entry for entry in planned if entry[:2] not in tried)
    return Table(caption="Planned but not tried", columns=("method", "base", "why"), rows=rows)


def data_section(record: RunRecord) -> Section:
    """Returns the data set's size and what was found in it."""
    data = record.plan.data
    told = (
        counted(len(data.findings), "finding") + ", worst first."
        if data.findings
        else "Nothing was found that changes a decision."
    )
    tables = [facts_table("The data set", data_facts(data))]
    if data.findings:
        columns = ("severity", "what was found", "rows", "examples", "what to do")
        rows = tuple(map(_finding_row, data.findings))
        tables.append(Table(caption="Findings", columns=columns, rows=rows))
    return Section(anchor="data", title="Data", paragraphs=(told,), tables=tuple(tables))


def reproducibility_section(record: RunRecord) -> Section:
    """Returns versions, seeds, hashes and hardware."""
    plan = record.plan
    facts = [
        ("run folder", record.folder),
        ("seed of the plan", str(plan.seed)),
        ("seeds of the trainings", joined(sorted({str(trial.seed) for trial in record.trials}))),
        ("hash of the data (SHA-256)", plan.data.content_hash),
        *model_facts(plan.model),
        *hardware_facts(plan.hardware),
    ]
    versions: dict[str, set[str]] = {}
    for trial in record.trials:
        for library, version in trial.versions.items():
            versions.setdefault(library, set()).add(version)
    tables = [facts_table("Seeds, hashes, model, hardware", facts)]
    if versions:
        tables.append(
            facts_table("Library versions", [(name, joined(sorted(found))) for name, found in sorted(versions.items())])
        )
    if record.manifest:
        tables.append(facts_table("manifest.json", list(flat_facts(record.manifest)), folded=True))
    return Section(anchor="reproducibility", title="Reproducibility", tables=tuple(tables))


def data_facts(data: DatasetProfile) -> list[tuple[str, str]]:
    """Returns a data set's profile as names and values."""
    estimated = " (estimated from characters)" if data.token_counts_source == "characters" else ""
    about = "about " if data.coverage == "sample" else ""
    quantiles = ", ".join(f"{100 * float(key):g} %: {tokens:,}" for key, tokens in data.token_quantiles.items())
    advice = data.base_scores.advice if data.base_scores else None
    facts = [
        *([("advice", advice.sentence)] if advice else []),
        ("source", data.source),
        ("files", joined(data.files)),
        ("format", data.format),
        ("columns", joined(f"{role} = {column}" for role, column in data.columns.items())),
        ("task", _task(data)),
        ("examples", f"{about}{data.example_count:,}{_read(data)}"),
        ("tokens of all rows", f"{data.total_tokens:,}{estimated}"),
        ("tokens of a row", f"mean {data.mean_tokens:.1f}, longest {data.max_tokens:,}"),
        ("quantiles of tokens", quantiles or NOT_MEASURED),
        ("supervised tokens", format_share(data.supervised_ratio)),
        ("exact duplicates", f"{data.duplicate_count:,}"),
        *_written(data),
        *((f"max_length {point.max_length}", _cut(point)) for point in data.truncation),
        *((f"padding, batch {point.per_device_batch_size}", _padded(point)) for point in data.padding),
    ]
    return facts + [(f"label {label}", f"{count:,} rows") for label, count in data.label_counts.items()]


def _task(data: DatasetProfile) -> str:
    evidence = f": {data.task_evidence}" if data.task_evidence else ""
    return (data.task_kind or data.task).replace("_", " ") + evidence


def _read(data: DatasetProfile) -> str:
    counted = "" if data.sampled_examples >= data.example_count else f"; tokens counted on {data.sampled_examples:,}"
    return counted + (f"; {data.skipped_rows:,} bad ones left out" if data.skipped_rows else "")


def _written(data: DatasetProfile) -> list[tuple[str, str]]:
    lines = [("scripts", data.scripts), ("languages", data.languages)]
    return [
        (name, joined(f"{key} {format_share(share)}" for key, share in shares.items()))
        for name, shares in lines
        if shares
    ]


def _cut(point: TruncationPoint) -> str:
    rows, lost = format_share(point.rows_truncated_share), format_share(point.supervised_tokens_lost_share)
    emptied = point.rows_without_labels_share
    nothing = f"; {format_share(emptied)} of the rows keep none" if emptied else ""
    return f"cuts {rows} of the rows and {lost} of the supervised tokens{nothing}"


def _padded(point: PaddingPoint) -> str:
    random, grouped = format_share(point.random_padding_share), format_share(point.grouped_padding_share)
    return f"{random} of the positions at random, {grouped} grouped by length"


def model_facts(model: ModelSpec) -> list[tuple[str, str]]:
    """Returns a model's shape as names and values."""
    shape = f"{model.layers} layers, hidden {model.hidden_size}, intermediate {model.intermediate_size}"
    heads = f"{model.attention_heads} heads, {model.key_value_heads} key-value heads of {model.head_dim}"
    return [
        ("model", f"{model.id} ({model.model_type}, {model.kind})"),
        ("model read from", f"{model.format}: {model.path}" if model.path else model.format),
        ("model revision", model.revision or "not known"),
        ("parameters", f"{format_count(model.parameter_count)} (from the {model.parameter_count_source})"),
        *_experts(model),
        ("shape", shape),
        ("vocabulary", f"{model.vocab_size:,}{' (tied embeddings)' if model.tie_word_embeddings else ''}"),
        ("attention", heads),
        ("context length", "not stated" if model.context_length is None else f"{model.context_length:,}"),
        ("checkpoint", model.stored_quantization or model.stored_dtype or "not known"),
        *_over_stored_weights(model),
    ]


def _experts(model: ModelSpec) -> list[tuple[str, str]]:
    if model.experts is None:
        return []
    found = model.experts
    shared = f", and one of width {found.shared_width} that sees every token" if found.shared_width else ""
    return [
        ("active parameters", f"{format_count(found.active_parameters)} work on a token"),
        ("experts", f"{found.count} in a block, {found.per_token} for each token{shared}"),
    ]


def _over_stored_weights(model: ModelSpec) -> list[tuple[str, str]]:
    """Returns what each method can do with an already quantized checkpoint; nothing for others."""
    if model.stored_format is None:
        return []
    asked = Candidate(method="", r=8, lora_alpha=8.0, target_modules=("all",), quantization=model.stored_format.base)
    problems = {
        name: method.stored_format_problem(replace(asked, method=name), model) for name, method in registry().items()
    }
    return [(f"{name} over it", problem or "yes") for name, problem in problems.items()]


def flat_facts(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yields nested JSON data as dotted names and values; long and deep parts are counted, not shown."""
    if isinstance(content, dict) and depth < _DEEPEST:
        for key, value in content.items():
            yield from flat_facts(value, f"{name}.{key}" if name else str(key), depth + 1)
    elif (
        isinstance(content, list)
        and all(not isinstance(value, dict | list) for value in content)
        and len(content) <= 16
    ):
        yield name, ", ".join(map(_scalar, content)) or "none"
    elif isinstance(content, dict | list):
        yield name, f"{len(content)} entries, see manifest.json"
    else:
        yield name, _scalar(content)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _rejected_row(entry: RejectedCandidate) -> tuple[Cell, ...]:
    size = "not priced" if entry.required_bytes is None else format_size(entry.required_bytes)
    return (Cell(entry.method), Cell(entry.variant), Cell(size, entry.required_bytes), Cell(entry.reason))


def _finding_row(finding: Finding) -> tuple[Cell, ...]:
    examples = " / ".join(finding.examples) or "-"
    return (
        Cell(finding.severity),
        Cell(finding.message),
        Cell(f"{finding.count:,}", finding.count),
        Cell(examples),
        Cell(finding.advice or "-"),
    )
