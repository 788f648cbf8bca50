"""Looks for what would spoil a training on the data."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from pathlib import Path

from autopeft.profiling._example import Example
from autopeft.profiling._files import FoundFiles
from autopeft.profiling._formats import ReadRows, why_not_trained
from autopeft.profiling._rows import BadRows
from autopeft.profiling._tokens import UTF8_BYTES_PER_TOKEN, CountedRow, Counter
from autopeft.specs.data import DataFormat, Finding
from autopeft.specs.model import ModelSpec

FEW_ROWS = 200
CONSTANT_SHARE = 0.9
"""Share of one and the same completion from which on there is little else to learn."""
IMBALANCED_SHARE = 0.8
"""Share of the most frequent label from which on always guessing it looks like a good model."""

_SEVERITIES = ("error", "warning", "info")
_SHOWN = 3


def find_problems(
    read: ReadRows,
    counted: Sequence[tuple[Example, CountedRow]],
    counter: Counter,
    model: ModelSpec | None,
    files: FoundFiles,
) -> tuple[Finding, ...]:
    """Returns the findings on a data set, worst first; ``counted`` holds the rows whose tokens were counted."""
    examples = read.examples
    learnt = [example.learnt_text.strip() for example in examples]
    found = [
        _held_out_left_out(files),
        _held_out_kept(examples, files),
        _bad_rows(read.left_out, len(examples)),
        _not_trained(examples, read.reader.data_format),
        _duplicates(examples),
        _empty_completions(examples, learnt),
        _constant_completion(examples, learnt),
        _longer_than_context(counted, model),
        _few_rows(examples),
        _label_imbalance(examples),
        _no_chat_template(examples, model),
        _lengths_estimated(examples, counter),
    ]
    return tuple(sorted(filter(None, found), key=lambda finding: _SEVERITIES.index(finding.severity)))


def duplicate_pairs(examples: Sequence[Example]) -> list[tuple[Example, Example]]:
    """Returns every row that exactly repeats an earlier one, with the first of its kind."""
    first: dict[tuple[object, ...], Example] = {}
    pairs = []
    for example in examples:
        original = first.setdefault(example.content, example)
        if original is not example:
            pairs.append((example, original))
    return pairs


def label_counts(examples: Sequence[Example]) -> dict[str, int]:
    """Returns label -> rows, the most frequent first."""
    tally = Tally(example.label for example in examples if example.label is not None)
    return dict(sorted(tally.items(), key=lambda item: (-item[1], item[0])))


def _held_out_left_out(files: FoundFiles) -> Finding | None:
    if not files.left_out:
        return None
    return Finding(
        code="held-out-files-left-out",
        severity="warning",
        message=f"{len(files.left_out)} of the folder's files are not used, for others are named after a train split",
        count=0,
        examples=_inside(files.folder, files.left_out),
        advice="a run holds out rows of the train files by itself; name one file to use it alone",
    )


def _held_out_kept(examples: Sequence[Example], files: FoundFiles) -> Finding | None:
    if not files.doubtful:
        return None
    return Finding(
        code="held-out-files-kept",
        severity="warning",
        message=f"{len(files.doubtful)} of the files used are named like held-out data, and will be trained on",
        count=sum(example.file in files.doubtful for example in examples),
        examples=_inside(files.folder, files.doubtful),
        advice="put them elsewhere, or name the file to train on",
    )


def _bad_rows(left_out: BadRows, good_rows: int) -> Finding | None:
    if not left_out.count:
        return None
    return Finding(
        code="bad-rows-skipped",
        severity="warning",
        message=f"{left_out.count} of {left_out.count + good_rows} rows cannot be read or do not fit, and are left out",
        count=left_out.count,
        examples=tuple(Path(bad.file).name + bad.sentence.removeprefix(bad.file) for bad in left_out.shown),
        advice="a run leaves out the same rows; mend them to use them",
    )


def _not_trained(examples: Sequence[Example], data_format: DataFormat) -> Finding | None:
    problem = why_not_trained(data_format, "the data")
    if problem is None:
        return None
    found, _, advice = problem.partition("; ")
    return Finding(code="not-trained", severity="warning", message=found, count=len(examples), advice=advice)


def _inside(folder: str, files: Sequence[str]) -> tuple[str, ...]:
    return tuple(Path(file).relative_to(folder).as_posix() for file in files[:_SHOWN])


def _duplicates(examples: Sequence[Example]) -> Finding | None:
    pairs = duplicate_pairs(examples)
    if not pairs:
        return None
    return Finding(
        code="exact-duplicates",
        severity="warning",
        message=f"{len(pairs)} of {len(examples)} rows are exact copies of an earlier row",
        count=len(pairs),
        examples=tuple(f"{_place(copy)} repeats {_place(original)}" for copy, original in pairs[:_SHOWN]),
        advice="remove the copies; until then each stays on one side of the splits, so that none flatters a score",
    )


def _empty_completions(examples: Sequence[Example], learnt: Sequence[str]) -> Finding | None:
    rows = [example for example, text in zip(examples, learnt, strict=True) if not text]
    if not rows:
        return None
    return Finding(
        code="empty-completions",
        severity="error" if len(rows) == len(examples) else "warning",
        message=f"{len(rows)} of {len(examples)} rows have nothing to learn: their completion or text is empty",
        count=len(rows),
        examples=tuple(map(_shown, rows[:_SHOWN])),
        advice="fill in or remove these rows",
    )


def _constant_completion(examples: Sequence[Example], learnt: Sequence[str]) -> Finding | None:
    if not examples[0].messages:
        return None
    completions = Tally(text for text in learnt if text)
    if completions.total() < 2:
        return None
    completion, count = completions.most_common(1)[0]
    if count < CONSTANT_SHARE * completions.total():
        return None
    return Finding(
        code="constant-completion",
        severity="warning",
        message=f"{count} of {completions.total()} completions are the same: {_shortened(completion)!r}",
        count=count,
        advice="check the column taken as the completion; a model learns such data without reading the prompt",
    )


def _longer_than_context(counted: Sequence[tuple[Example, CountedRow]], model: ModelSpec | None) -> Finding | None:
    limit = model.context_length if model else None
    if model is None or limit is None:
        return None
    rows = [(example, row.tokens) for example, row in counted if row.tokens > limit]
    if not rows:
        return None
    return Finding(
        code="longer-than-context",
        severity="warning",
        message=f"{len(rows)} of {len(counted)} counted rows are longer than the {limit} tokens that {model.id} reads",
        count=len(rows),
        examples=tuple(f"{_place(example)}: {tokens} tokens" for example, tokens in rows[:_SHOWN]),
        advice="split these rows, or accept that their ends are cut off",
    )


def _few_rows(examples: Sequence[Example]) -> Finding | None:
    if len(examples) >= FEW_ROWS:
        return None
    return Finding(
        code="few-rows",
        severity="warning",
        message=f"the data set has only {len(examples)} rows; differences between methods will hardly be significant",
        count=len(examples),
        advice=f"collect at least {FEW_ROWS} rows, or read the verdict's intervals with care",
    )


def _label_imbalance(examples: Sequence[Example]) -> Finding | None:
    labels = label_counts(examples)
    if not labels:
        return None
    label, count = next(iter(labels.items()))
    if count < IMBALANCED_SHARE * len(examples):
        return None
    only = "the only label" if len(labels) == 1 else f"the most frequent of {len(labels)} labels"
    return Finding(
        code="label-imbalance",
        severity="error" if len(labels) == 1 else "warning",
        message=f"{count} of {len(examples)} rows have {only}, {_shortened(label)!r}",
        count=count,
        advice="judge by F1 of the rare labels rather than by accuracy"
        if len(labels) > 1
        else "add rows of another label",
    )


def _no_chat_template(examples: Sequence[Example], model: ModelSpec | None) -> Finding | None:
    if model is None or model.has_chat_template or not any(example.messages for example in examples):
        return None
    # A profile or hub id brings no tokenizer, so nothing is known of its template.
    if model.path is None or model.kind != "causal_lm":
        return None
    return Finding(
        code="no-chat-template",
        severity="info",
        message=f"{model.id} has no chat template; prompt and completion are joined as plain text",
        count=sum(1 for example in examples if example.messages),
        advice="use the instruction-tuned variant of the model for conversations",
    )


def _lengths_estimated(examples: Sequence[Example], counter: Counter) -> Finding | None:
    if counter.source != "characters":
        return None
    return Finding(
        code="lengths-estimated",
        severity="info",
        message=f"token counts are estimated from the texts at {UTF8_BYTES_PER_TOKEN} UTF-8 bytes a token",
        count=len(examples),
        advice="name a local model folder that holds a tokenizer.json for exact counts",
    )


def _place(example: Example) -> str:
    return f"{Path(example.file).name}:{example.line}"


def _shown(example: Example) -> str:
    content = example.text if example.text is not None else example.messages[0][1]
    return f"{_place(example)}: {_shortened(content)}"


def _shortened(text: str) -> str:
    flat = " ".join(text[:200].split())
    return flat if len(flat) <= 60 else flat[:57] + "..."
