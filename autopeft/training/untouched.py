"""Scores the untouched base model on rows of the data, zero-shot and with examples in the prompt."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from autopeft.engine.base import load_base
from autopeft.engine.loss import prepare_loss
from autopeft.errors import DataError
from autopeft.profiling.dataset import Example, read_examples
from autopeft.profiling.encoding import EncodedRow, encode_examples, encode_prompts
from autopeft.specs import BaseRequest, BaseScores, Score, ScoredTask, ShotScores
from autopeft.training.data import TokenRow, token_row
from autopeft.training.generation import generate_greedily, stop_tokens
from autopeft.training.intervals import macro_f1_of_rows, mean_of_rows, mean_of_tokens, share_of_rows
from autopeft.training.metrics import TEXT_METRICS
from autopeft.training.pacing import FIRST_ROWS, MOST_GENERATED_ROWS, affordable_rows, pace_note
from autopeft.training.prefix import PrefixCollator, read_prefix, supervised_prefix
from autopeft.training.prompts import (
    answer_of,
    as_question,
    choose_shots,
    plain_ends,
    scored_task,
    with_answer,
    with_shots,
)
from autopeft.training.scoring import score_rows
from autopeft.training.session import device_name, released_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from autopeft.training.session import Session

MOST_ROWS_OF_A_FORWARD = 32
MOST_NEW_TOKENS = 512
ROOM_OF_AN_ANSWER = 1.25
LONG_ANSWER_SHARE = 0.95
"""A generated answer may be longer by ROOM_OF_AN_ANSWER than this share of the references are at most."""

METRICS_OF_TASK: dict[ScoredTask, tuple[str, ...]] = {
    "labels": (),
    "numbers": ("numeric_match", "exact_match"),
    "answers": ("exact_match", "token_f1"),
    "texts": ("chrf", "rouge_l", "token_f1"),
    "loss": (),
}
"""Metrics of the generated answers; the first decides."""

GENERATED_SHARE: dict[ScoredTask, float] = {"numbers": 0.5, "answers": 0.5, "texts": 0.25}
"""Share of the scored rows that are answered by generation, which costs most of the time: more where an answer is
right or wrong, for a likeness varies less between rows."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What is asked: the rows in question form.

    Attributes:
        numbers: of the scored rows in the data set.
        scored: the rows themselves.
        pool: rows that are not scored, of which the examples are drawn.
        pool_numbers: theirs in the data set.
        labels: the label set; empty for other tasks.
        generated: the first so many scored rows are answered by generation; set by ``_first``.
        plain: whether the model has no chat template.
        new_tokens: that an answer may have; 0 where none is generated.
        notes: for the result.
    """

    task: ScoredTask
    numbers: tuple[int, ...]
    scored: tuple[Example, ...]
    pool: tuple[Example, ...]
    pool_numbers: tuple[int, ...]
    labels: tuple[str, ...]
    generated: int
    plain: bool
    new_tokens: int
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Asked:
    """The loaded base and what it is asked with.

    Attributes:
        seconds: stage -> seconds so far.
    """

    session: Session
    request: BaseRequest
    rows: _Rows
    model: Any
    on_progress: OnProgress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - begin

    def told(self, stage: str, total: int) -> Callable[[int], None]:
        return lambda done: self.on_progress(stage, done, total)


def score_base(session: Session, request: BaseRequest, on_progress: OnProgress) -> BaseScores:
    """Returns what the untouched base scores on the prepared job's rows.

    Args:
        session: the prepared job: "choose" holds the scored rows, "train" those that examples are drawn from.
        request: how much is asked.
        on_progress: told the stage, the rows done and the rows wanted.

    Raises:
        DataError: if too few rows fit into the model's context.
    """
    with released_memory():
        begin = time.monotonic()
        rows = _rows_of(session, request)
        model = load_base(session.folder, request.candidate, session.job.device)
        prepare_loss(model, request.candidate.trainer)
        asked = _Asked(session, request, rows, model, on_progress, {"load": time.monotonic() - begin})
        return _base_scores(asked)


def _base_scores(asked: _Asked) -> BaseScores:
    request = asked.request
    chosen, notes = _shots(asked)
    if request.rows is None:
        rows, rounds = _in_time(asked, chosen)
        notes = (*notes, pace_note(len(rows.scored), rows.generated, len(asked.rows.scored)))
    else:
        rows = _first(asked.rows, request.rows)
        rounds = _rounds(replace(asked, rows=rows), chosen)
    return BaseScores(
        model=asked.session.job.model,
        task=rows.task,
        seed=request.seed,
        rows=rows.numbers,
        generated_rows=rows.generated,
        shots=tuple(rounds),
        trivial=_trivial(rows, asked.rows, request.seed),
        prompt_gain=_gain(rounds, request.seed),
        vocabulary=int(asked.model.config.get_text_config().vocab_size),
        device=device_name(asked.session.job.device),
        dtype=request.candidate.dtype,
        quantization=request.candidate.quantization,
        seconds={stage: round(seconds, 1) for stage, seconds in asked.seconds.items()},
        notes=(*rows.notes, *notes),
    )


def _rounds(asked: _Asked, chosen: Sequence[int]) -> list[ShotScores]:
    return [_round(asked, ()), *([_round(asked, chosen)] if chosen else [])]


def _in_time(asked: _Asked, chosen: Sequence[int]) -> tuple[_Rows, list[ShotScores]]:
    """Returns the scores of as many rows as the time allows, and these rows.

    Each attempt scores its rows from the first on, so that a count that is asked for gives the same figures.
    """
    most, spent = len(asked.rows.scored), 0.0
    count: int | None = min(FIRST_ROWS, most)
    while count is not None:
        rows = _first(asked.rows, count, MOST_GENERATED_ROWS)
        begin = time.monotonic()
        rounds = _rounds(replace(asked, rows=rows), chosen)
        last = time.monotonic() - begin
        spent += last
        count = affordable_rows(count, last, spent, most)
    return rows, rounds


def _first(rows: _Rows, count: int, most_generated: int | None = None) -> _Rows:
    """Returns the first so many scored rows."""
    scored = rows.scored[:count]
    generated = math.ceil(GENERATED_SHARE.get(rows.task, 0.0) * len(scored))
    generated = generated if most_generated is None else min(generated, most_generated)
    return replace(rows, numbers=rows.numbers[:count], scored=scored, generated=generated)


def _rows_of(session: Session, request: BaseRequest) -> _Rows:
    job = session.job
    examples = read_examples(job.data_files, job.data_format, job.columns)
    task = scored_task(examples)
    plain = session.tokenizer.chat_template is None
    labels = request.labels or _labels_of(examples, task)
    asked = [as_question(example, labels, plain=plain) for example in examples]
    encoded = encode_examples(session.folder, asked)
    new_tokens = _new_tokens(encoded) if METRICS_OF_TASK[task] else 0
    scored = [row.row for row in session.data.splits["choose"]]
    fitting = [number for number in scored if len(encoded[number].input_ids) + new_tokens <= job.max_length]
    if len(fitting) < 2:
        raise DataError(
            f"only {len(fitting)} of {len(scored)} sampled rows have at most {job.max_length - new_tokens} tokens, "
            "which leaves nothing to score the base model on; it reads no longer rows"
        )
    pool = [row.row for row in session.data.splits["train"]]
    return _Rows(
        task=task,
        numbers=tuple(fitting),
        scored=tuple(asked[number] for number in fitting),
        pool=tuple(asked[number] for number in pool),
        pool_numbers=tuple(pool),
        labels=labels,
        generated=0,
        plain=plain,
        new_tokens=new_tokens,
        notes=tuple(_notes(task, len(scored) - len(fitting), new_tokens, labels, job.max_length)),
    )


def _labels_of(examples: Sequence[Example], task: ScoredTask) -> tuple[str, ...]:
    if task != "labels":
        return ()
    return tuple(sorted({each.label or answer_of(each) for each in examples if each.label or each.supervised_turns}))


def _new_tokens(encoded: Sequence[EncodedRow]) -> int:
    lengths = sorted(row.supervised[-1][1] - row.supervised[-1][0] for row in encoded if row.supervised)
    long = lengths[math.ceil(LONG_ANSWER_SHARE * len(lengths)) - 1]
    return min(MOST_NEW_TOKENS, math.ceil(ROOM_OF_AN_ANSWER * long))


def _notes(task: ScoredTask, left_out: int, new_tokens: int, labels: Sequence[str], max_length: int) -> list[str]:
    notes = []
    if left_out:
        notes.append(f"{left_out} sampled rows do not fit into {max_length} tokens and were not scored")
    if task == "labels":
        notes.append(f"the label is the likeliest of {len(labels)} per token: {', '.join(labels)}")
    if new_tokens:
        notes.append(f"answers are greedy, of at most {new_tokens} tokens")
    return notes


def _shots(asked: _Asked) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns the indices in the pool of the examples for the prompt, and what must be said of them."""
    rows, wanted = asked.rows, asked.request.shots
    if wanted == 0 or rows.task == "loss":
        return (), ()
    folder = asked.session.folder
    longest = max(len(row.input_ids) for row in encode_examples(folder, rows.scored)) + rows.new_tokens
    chosen = choose_shots(
        rows.pool,
        [len(row.input_ids) for row in encode_examples(folder, rows.pool)],
        count=wanted,
        room_tokens=asked.session.job.max_length - longest,
        seed=asked.request.seed,
        balanced=rows.task == "labels",
    )
    short = f"only {len(chosen)} of {wanted} examples fit into the prompt beside the longest row"
    return chosen, (short,) if len(chosen) < wanted else ()


