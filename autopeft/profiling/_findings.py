"""Says what would spoil a training on the data, from the facts of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from autopeft.profiling._formats import why_not_trained
from autopeft.profiling._length_findings import length_findings
from autopeft.profiling._resemblance_findings import resemblance_findings
from autopeft.profiling._rows import SHOWN_ROWS
from autopeft.profiling._text_findings import text_findings
from autopeft.profiling.scan.facts import Noted
from autopeft.profiling.scan.row_checks import JSON_AS_TEXT, shortened
from autopeft.profiling.scan.survey import Survey
from autopeft.specs.data import DatasetProfile, Finding, Severity
from autopeft.units import counted

FEW_ROWS = 200
CONSTANT_SHARE = 0.9
"""Share of one and the same completion from which on there is little else to learn."""
IMBALANCED_SHARE = 0.8
"""Share of the most frequent label from which on always guessing it looks like a good model."""

_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
_ROW_ADVICE: dict[str, tuple[Severity, str, str]] = {
    "empty-completions": (
        "warning",
        "have nothing to learn: their completion or text is empty",
        "fill in or remove these rows",
    ),
    "no-assistant-turn": (
        "warning",
        "have no turn of the assistant, so nothing of them is learnt",
        "check the roles, or remove these rows",
    ),
    "roles-out-of-order": (
        "warning",
        "have turns that do not alternate between user and assistant, begin with an answer, or a system turn inside",
        "many chat templates refuse or misplace such turns; join or reorder them",
    ),
    "unanswered-questions": (
        "info",
        "end with a turn of the user, on which no loss counts",
        "cut the last turn, or add its answer",
    ),
    "equal-preferences": ("warning", "have the same chosen and rejected answer", "remove these rows"),
}
"""Code of a row check -> severity, what the rows are like, and what to do."""


def find_problems(survey: Survey, profile: DatasetProfile) -> tuple[Finding, ...]:
    """Returns the findings on a data set, worst first."""
    found = [
        _held_out_left_out(survey),
        _held_out_kept(survey),
        _bad_rows(survey),
        _not_trained(survey),
        _json_as_text(survey),
        *(_of_rows(survey, code) for code in _ROW_ADVICE),
        *resemblance_findings(survey, profile),
        _constant_completion(survey),
        *length_findings(survey, profile),
        _few_rows(survey),
        _label_imbalance(survey, profile),
        _label_variants(profile),
        *text_findings(survey, profile),
    ]
    return tuple(sorted(filter(None, found), key=lambda finding: _SEVERITIES.index(finding.severity)))


def _held_out_left_out(survey: Survey) -> Finding | None:
    files = survey.source.found
    if not files.left_out or not files.folder:
        return None
    return Finding(
        code="held-out-files-left-out",
        severity="warning",
        message=f"{len(files.left_out)} of the folder's files are not used, for others are named after a train split",
        count=0,
        examples=_inside(files.folder, files.left_out),
        advice="a run holds out rows of the train files by itself; name one file to use it alone",
    )


def _held_out_kept(survey: Survey) -> Finding | None:
    files = survey.source.found
    if not files.doubtful:
        return None
    return Finding(
        code="held-out-files-kept",
        severity="warning",
        message=f"{len(files.doubtful)} of the files used are named like held-out data, and will be trained on",
        count=survey.facts.numbers.rows_in(files.doubtful, survey.facts.rows),
        examples=_inside(files.folder, files.doubtful),
        advice="put them elsewhere, or name the file to train on",
    )


def _inside(folder: str, files: Sequence[str]) -> tuple[str, ...]:
    shown = map(Path, files[:SHOWN_ROWS])
    return tuple(file.relative_to(folder).as_posix() if folder else file.name for file in shown)


def _bad_rows(survey: Survey) -> Finding | None:
    left_out = survey.facts.left_out
    if not left_out.count:
        return None
    return Finding(
        code="bad-rows-skipped",
        severity="warning",
        message=f"{left_out.count:,} of {left_out.count + survey.facts.rows:,} rows cannot be read or do not fit, and "
        "are left out",
        count=left_out.count,
        examples=tuple(Path(bad.file).name + bad.sentence.removeprefix(bad.file) for bad in left_out.shown),
        advice="a run leaves out the same rows; mend them to use them",
    )


def _not_trained(survey: Survey) -> Finding | None:
    problem = why_not_trained(survey.source.reader.data_format, "the data")
    if problem is None:
        return None
    found, _, advice = problem.partition("; ")
    return Finding(code="not-trained", severity="warning", message=found, count=survey.rows, advice=advice)


def _json_as_text(survey: Survey) -> Finding | None:
    noted = survey.facts.noted.get(JSON_AS_TEXT)
    if noted is None or 2 * noted.count < survey.facts.rows:
        return None
    return Finding(
        code=JSON_AS_TEXT,
        severity="warning",
        message=f"{noted.count:,} of {survey.facts.rows:,} texts are JSON objects, and would be learnt as plain text",
        count=noted.count,
        examples=tuple(noted.shown),
        advice="if these are rows of JSON Lines, let the file's name end in .jsonl",
    )


def _of_rows(survey: Survey, code: str) -> Finding | None:
    noted = survey.facts.noted.get(code)
    if noted is None:
        return None
    severity, what, advice = _ROW_ADVICE[code]
    return _noted_finding(code, severity, what, noted, survey.facts.rows, advice)


def _noted_finding(code: str, severity: Severity, what: str, noted: Noted, rows: int, advice: str) -> Finding:
    return Finding(
        code=code,
        severity="error" if noted.count == rows and severity == "warning" else severity,
        message=f"{noted.count:,} of {rows:,} rows {what}",
        count=noted.count,
        examples=tuple(noted.shown),
        advice=advice,
    )


def _constant_completion(survey: Survey) -> Finding | None:
    completions, count = survey.completions
    unlike = survey.source.reader.data_format in ("text", "classification", "text_pair")
    if unlike or survey.constant is None or completions < 2 or count < CONSTANT_SHARE * completions:
        return None
    return Finding(
        code="constant-completion",
        severity="warning",
        message=f"{count:,} of {completions:,} completions are the same: {shortened(survey.constant)!r}",
        count=count,
        advice="check the column taken as the completion; a model learns such data without reading the prompt",
    )


def _few_rows(survey: Survey) -> Finding | None:
    if survey.rows >= FEW_ROWS:
        return None
    return Finding(
        code="few-rows",
        severity="warning",
        message=f"the data set has only {counted(survey.rows, 'row')}; differences between methods will hardly be "
        "significant",
        count=survey.rows,
        advice=f"collect at least {FEW_ROWS} rows, or read the verdict's intervals with care",
    )


def _label_imbalance(survey: Survey, profile: DatasetProfile) -> Finding | None:
    labels, rows = profile.label_counts, survey.facts.rows
    if not labels:
        return None
    label, count = next(iter(labels.items()))
    if count < IMBALANCED_SHARE * rows:
        return None
    only = "the only label" if len(labels) == 1 else f"the most frequent of {len(labels)} labels"
    return Finding(
        code="label-imbalance",
        severity="error" if len(labels) == 1 else "warning",
        message=f"{count:,} of {rows:,} rows have {only}, {shortened(label)!r}",
        count=count,
        advice=f"always guessing it is right in {count / rows:.0%}; judge by F1 of the rare labels, not by accuracy"
        if len(labels) > 1
        else "add rows of another label",
    )


def _label_variants(profile: DatasetProfile) -> Finding | None:
    """Finds labels that a person would take for one: ``spam``, ``Spam`` and ``spam `` are three to a model."""
    variants = list(_variants(list(profile.label_counts)))
    if not variants:
        return None
    # The counts are sorted, the most frequent first.
    rows = sum(profile.label_counts[label] for labels in variants for label in labels[1:])
    return Finding(
        code="label-variants",
        severity="warning",
        message=f"labels differ in case or white space alone; {rows:,} rows have the rarer forms",
        count=rows,
        examples=tuple(" and ".join(map(repr, labels)) for labels in variants[:SHOWN_ROWS]),
        advice="write each label in one way, or a model is asked to tell the forms apart",
    )


def _variants(labels: Sequence[str]) -> Iterator[list[str]]:
    forms: dict[str, list[str]] = {}
    for label in labels:
        forms.setdefault(" ".join(label.casefold().split()), []).append(label)
    return (found for found in forms.values() if len(found) > 1)
