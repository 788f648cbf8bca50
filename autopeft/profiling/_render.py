"""Renders examples as the text that a model reads, with the parts on which the loss counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from autopeft.errors import DataError, ModelError
from autopeft.profiling._example import Example, Message

_DATE_OF_TEMPLATES = "26 Jul 2024"
"""What templates that print today's date get, so that counts do not depend on the day; any date is as long."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text and the half-open character ranges ``(begin, end)`` of it on which the loss counts."""

    text: str
    supervised: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A tokenizer's chat template, rendered as transformers renders it but without transformers."""

    def __init__(self, source: str, special_tokens: dict[str, str], where: str) -> None:
        import jinja2

        self._where = where
        self._special_tokens = special_tokens
        try:
            self._template = _template_environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template in {where} is broken at line {error.lineno}: {error.message}"
            ) from error

    def text(self, messages: Sequence[Message], place: str, *, add_generation_prompt: bool = False) -> str:
        """Returns the conversation as the model reads it; ``place`` names the row in errors.

        Raises:
            DataError: if the template refuses the conversation.
        """
        import jinja2

        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            text: str = self._template.render(
                messages=turns,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
            return text
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(role for role, _ in messages)
            raise DataError(
                f"{place}: the chat template in {self._where} refuses the conversation (roles: {roles}): {error}"
            ) from error

    def render(self, example: Example) -> Rendered:
        """Returns a conversation's text; each supervised range runs from the generation prompt to the turn's end.

        A template may write the start of a conversation otherwise than the same turns inside the whole one; a range
        then begins where the two texts part, as trl 1.16 counts a completion (``common_prefix_length`` in its
        sft_trainer.py).
        """
        whole = self.text(example.messages, example.where)
        ranges = []
        for turn in example.supervised_turns:
            begin = self._shared_length(example, turn, whole, asks=True) if turn else 0
            last = turn + 1 == len(example.messages)
            end = len(whole) if last else self._shared_length(example, turn + 1, whole, asks=False)
            ranges.append((begin, max(begin, end)))
        return Rendered(whole, tuple(ranges))

    def _shared_length(self, example: Example, turns: int, whole: str, *, asks: bool) -> int:
        start = self.text(example.messages[:turns], example.where, add_generation_prompt=asks)
        return len(start) if whole.startswith(start) else _common_prefix_length(start, whole)


def _common_prefix_length(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def render_plain(example: Example, eos_token: str) -> Rendered:
    """Returns an example's text without a chat template: its texts one after the other, then ``eos_token``.

    A classification row is its text alone; the loss depends on all of it.
    """
    if example.text is not None:
        text = example.text if example.label is not None else example.text + eos_token
        return Rendered(text, ((0, len(text)),))
    pieces: list[str] = []
    ranges: list[tuple[int, int]] = []
    position = 0
    supervised = set(example.supervised_turns)
    for turn, (_, content) in enumerate(example.messages):
        last = turn + 1 == len(example.messages)
        piece = content + (eos_token if last else example.turn_separator)
        if turn in supervised:
            ranges.append((position, position + len(piece)))
        pieces.append(piece)
        position += len(piece)
    return Rendered("".join(pieces), tuple(ranges))


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Returns a tokenizer folder's special tokens by name ("bos_token", "eos_token", ...), those it has."""
    tokens: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _read_json_object(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return tokens


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """Returns the chat template of a tokenizer folder: ``chat_template.jinja``, or an entry of tokenizer_config.json.

    Of several named templates the one called "default" is taken. None if there is none.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), read_special_tokens(folder), str(file))
    config = folder / "tokenizer_config.json"
    source = _read_json_object(config).get("chat_template")
    if isinstance(source, list):
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}.get(
            "default"
        )
    return ChatTemplate(source, read_special_tokens(folder), str(config)) if isinstance(source, str) else None


def _read_json_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = msgspec.json.decode(file.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _template_environment() -> Any:
    """Returns the sandbox that transformers 5.23 compiles chat templates in (utils/chat_template_utils.py)."""
    import jinja2.ext
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_extension()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda _format: _DATE_OF_TEMPLATES
    return environment


def _generation_extension() -> type:
    import jinja2.ext

    class Generation(jinja2.ext.Extension):
        """Lets the ``{% generation %}`` block stand for its content, which is all that counting needs."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _to_json(value: Any, indent: int | None = None) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
