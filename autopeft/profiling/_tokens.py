"""Counts tokens: exactly with a tokenizer.json, otherwise by an estimate from the texts' bytes."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from autopeft.errors import ModelError
from autopeft.profiling._example import Example
from autopeft.profiling._render import (
    ChatTemplate,
    Rendered,
    read_chat_template,
    read_special_tokens,
    render_plain,
)
from autopeft.specs.data import CountsSource
from autopeft.specs.model import ModelSpec

UTF8_BYTES_PER_TOKEN = 3.5
"""Measured with the tokenizer of SmolLM2 (49,152 entries) on five English data sets: 3.06 (arithmetic problems), 3.20,
3.27 (text messages), 3.85 (dialogue), 4.12 (Bible). Larger vocabularies pack more. Bytes, not characters, because
byte-level tokenizers spend more tokens on a character outside ASCII."""

CHAT_TOKENS_PER_MESSAGE = 5
"""What a ChatML template puts around a message: start, role, newline, end, newline. Counted from its text; a default
system message is left out."""


@dataclass(frozen=True, slots=True)
class CountedRow:
    """The length of one row.

    Attributes:
        tokens: all of them, the template and special tokens included.
        supervised: half-open ranges of token positions on which the loss counts, ascending.
    """

    tokens: int
    supervised: tuple[tuple[int, int], ...]

    def supervised_within(self, max_length: int) -> int:
        """Returns how many of the first ``max_length`` tokens the loss counts on."""
        return sum([max(0, min(end, max_length) - begin) for begin, end in self.supervised])


class CharacterCounter:
    """Estimates lengths from the texts alone; known error on English: -13 % to +18 % (see UTF8_BYTES_PER_TOKEN)."""

    source: CountsSource = "characters"

    def __init__(self, chat: bool) -> None:
        self._chat = chat

    def count(self, examples: Sequence[Example]) -> list[CountedRow]:
        """Returns the estimated length of each example."""
        return [self._count_one(example) for example in examples]

    def count_and_ids(
        self, examples: Sequence[Example], wanted: Collection[int]
    ) -> Iterator[tuple[CountedRow, Sequence[int] | None]]:
        """Yields the estimated lengths; there are no token ids."""
        del wanted
        return ((self._count_one(example), None) for example in examples)

    def _count_one(self, example: Example) -> CountedRow:
        if example.text is not None:
            pair = _estimated_tokens(example.text_pair) + 1 if example.text_pair is not None else 0
            tokens = _estimated_tokens(example.text) + 1 + pair
            return CountedRow(tokens, ((0, tokens),))
        position = 0
        ranges = []
        for turn, (_, content) in enumerate(example.messages):
            begin = position
            position += _estimated_tokens(content) + (CHAT_TOKENS_PER_MESSAGE if self._chat else 1)
            if turn in example.supervised_turns:
                # Start, role and newline belong to the generation prompt.
                ranges.append((begin + (3 if self._chat else 0), position))
        return CountedRow(position, tuple(ranges))


class TokenizerCounter:
    """Counts with the model's own tokenizer and chat template."""

    source: CountsSource = "tokenizer.json"

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tokenizer.json"
        self._tokenizer = _load_tokenizer(self._file)
        self._template = read_chat_template(folder)
        self._before, self._after = _special_tokens_around(self._tokenizer)
        self._eos_token = "" if self._after else read_special_tokens(folder).get("eos_token", "")

    @cached_property
    def special_ids(self) -> tuple[int | None, frozenset[int]]:
        """The id that stands for what the tokenizer cannot represent, and those of single bytes of a character."""
        return _unknown_id(self._file, self._tokenizer), _single_byte_ids(self._tokenizer)

    def count(self, examples: Sequence[Example]) -> list[CountedRow]:
        """Returns the length of each example."""
        return [counted for counted, _ in self._encode(examples)]

    def count_and_ids(
        self, examples: Sequence[Example], wanted: Collection[int]
    ) -> Iterator[tuple[CountedRow, Sequence[int] | None]]:
        """Yields the length of each example, and the token ids of those whose place is ``wanted``."""
        for order, (counted, encoding) in enumerate(self._encode(examples)):
            yield counted, encoding.ids if order in wanted else None

    def encode(self, examples: Sequence[Example]) -> list[tuple[tuple[int, ...], CountedRow]]:
        """Returns the token ids of each example, special tokens included, with its length."""
        around = self._tokenizer.encode("a").ids
        begin, end = around[: self._before], around[len(around) - self._after :]
        pairs = zip(examples, self._encode(examples), strict=True)
        return [
            (tuple(encoding.ids) if self._templated(example) else (*begin, *encoding.ids, *end), counted)
            for example, (counted, encoding) in pairs
        ]

    def encode_prompts(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        """Returns the token ids of what stands before each example's last supervised turn."""
        begin = self._tokenizer.encode("a").ids[: self._before]
        texts = []
        for example in examples:
            rendered = _render(example, self._template, self._eos_token)
            texts.append(rendered.text[: rendered.supervised[-1][0]])
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        pairs = zip(examples, encoded, strict=True)
        return [tuple(each.ids) if self._templated(example) else (*begin, *each.ids) for example, each in pairs]

    def _encode(self, examples: Sequence[Example]) -> list[tuple[CountedRow, Any]]:
        if examples and examples[0].text_pair is not None:
            return self._encode_pairs(examples)
        rendered = [_render(example, self._template, self._eos_token) for example in examples]
        encoded = self._tokenizer.encode_batch([each.text for each in rendered], add_special_tokens=False)
        rows = zip(examples, rendered, encoded, strict=True)
        return [(self._row(example, text, encoding.offsets), encoding) for example, text, encoding in rows]

    def _encode_pairs(self, examples: Sequence[Example]) -> list[tuple[CountedRow, Any]]:
        """Counts text pairs, between which the tokenizer puts special tokens of its own; no training reads them."""
        pairs = [(example.text, example.text_pair) for example in examples]
        encoded = self._tokenizer.encode_batch(pairs, add_special_tokens=True)
        return [(CountedRow(len(encoding), ((0, len(encoding)),)), encoding) for encoding in encoded]

    def _templated(self, example: Example) -> bool:
        """Returns whether the chat template writes the row; it writes the special tokens itself."""
        return bool(example.messages) and self._template is not None

    def _row(self, example: Example, rendered: Rendered, offsets: list[tuple[int, int]]) -> CountedRow:
        before, after = (0, 0) if self._templated(example) else (self._before, self._after)
        ranges = []
        for begin, end in rendered.supervised:
            # A token that reaches over the border belongs to what is predicted.
            first = bisect_right(offsets, begin, key=itemgetter(1)) + before
            last = bisect_left(offsets, end, key=itemgetter(0)) + before
            ranges.append((first, max(first, last)))
        tokens = before + len(offsets) + after
        whole = example.text is not None
        return CountedRow(tokens, ((0, tokens),) if whole else _closed_by(ranges, tokens, after))


Counter = CharacterCounter | TokenizerCounter


def counter_for(model: ModelSpec | None) -> Counter:
    """Returns what counts tokens for a model: its tokenizer.json if it lies in a folder here, otherwise an estimate.

    A GGUF file's own tokenizer is not read; lengths for it are estimates.

    Raises:
        ModelError: if the tokenizer is there but broken.
    """
    if model is not None and model.path is not None:
        folder = Path(model.path)
        if (folder / "tokenizer.json").is_file():
            return TokenizerCounter(folder)
    return CharacterCounter(chat=model is not None and model.has_chat_template)


def _render(example: Example, template: ChatTemplate | None, eos_token: str) -> Rendered:
    if example.messages and template is not None:
        return template.render(example)
    return render_plain(example, eos_token)


def _load_tokenizer(file: Path) -> Any:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{file} is no tokenizer that can be read: {error}") from error
    # The file may carry the truncation and padding of whoever saved it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unknown_id(file: Path, tokenizer: Any) -> int | None:
    """Returns the id of the token for the unknown; None if the tokenizer needs none."""
    import msgspec

    # Only what is asked for is built of a file of megabytes.
    wanted = msgspec.defstruct(
        "Model", [("byte_fallback", bool | None, None), ("unk_token", str | None, None), ("unk_id", int | None, None)]
    )
    whole: Any = msgspec.json.decode(file.read_bytes(), type=msgspec.defstruct("File", [("model", wanted)]))
    model = whole.model
    if model.byte_fallback:
        return None
    found: int | None = model.unk_id if model.unk_token is None else tokenizer.token_to_id(model.unk_token)
    return found


def _single_byte_ids(tokenizer: Any) -> frozenset[int]:
    """Returns the ids of tokens that are one byte of a character outside ASCII.

    Byte fallback writes them as ``<0xE4>``. Byte-level tokenizers write every byte as one letter; the bytes above 0x7F
    are written as the letters of Latin-1 where those can be seen, and from U+0121 on where they cannot (GPT-2's
    ``bytes_to_unicode``, https://github.com/openai/gpt-2, src/encoder.py).
    """
    import tokenizers

    names = [f"<0x{byte:02X}>" for byte in range(0x80, 0x100)]
    if isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel):
        seen = [byte for byte in range(0x80, 0x100) if byte > 0xA0 and byte != 0xAD]
        names = [chr(byte) for byte in seen] + [chr(0x122 + place) for place in range(0x21)] + [chr(0x143)]
    return frozenset(found for name in names if (found := tokenizer.token_to_id(name)) is not None)


def _special_tokens_around(tokenizer: Any) -> tuple[int, int]:
    """Returns how many special tokens the tokenizer itself puts before and after a text."""
    mask = tokenizer.encode("a").special_tokens_mask
    if all(mask):
        return len(mask), 0
    return mask.index(0), mask[::-1].index(0)


def _closed_by(ranges: list[tuple[int, int]], tokens: int, after: int) -> tuple[tuple[int, int], ...]:
    """Lets the last range take in the closing special tokens, if it reaches up to them."""
    if ranges and after and ranges[-1][1] == tokens - after:
        ranges[-1] = (ranges[-1][0], tokens)
    return tuple(ranges)


def _estimated_tokens(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return math.ceil(size / UTF8_BYTES_PER_TOKEN)
