"""Renders where the published rows come from and what was left out, for the public accuracy table."""

from __future__ import annotations

from collections.abc import Sequence

from accuracy.records import ExcludedSource, Source, load_excluded_sources, load_sources


def render_provenance() -> str:
    """Returns Markdown: the sources with their licence, what was left out of each, and the sources left out whole."""
    sources, excluded = load_sources(), load_excluded_sources()
    return "\n".join([_sources(sources), _excluded_rows(sources), _excluded_sources(excluded)])


def _sources(sources: Sequence[Source]) -> str:
    lines = [
        "### Sources",
        "",
        "| source | what | where | licence | numbers | of them rows | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in sources:
        used = source.published_numbers - sum(len(group.ids) for group in source.excluded)
        counts = f"{source.published_numbers} | {used} | {len(source.rows)}"
        lines.append(f"| {source.key} | {source.what} | {source.location} | {source.licence} | {counts} |")
    return "\n".join([*lines, ""])


def _excluded_rows(sources: Sequence[Source]) -> str:
    lines = ["### Numbers left out of these sources", "", "| source | numbers | reason | which |", "|---|---|---|---|"]
    lines += [
        f"| {source.key} | {len(group.ids)} | {group.reason} | {shorten(group.ids)} |"
        for source in sources
        for group in source.excluded
    ]
    return "\n".join([*lines, ""])


def _excluded_sources(excluded: Sequence[ExcludedSource]) -> str:
    lines = ["### Sources left out", "", "| source | numbers | where | licence | reason |", "|---|---|---|---|---|"]
    lines += [f"| {e.source} | {e.numbers} | {e.location} | {e.licence} | {e.reason} |" for e in excluded]
    return "\n".join([*lines, ""])


def shorten(ids: Sequence[str]) -> str:
    """Returns ids of the form ``source-007`` as ranges of their numbers: ``003-005, 009``."""
    numbers = sorted(int(name.rsplit("-", 1)[1]) for name in ids)
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(
        f"{start:03}" if start == end else f"{start:03}-{end:03}" for start, end in zip(starts, ends, strict=True)
    )
