"""The order of a report's sections."""

from __future__ import annotations

from autopeft.report.content import Document, Section
from autopeft.report.context import data_section, rejected_section, reproducibility_section
from autopeft.report.evidence import (
    curves_section,
    learning_rates_section,
    memory_section,
    quantization_section,
    ranks_section,
    trials_section,
)
from autopeft.report.outcome import (
    baselines_section,
    caveats_section,
    costs_section,
    headline,
    next_section,
    ranking_section,
    stats,
    verdict_section,
)
from autopeft.report.record import RunRecord


def report_document(record: RunRecord) -> Document:
    """Returns everything that a report says about a run, in reading order."""
    plan = record.plan
    return Document(
        title=f"autopeft report: {record.folder}",
        subtitle=f"{plan.model.id} on {plan.data.source}, {plan.hardware.device.name}",
        headline=headline(record),
        stats=stats(record),
        sections=tuple(section for section in _sections(record) if section is not None),
    )


def _sections(record: RunRecord) -> list[Section | None]:
    return [
        verdict_section(record),
        baselines_section(record),
        ranking_section(record),
        next_section(record),
        trials_section(record),
        curves_section(record),
        learning_rates_section(record),
        memory_section(record),
        ranks_section(record),
        quantization_section(record),
        costs_section(record),
        caveats_section(record),
        rejected_section(record),
        data_section(record),
        reproducibility_section(record),
    ]
