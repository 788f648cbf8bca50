"""Looks at one row for what would spoil a training; each check has the code of its finding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec

from autopeft.profiling._example import Example

JSON_AS_TEXT = "json-as-text"


def place_of(example: Example) -> str:
    """Returns a row's place for a finding."""
    return f"{Path(example.file).name}:{example.line}"


def shortened(text: str) -> str:
    """Returns the beginning of a text on one line."""
    flat = " ".join(text[:200].split())
    return flat if len(flat) <= 60 else flat[:57] + "..."


def shown(example: Example) -> str:
    """Returns a row's place and its beginning."""
    content = example.text if example.text is not None else example.messages[0][1]
    return f"{place_of(example)}: {shortened(content)}"


def _empty_completion(example: Example) -> str | None:
    return None if example.learnt_text.strip() else shown(example)


def _no_assistant_turn(example: Example) -> str | None:
    if not example.messages or example.messages[-1][0] == "assistant" or example.supervised_turns:
        return None
    return f"{place_of(example)}: {_roles(example)}"


def _roles_out_of_order(example: Example) -> str | None:
    """Finds what chat templates refuse or render oddly: turns that do not alternate, or begin with an answer."""
    turns = [role for role, _ in example.messages if role in ("user", "assistant")]
    if len(turns) < 2:
        return None
    if turns == ["user", "assistant"] and example.messages[-2][0] == "user":
        return None
    repeated = any(one == other for one, other in itertools.pairwise(turns)) and not _uses_tools(example)
    late_system = any(role in ("system", "developer") for role, _ in example.messages[1:])
    return f"{place_of(example)}: {_roles(example)}" if repeated or turns[0] == "assistant" or late_system else None


def _uses_tools(example: Example) -> bool:
    return any(role == "tool" for role, _ in example.messages)


def _ends_with_a_question(example: Example) -> str | None:
    if example.messages and example.messages[-1][0] == "user" and example.supervised_turns:
        return f"{place_of(example)}: {shortened(example.messages[-1][1])}"
    return None


def _no_preference(example: Example) -> str | None:
    if example.rejected is None or example.rejected.strip() not in (example.learnt_text.strip(), _sides(example)):
        return None
    return shown(example)


def _sides(example: Example) -> str:
    return "\n".join(content for _, content in example.messages).strip()


def _json_text(example: Example) -> str | None:
    """Finds a JSON object in the place of a text."""
    text = (example.text or "").strip()
    if not (text.startswith('{"') and text.endswith("}")):
        return None
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    return shown(example)


def _roles(example: Example) -> str:
    roles = [role for role, _ in example.messages]
    return ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")


ROW_CHECKS: dict[str, Callable[[Example], str | None]] = {
    "empty-completions": _empty_completion,
    "no-assistant-turn": _no_assistant_turn,
    "roles-out-of-order": _roles_out_of_order,
    "unanswered-questions": _ends_with_a_question,
    "equal-preferences": _no_preference,
    JSON_AS_TEXT: _json_text,
}
"""Code -> a check that returns how the row is shown, or None if nothing is wrong."""
