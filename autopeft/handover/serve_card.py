"""The serve card: how a converted adapter is started, and what was done to it, as SERVE.md and as plain data."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from autopeft.handover.conversion import Conversion
from autopeft.handover.parity import LogitsDifference
from autopeft.recommend.serving import Server, Start, rank_room
from autopeft.specs import to_json

CARD_FILE = "SERVE.md"
DATA_FILE = "serve.json"
MODELFILE = "Modelfile"


@dataclass(frozen=True, kw_only=True)
class ServeCard:
    """What a user needs to serve a conversion; serve.json.

    Attributes:
        commands: exact lines for a shell, in order.
        modelfile: content of Ollama's Modelfile; empty for other servers.
        source: where the commands were read. This project runs none of the servers.
        logits: how far the converted model's logits are from the adapter's; None if they were not compared.
    """

    conversion: Conversion
    commands: tuple[str, ...]
    modelfile: str
    source: str
    checked: str
    logits: LogitsDifference | None = None


def serve_card(conversion: Conversion, server: Server, logits: LogitsDifference | None) -> ServeCard:
    """Returns the card of a conversion."""
    assert server.launch is not None, f"{server.name} is none that is started"
    start: Start = getattr(server.launch, conversion.result)
    rank = conversion.r or 0
    values = {
        "base": shlex.quote(conversion.base),
        "folder": shlex.quote(conversion.folder),
        "r": rank,
        "room": rank_room(server.ranks, rank) if server.ranks and rank else rank,
    }
    return ServeCard(
        conversion=conversion,
        commands=tuple(command.format(**values) for command in start.commands),
        modelfile="".join(f"{line}\n" for line in start.modelfile),
        source=server.launch.source,
        checked=server.launch.checked.isoformat(),
        logits=logits,
    )


def write_card(card: ServeCard, title: str) -> None:
    """Writes SERVE.md, serve.json and, for Ollama, Modelfile into the folder of the conversion."""
    folder = Path(card.conversion.folder)
    (folder / CARD_FILE).write_text(_markdown(card, title), encoding="utf-8")
    (folder / DATA_FILE).write_text(to_json(card), encoding="utf-8")
    if card.modelfile:
        (folder / MODELFILE).write_text(card.modelfile, encoding="utf-8")


def summary(card: ServeCard) -> list[str]:
    """Returns what was done and what it loses, one sentence each."""
    done = card.conversion
    what = "a merged model" if done.result == "model" else f"plain LoRA of rank {done.r}, alpha {done.lora_alpha:g}"
    lines = [f"{done.method} ({done.layers} layers) -> {what}, {done.dtype}", *_loss_lines(card), *done.notes]
    if done.ranks and done.ranks[0] != done.ranks[1]:
        lines.append(f"ranks {done.ranks[0]} to {done.ranks[1]} were padded with zeros, which changes nothing")
    return lines


def _loss_lines(card: ServeCard) -> list[str]:
    loss, logits = card.conversion.loss, card.logits
    if loss is None:
        lines = ["exact: the same function up to rounding"]
    else:
        lines = [
            f"approximated: {loss.update_error:.1%} of the update is lost (Frobenius norm); most in "
            f"{loss.worst_layer}, {loss.worst_layer_error:.1%}"
        ]
    if logits is not None:
        lines.append(
            f"logits on {logits.tokens} random tokens, float32: off by {logits.relative:.2g} of their own size and "
            f"{logits.of_effect:.2g} of what the adapter changes"
        )
    return lines


def _markdown(card: ServeCard, title: str) -> str:
    parts = [
        f"# Served by {title}",
        "\n".join(f"- {line}" for line in summary(card)),
        "```sh\n" + "\n".join(card.commands) + "\n```",
        *(["`Modelfile` beside this file:\n\n```\n" + card.modelfile + "```"] if card.modelfile else []),
        "An adapter that was trained on a quantized base has adapted to that base's rounding: score it on the base "
        "that is served.",
        f"The commands were read in {card.source}, {card.checked}.",
    ]
    return "\n\n".join(parts) + "\n"
