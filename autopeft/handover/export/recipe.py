"""What every trainer has to be told: one candidate of a plan, its model, its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from autopeft.errors import InvalidInputError
from autopeft.methods import get_method
from autopeft.methods._base import AdapterSpec
from autopeft.profiling.dataset import Example, read_examples
from autopeft.specs import Candidate, Recommendation

RowKind = Literal["chat", "plain", "text"]
"""Turns for the model's chat template, a prompt and its answer without one, or running text."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training.

    Attributes:
        number: place of the candidate in the plan, from 1.
        adapter: what peft is told; None for full fine-tuning.
        steps: optimizer steps of the whole training.
        rows: as prompt and answer, or text.
        earlier_answers: rows whose loss counts on more than their last answer.
    """

    number: int
    candidate: Candidate
    model: str
    revision: str | None
    adapter: AdapterSpec | None
    steps: int
    seed: int
    row_kind: RowKind
    rows: tuple[Example, ...]
    earlier_answers: int

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises, as the engine counts them."""
        return max(1, round(self.candidate.warmup_ratio * self.steps))

    @property
    def mixed_precision(self) -> bool:
        """Whether a 16-bit base has a float32 adapter, so that autocast joins them."""
        return self.candidate.dtype != "float32" and self.candidate.adapter_dtype == "float32"


def recipe_of(plan: Recommendation, number: int) -> Recipe:
    """Returns a candidate of a plan as a recipe; reads the data.

    Raises:
        InvalidInputError: if the plan has no such candidate, or no other trainer can do what it says.
    """
    if not 1 <= number <= len(plan.candidates):
        raise InvalidInputError(f"the plan has candidates 1 to {len(plan.candidates)}, not {number}")
    ranked = plan.candidates[number - 1]
    _check(plan, ranked.candidate)
    rows = read_examples(plan.data.files, plan.data.format, plan.data.columns, plan.data.on_bad_row)
    return Recipe(
        number=number,
        candidate=ranked.candidate,
        model=plan.model.path or plan.model.id,
        revision=plan.model.revision if plan.model.format == "hub" else None,
        adapter=get_method(ranked.candidate.method).adapter_spec(ranked.candidate, ranked.steps),
        steps=ranked.steps,
        seed=plan.seed,
        row_kind=_row_kind(rows[0], plan.model.has_chat_template),
        rows=tuple(rows),
        earlier_answers=sum(len(row.supervised_turns) > 1 for row in rows),
    )


def _check(plan: Recommendation, candidate: Candidate) -> None:
    """Refuses what no export can say.

    Raises:
        InvalidInputError: with the reason and what to do.
    """
    problems = {
        f"method {candidate.method}: its start comes from autopeft's own engine": candidate.method == "loftq",
        f"optimizer {candidate.optimizer}: no trainer knows it by name": candidate.optimizer == "lorafa",
        f"{plan.data.format} data: only texts, conversations, prompts with answers are exported": plan.data.format
        in ("classification", "preference", "text_pair"),
        f"a {plan.model.kind} model: only causal language models are exported": plan.model.kind != "causal_lm",
        "a GGUF file: give `autopeft suggest` the model as a folder or a hub id": plan.model.format == "gguf",
        "the language part of a multimodal model": plan.model.wrapper is not None,
        f"a base that is stored quantized ({plan.model.stored_quantization})": plan.model.stored_format is not None,
    }
    found = [problem for problem, holds in problems.items() if holds]
    if found:
        raise InvalidInputError(
            f"this plan's candidate cannot be exported: {'; '.join(found)}; choose another candidate with --candidate, "
            "or train it with autopeft run"
        )


def _row_kind(row: Example, has_chat_template: bool) -> RowKind:
    if row.text is not None:
        return "text"
    return "chat" if has_chat_template else "plain"


def turns(row: Example) -> list[dict[str, str]]:
    """Returns a conversation up to its last answer, as most trainers take it."""
    last = row.supervised_turns[-1]
    return [{"role": role, "content": content} for role, content in row.messages[: last + 1]]


def prompt_and_answer(row: Example) -> tuple[str, str]:
    """Returns the texts before the last answer, joined as the engine joins them without a chat template, and it."""
    last = row.supervised_turns[-1]
    before = "".join(content + row.turn_separator for _, content in row.messages[:last])
    return before, row.messages[last][1]


def row_for_trl(row: Example, kind: RowKind) -> dict[str, Any]:
    """Returns a row as trl takes it: "text", or "prompt" and "completion" as texts or turns."""
    if kind == "text":
        return {"text": row.text}
    if kind == "plain":
        prompt, answer = prompt_and_answer(row)
        return {"prompt": prompt, "completion": answer}
    conversation = turns(row)
    return {"prompt": conversation[:-1], "completion": conversation[-1:]}


def row_as_messages(row: Example, kind: RowKind) -> dict[str, Any]:
    """Returns a row as "messages", or as "prompt" and "completion" or "text" without a chat template."""
    return {"messages": turns(row)} if kind == "chat" else row_for_trl(row, kind)