def _round(asked: _Asked, chosen: Sequence[int]) -> ShotScores:
    """Returns the scores with the chosen examples in the prompt."""
    rows = asked.rows
    shots = [rows.pool[index] for index in chosen]
    examples = [with_shots(example, shots, plain=rows.plain) if shots else example for example in rows.scored]
    name = f"{len(shots)}-shot" if shots else "zero-shot"
    with asked.timed("loss"):
        sums, tokens = _losses(asked, f"{name} loss", _token_rows(asked, examples))
    metrics: tuple[Score, ...] = ()
    if rows.task == "labels":
        with asked.timed("labels"):
            metrics = _label_scores(asked, name, examples)
    elif METRICS_OF_TASK[rows.task]:
        with asked.timed("answers"):
            metrics = _answer_scores(asked, name, examples[: rows.generated])
    return ShotScores(
        shots=len(shots),
        shot_rows=tuple(rows.pool_numbers[index] for index in chosen),
        loss=mean_of_tokens("loss", sums, tokens, asked.request.seed),
        supervised_tokens=tuple(tokens),
        metrics=metrics,
    )


def _token_rows(asked: _Asked, examples: Sequence[Example]) -> list[TokenRow]:
    encoded = encode_examples(asked.session.folder, examples)
    return [token_row(number, row, len(row.input_ids)) for number, row in enumerate(encoded)]


