"""How the untouched base is asked: which task the rows are, which examples go into the prompt, how it is written."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from autopeft.profiling.dataset import Example
from autopeft.specs import ScoredTask
from autopeft.training.metrics import final_number

MOST_LABELS = 20
"""Different answers up to which a data set may be a classification."""

ROWS_PER_LABEL = 5
"""Mean rows of a label from which on few different answers are labels and no coincidence."""

LONGEST_LABEL_WORDS = 5
LONGEST_ANSWER_WORDS = 6
MOST_ROWS = 0.9
"""Share of the rows that must have a property for the data set to have it."""

PLAIN_END = "\n\n"
"""Ends an example where no chat template does."""


def scored_task(examples: Sequence[Example]) -> ScoredTask:
    """Returns how a base is scored on rows like these.

    "labels" if the answers are few, short and repeated; "numbers" if they are numbers or end in ``#### number``;
    "answers" if they are of a few words; "loss" for plain text; "texts" otherwise.
    """
    if examples[0].label is not None:
        return "labels"
    asked = [example for example in examples if example.supervised_turns]
    if not asked:
        return "loss"
    answers = [answer_of(example) for example in asked]
    if _are_labels(answers) and all(len(example.supervised_turns) == 1 for example in asked):
        return "labels"
    if _share(answers, _is_numeric) >= MOST_ROWS:
        return "numbers"
    short = _share(answers, lambda answer: 0 < len(answer.split()) <= LONGEST_ANSWER_WORDS)
    return "answers" if short >= MOST_ROWS else "texts"


def answer_of(example: Example) -> str:
    """Returns the last answer of a conversation."""
    return example.messages[example.supervised_turns[-1]][1].strip()


def as_question(example: Example, labels: Sequence[str], *, plain: bool) -> Example:
    """Returns a labelled text as a question with its label as the answer; other examples as they are."""
    if example.label is None:
        return example
    texts = f"Text: {example.text}"
    if example.text_pair is not None:
        texts += f"\n\nSecond text: {example.text_pair}"
    question = f"Which label fits? Labels: {', '.join(labels)}.\n\n{texts}\n\nLabel:"
    turns = (("user", question), ("assistant", f" {example.label}" if plain else example.label))
    return replace(example, messages=turns, context_turns=1, turn_separator="", text=None, text_pair=None, label=None)


def with_answer(example: Example, answer: str) -> Example:
    """Returns the conversation up to its last answer, and another answer there, with the white space of the first."""
    turn = example.supervised_turns[-1]
    role, old = example.messages[turn]
    before = old[: len(old) - len(old.lstrip())]
    return replace(example, messages=(*example.messages[:turn], (role, before + answer)))


def with_shots(example: Example, shots: Sequence[Example], *, plain: bool) -> Example:
    """Returns the conversation with examples before it, on which the loss does not count.

    The row's own system messages stay in front, those of the examples are left out.

    Args:
        example: with an answer.
        shots: in the order of the prompt.
        plain: whether no chat template separates the turns, so that a blank line must.
    """
    lead = next((index for index, (role, _) in enumerate(example.messages) if role not in ("system", "developer")), 0)
    before = tuple(turn for shot in shots for turn in _shown(shot, plain=plain))
    return replace(
        example,
        messages=(*example.messages[:lead], *before, *example.messages[lead:]),
        context_turns=max(example.context_turns, lead) + len(before),
    )


def choose_shots(
    pool: Sequence[Example], tokens: Sequence[int], *, count: int, room_tokens: int, seed: int, balanced: bool
) -> tuple[int, ...]:
    """Returns the indices of the examples for the prompt, drawn with the seed; fewer where they do not fit.

    Args:
        pool: examples that are not scored.
        tokens: of each of them.
        count: wanted.
        room_tokens: that they may take together.
        seed: of the draw.
        balanced: take the answers in turn, so that each label is shown before any is shown twice.
    """
    order = list(range(len(pool)))
    random.Random(seed).shuffle(order)
    if balanced:
        order = _in_turn(order, [answer_of(example) for example in pool])
    chosen: list[int] = []
    for index in order:
        if len(chosen) < count and tokens[index] <= room_tokens:
            chosen.append(index)
            room_tokens -= tokens[index]
    return tuple(chosen)


def plain_ends(references: Sequence[str]) -> tuple[str, ...]:
    """Returns what ends an answer that no chat template ends: the breaks that no reference holds."""
    breaks = ("\n", PLAIN_END)
    return tuple(each for each in breaks if not any(each in reference.strip() for reference in references))[:1]


def _in_turn(order: Sequence[int], answers: Sequence[str]) -> list[int]:
    seen: Counter[str] = Counter()
    rounds = {}
    for index in order:
        rounds[index] = seen[answers[index]]
        seen[answers[index]] += 1
    return sorted(order, key=lambda index: rounds[index])


def _shown(shot: Example, *, plain: bool) -> list[tuple[str, str]]:
    turns = [turn for turn in shot.messages[: shot.supervised_turns[-1] + 1] if turn[0] not in ("system", "developer")]
    if plain:
        role, answer = turns[-1]
        turns[-1] = (role, answer.rstrip() + PLAIN_END.removesuffix(shot.turn_separator))
    return turns


def _are_labels(answers: Sequence[str]) -> bool:
    different = set(answers)
    few = len(different) <= MOST_LABELS and len(answers) >= ROWS_PER_LABEL * len(different)
    return few and len(different) > 1 and all(0 < len(answer.split()) <= LONGEST_LABEL_WORDS for answer in different)


def _is_numeric(answer: str) -> bool:
    number = final_number(answer)
    return number is not None and ("####" in answer or not any(letter.isalpha() for letter in answer))


def _share(answers: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, answers)) / len(answers)
