"""Divides rows into train, choose and test so that copies never stand on both sides."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from autopeft.errors import DataError
from autopeft.profiling._example import Example, Message
from autopeft.profiling._formats import GROUP
from autopeft.profiling.scan.neighbours import largest_group_share, template_rows
from autopeft.profiling.scan.similar import SimilarRow
from autopeft.profiling.scan.templates import prompt_of, template_of
from autopeft.specs.data import SplitBy

TEMPLATE_ROWS_SHARE = 0.25
"""Share of rows that share a template from which on templates are kept on one side of the splits."""
LARGEST_GROUP_SHARE = 0.05
"""Share of the largest template up to which held-out splits can be filled with whole ones."""


def split_rows(
    examples: Sequence[Example], *, choose_rows: int, test_rows: int, seed: int, split_by: SplitBy = "prompt"
) -> dict[str, tuple[int, ...]]:
    """Returns the row numbers (0-based, ascending) of the splits "train", "choose" and "test".

    Rows of one group (``Example.group``) stay together, or else those with the same prompt (for text: the same text),
    up to case and white space, so a held-out row was never trained on. Which rows go where depends on their content
    and the seed alone, not on their order. The held-out splits hold at most as many rows as asked for: a group that
    would overfill one stays in train. With ``split_by`` "template" prompts that differ in numbers and names alone count
    as the same.

    Raises:
        DataError: if the data cannot give every split that was asked for at least one row.
    """
    if choose_rows < 0 or test_rows < 0:
        raise ValueError(f"choose_rows and test_rows must not be negative, but are {choose_rows} and {test_rows}")
    splits: dict[str, list[int]] = {"train": [], "choose": [], "test": []}
    limits = {"test": test_rows, "choose": choose_rows, "train": len(examples)}
    for group in _groups(examples, seed, template_key if split_by == "template" else prompt_key):
        name = next(name for name, limit in limits.items() if len(splits[name]) + len(group) <= limit)
        splits[name].extend(group)
    _check_filled(splits, limits, len(examples))
    return {name: tuple(sorted(rows)) for name, rows in splits.items()}


def prompt_key(example: Example) -> str:
    """Returns what two rows share that must not be divided: all that comes before the first answer.

    A chat and its continuation thus stay together, for the loss counts on the first answer in both. The first answer
    is the first supervised turn that follows a question: a greeting that opens every chat must not make them all one.
    Rows without a prompt are told apart by their whole content.
    """
    if example.text is not None:
        return _normalized(example.text)
    prompt = _joined(example.messages[: _first_answer(example)])
    return prompt if prompt.strip("\0") else _joined(example.messages)


def template_key(example: Example) -> str:
    """Returns what the rows of one template share: the prompt with its numbers and names masked, or ``prompt_key``."""
    return template_of(prompt_of(example)) or prompt_key(example)


def splits_by_template(compared: Sequence[SimilarRow], columns: Mapping[str, str]) -> bool:
    """Returns whether splits shall keep templates together, by a sample of the rows.

    They shall where many rows share one, each template is small enough to be held out whole, and no column was named
    to group by.
    """
    if GROUP in columns:
        return False
    found = template_rows(compared, shown=0)
    return found.count >= TEMPLATE_ROWS_SHARE * max(1, found.rows) and (
        largest_group_share(compared) <= LARGEST_GROUP_SHARE
    )


def _first_answer(example: Example) -> int:
    """Returns its index; that of the first supervised turn where no question precedes any."""
    turns = example.supervised_turns
    answers = [turn for turn in turns if any(role == "user" for role, _ in example.messages[:turn])]
    return next(iter([*answers, *turns]), len(example.messages))


def _joined(messages: Sequence[Message]) -> str:
    return "\0".join(_normalized(content) for _, content in messages)


def _groups(examples: Sequence[Example], seed: int, key_of: Callable[[Example], str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        key = key_of(example) if example.group is None else example.group
        groups.setdefault(key, []).append(index)
    return [groups[key] for key in sorted(groups, key=lambda key: _rank(key, seed))]


def _rank(key: str, seed: int) -> bytes:
    # surrogatepass: a lone surrogate can stand in a text that did not come from a file.
    return hashlib.blake2b(f"{seed}:{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _check_filled(splits: dict[str, list[int]], limits: dict[str, int], rows: int) -> None:
    empty = [name for name, limit in limits.items() if limit and not splits[name]]
    if empty or not splits["train"]:
        raise DataError(
            f"{rows} rows cannot be split into train, {limits['choose']} to choose by and {limits['test']} to test on: "
            f"nothing is left for {' and '.join(empty or ['train'])}, as rows with the same prompt stay together; "
            "hold out fewer rows, or add rows with other prompts"
        )
