"""Whether, and how, a server can load what a candidate would train."""

from __future__ import annotations

import datetime
import functools
import math
from dataclasses import dataclass, field
from typing import Literal

from autopeft.errors import UnknownNameError
from autopeft.resources import read_record, yaml_files
from autopeft.specs import Candidate, Claim, MethodSpace

Verdict = Literal["as_trained", "converted", "same_base", "refused"]


@dataclass(frozen=True, kw_only=True)
class FormRule:
    """What a server makes of one form of adapter.

    Attributes:
        verdict: loads it "as_trained", after an exact conversion ("converted"), on the very base that it was trained
            on ("same_base"), or not at all ("refused").
        how: one clause; may name {rank}, {root} (of the rank) and {alpha} (folded).
    """

    verdict: Verdict
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class RankRule:
    """The ranks that a server makes room for: its option, the values that it takes, the value without it."""

    option: str
    allowed: list[int]
    default: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a server is started with what was converted for it.

    Attributes:
        commands: one a line; may name {base}, {folder} (of the result), {r} and {room} (the rank it makes room for).
        modelfile: the lines of Ollama's Modelfile, which lies in the folder of the result.
    """

    commands: list[str]
    modelfile: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a server is started with an adapter ("lora"), and with a whole model ("model")."""

    lora: Start
    model: Start
    source: str
    checked: datetime.date


@dataclass(frozen=True, kw_only=True)
class Server:
    """The content of a file of ``profiles/serving``.

    Attributes:
        forms: form of an adapter -> what becomes of it.
        ranks: None where any rank is taken.
        holds_nf4: whether it can load the base in bitsandbytes' nf4.
        launch: None where nothing is started.
    """

    name: str
    title: str
    forms: dict[str, FormRule]
    holds_nf4: bool
    source: str
    checked: datetime.date
    ranks: RankRule | None = None
    launch: Launch | None = None


@functools.cache
def servers() -> dict[str, Server]:
    """Returns every server by its name, in alphabetical order."""
    return {name: read_record(path, Server) for name, path in yaml_files("profiles/serving").items()}


def server_named(name: str) -> Server:
    """Returns a server by name.

    Raises:
        UnknownNameError: listing the known ones.
    """
    try:
        return servers()[name]
    except KeyError:
        raise UnknownNameError("server (--serve)", name, servers()) from None


def serving_problem(server: Server, candidate: Candidate, space: MethodSpace) -> str | None:
    """Returns why a server cannot load what a candidate would train, in one clause; None if it can."""
    rule = server.forms.get(space.adapter_form)
    if rule is None:
        return (
            f"nothing is known of how {server.title} serves {candidate.method} (adapter form {space.adapter_form!r}; "
            f"known forms: {', '.join(sorted(server.forms))})"
        )
    if rule.verdict == "refused":
        return _text(rule, candidate, space)
    rank = _served_rank(candidate, space)
    if server.ranks is not None and rank > max(server.ranks.allowed):
        return (
            f"rank {rank} is above {max(server.ranks.allowed)}, the highest that {server.title} "
            f"takes ({server.ranks.option})"
        )
    return None


def serving_claims(server: Server, candidate: Candidate, space: MethodSpace) -> tuple[Claim, ...]:
    """Returns what has to be done so that a server serves what a candidate trains; empty if nothing has."""
    rule = server.forms[space.adapter_form]
    texts = [_text(rule, candidate, space), _rank_text(server, candidate, space), _base_text(server, candidate, space)]
    return tuple(
        Claim(about="serve", text=text, basis="computed", source=f"profiles/serving/{server.name}.yaml")
        for text in texts
        if text
    )


def rank_room(rule: RankRule, rank: int) -> int:
    """Returns the lowest value of a server's option that has room for a rank, which must not be above them all."""
    return min(allowed for allowed in rule.allowed if allowed >= rank)


def _served_rank(candidate: Candidate, space: MethodSpace) -> int:
    """Returns the rank that a server sees: AdaLoRA's layers may keep as much as they start with."""
    times = 2 if space.adapter_form == "doubled_rank" else 1
    return times * int(candidate.options.get("init_r", candidate.r or 0))


def _text(rule: FormRule, candidate: Candidate, space: MethodSpace) -> str:
    rank, alpha = _served_rank(candidate, space), candidate.lora_alpha or 0.0
    root = math.sqrt(rank)
    return rule.how.format(rank=rank, root=root, alpha=alpha * root)


def _rank_text(server: Server, candidate: Candidate, space: MethodSpace) -> str:
    rank = _served_rank(candidate, space)
    if server.ranks is None or not candidate.target_modules or rank <= server.ranks.default:
        return ""
    room = rank_room(server.ranks, rank)
    return f"{server.title} makes room for rank {server.ranks.default}: start it with {server.ranks.option} {room}"


def _base_text(server: Server, candidate: Candidate, space: MethodSpace) -> str:
    """An adapter that was trained on a quantized base has adapted to that base's errors too."""
    if candidate.quantization == "none" or space.adapter_form == "quantized_base":
        return ""
    where = "load the same nf4 base, or" if server.holds_nf4 and candidate.quantization == "nf4" else ""
    return f"trained on a {candidate.quantization} base: {where} score it on the base that will be served".replace(
        "  ", " "
    )