def _losses(asked: _Asked, stage: str, rows: Sequence[TokenRow]) -> tuple[list[float], list[int]]:
    longest = max(len(row.input_ids) for row in rows)
    candidate = replace(asked.request.candidate, per_device_batch_size=_rows_of_a_forward(asked, longest))
    collator: Any = asked.session.collator(asked.model)
    prefix = read_prefix(asked.model, supervised_prefix(rows)) if len(rows) > 1 else None
    if prefix is not None:
        collator = PrefixCollator(collator, prefix)
        rows = [collator.shortened(row) for row in rows]
    told = asked.told(stage, len(rows))
    scores = score_rows(asked.model, rows, collator, candidate, asked.session.job.device, told)
    return list(scores.losses), list(scores.supervised_tokens)


def _rows_of_a_forward(asked: _Asked, longest: int) -> int:
    return max(1, min(MOST_ROWS_OF_A_FORWARD, asked.request.tokens_per_forward // longest))


def _label_scores(asked: _Asked, name: str, examples: Sequence[Example]) -> tuple[Score, ...]:
    """Returns accuracy and macro F1 of the label with the highest mean log-likelihood of its tokens."""
    labels, references = asked.rows.labels, [answer_of(example) for example in examples]
    asked_with = [with_answer(example, label) for example in examples for label in labels]
    encoded = encode_examples(asked.session.folder, asked_with)
    rows = [_label_row(asked, number, row, labels[number % len(labels)]) for number, row in enumerate(encoded)]
    sums, tokens = _losses(asked, f"{name} labels", rows)
    means = [total / count for total, count in zip(sums, tokens, strict=True)]
    each = [means[start : start + len(labels)] for start in range(0, len(means), len(labels))]
    predicted = [labels[row.index(min(row))] for row in each]
    hits = [float(found == wanted) for found, wanted in zip(predicted, references, strict=True)]
    f1 = macro_f1_of_rows(predicted, references, asked.request.seed)
    return share_of_rows("accuracy", hits), f1


def _label_row(asked: _Asked, number: int, row: EncodedRow, label: str) -> TokenRow:
    """Returns a row up to the last token of its label: what a template puts after it says nothing of the label."""
    begin, end = row.supervised[-1]
    decode = asked.session.tokenizer.decode
    end = next((stop for stop in range(begin + 1, end) if label in decode(list(row.input_ids[begin:stop]))), end)
    return token_row(number, EncodedRow(row.input_ids[:end], ((begin, end),)), end)


def _answer_scores(asked: _Asked, name: str, examples: Sequence[Example]) -> tuple[Score, ...]:
    """Returns the metrics of the task over greedily generated answers."""
    session, rows = asked.session, asked.rows
    prompts = [prompt.input_ids for prompt in encode_prompts(session.folder, examples)]
    longest = max(map(len, prompts)) + rows.new_tokens
    answers = generate_greedily(
        asked.model,
        prompts,
        stop_ids=stop_tokens(asked.model, session.tokenizer, encode_examples(session.folder, examples[:1])[0]),
        max_new_tokens=rows.new_tokens,
        batch_rows=_rows_of_a_forward(asked, longest),
        on_rows=asked.told(f"{name} answers", len(prompts)),
    )
    references = [answer_of(example) for example in examples]
    ends = plain_ends([answer_of(example) for example in rows.pool]) if rows.plain else ()
    texts = [_cut(session.tokenizer.decode(answer, skip_special_tokens=True), ends) for answer in answers]
    return tuple(_text_score(metric, texts, references, asked.request.seed) for metric in METRICS_OF_TASK[rows.task])


def _cut(text: str, ends: Sequence[str]) -> str:
    text = text.strip()
    for end in ends:
        text = text.partition(end)[0]
    return text.strip()


def _text_score(metric: str, texts: Sequence[str], references: Sequence[str], seed: int) -> Score:
    values = [TEXT_METRICS[metric](text, reference) for text, reference in zip(texts, references, strict=True)]
    if metric in ("exact_match", "numeric_match"):
        return share_of_rows(metric, values)
    return mean_of_rows(metric, values, seed)


def _trivial(rows: _Rows, sampled: _Rows, seed: int) -> Score | None:
    """Returns the deciding metric of an answer that takes no model; labels are counted on all sampled rows."""
    if rows.task == "labels":
        labels = [answer_of(example) for example in (*sampled.scored, *sampled.pool)]
        most, _ = Counter(labels).most_common(1)[0]
        return share_of_rows("accuracy", [float(label == most) for label in labels])
    if rows.task != "texts":
        return None
    answered = rows.scored[: rows.generated]
    copies = [example.messages[example.supervised_turns[-1] - 1][1] for example in answered]
    references = [answer_of(example) for example in answered]
    return _text_score(METRICS_OF_TASK["texts"][0], copies, references, seed)


def _gain(rounds: Sequence[ShotScores], seed: int) -> Score | None:
    if len(rounds) < 2:
        return None
    zero, few = rounds
    if zero.deciding is None or few.deciding is None:
        falls = [before - after for before, after in zip(zero.loss.per_example, few.loss.per_example, strict=True)]
        return mean_of_tokens("loss", falls, zero.supervised_tokens, seed)
    pairs = zip(few.deciding.per_example, zero.deciding.per_example, strict=True)
    return mean_of_rows(zero.deciding.name, [after - before for after, before in pairs], seed)
