"""Encodes examples as the tokens that a model is trained on; lengths agree with those of the data profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autopeft.errors import ModelError
from autopeft.profiling._example import Example
from autopeft.profiling._tokens import TokenizerCounter


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One example as tokens.

    Attributes:
        input_ids: chat template and special tokens included.
        supervised: half-open ranges of token positions on which the loss counts, ascending.
    """

    input_ids: tuple[int, ...]
    supervised: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """What stands before an example's last answer, as tokens, and that answer.

    Attributes:
        input_ids: chat template, generation prompt and special tokens included.
        reference: the answer's text.
    """

    input_ids: tuple[int, ...]
    reference: str


def encode_prompts(folder: Path, examples: Sequence[Example]) -> list[EncodedPrompt]:
    """Returns what a model is asked for the last supervised turn of each example; all must have one."""
    prompts = TokenizerCounter(folder).encode_prompts(examples)
    answers = [example.messages[example.supervised_turns[-1]][1] for example in examples]
    return [EncodedPrompt(ids, answer) for ids, answer in zip(prompts, answers, strict=True)]


def encode_examples(folder: Path, examples: Sequence[Example]) -> list[EncodedRow]:
    """Returns every example as tokens of the folder's tokenizer.json.

    Raises:
        ModelError: if the folder has none.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json; save one with transformers: AutoTokenizer.from_pretrained(folder)"
            ".save_pretrained(folder)"
        )
    return [EncodedRow(ids, counted.supervised) for ids, counted in TokenizerCounter(folder).encode(examples)]
