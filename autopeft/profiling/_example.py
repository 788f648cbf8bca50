"""A training example, whatever its row looked like."""

from __future__ import annotations

from dataclasses import dataclass

Message = tuple[str, str]
"""``(role, content)``; the role is one of system, developer, user, assistant, tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training example, whatever its row looked like: either ``messages`` or ``text``.

    Attributes:
        file: where it comes from.
        line: 1-based line (or row, where the file has no lines).
        messages: the turns; empty for plain text and classification.
        context_turns: leading messages that are prompt whatever their role; the loss counts on later assistant ones.
        turn_separator: what stands between the turns' texts where no chat template is used: nothing for raw
            prompt and completion texts, whose author decides the white space, and a newline elsewhere.
        text: the text of plain text and classification; None for messages.
        text_pair: the second text of a pair that is classified together; None elsewhere.
        label: the class; None except for classification.
        rejected: the answer that was not preferred, as one text; None except for preference data.
        group: what the row shares with others that must stay on its side of a split; None where no column was named.
    """

    file: str
    line: int
    messages: tuple[Message, ...] = ()
    context_turns: int = 0
    turn_separator: str = ""
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    rejected: str | None = None
    group: str | None = None

    @property
    def supervised_turns(self) -> tuple[int, ...]:
        """Indices of the messages on which the loss counts."""
        turns = range(self.context_turns, len(self.messages))
        return tuple([turn for turn in turns if self.messages[turn][0] == "assistant"])

    @property
    def characters(self) -> int:
        """Characters of all its texts."""
        return len(self.text or "") + len(self.text_pair or "") + sum([len(content) for _, content in self.messages])

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two rows copies of each other."""
        return self.messages, self.text, self.text_pair, self.label, self.rejected

    @property
    def learnt_text(self) -> str:
        """What a training learns to write: the supervised turns, or the text itself."""
        if self.text is not None:
            return self.text
        return "\n".join([self.messages[turn][1] for turn in self.supervised_turns])

    @property
    def where(self) -> str:
        """Its place for a message: ``data.jsonl:7``."""
        return f"{self.file}:{self.line}"
