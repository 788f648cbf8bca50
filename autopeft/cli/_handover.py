"""`autopeft convert`, `merge` and `export-recipe`: what is handed to servers and to other trainers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from autopeft.cli._commands import cli
from autopeft.cli._parameters import Bytes, Command, json_option
from autopeft.cli._terminal import Progress, show, terminate_like_interrupt
from autopeft.specs.candidate import Dtype

if TYPE_CHECKING:
    from autopeft.handover.export.target import Export
    from autopeft.handover.merging import Merged
    from autopeft.handover.serve_card import ServeCard

_EPILOG = "Exit codes: 0 done, 1 error, 2 usage, 130 interrupted."


def _adapter_options(command: Command) -> Command:
    options = [
        click.argument("adapter", type=click.Path(file_okay=False)),
        click.option("--base", required=True, help="Unquantized model it was trained on: folder, .gguf file, hub id."),
        click.option(
            "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="New folder."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(epilog=_EPILOG)
@_adapter_options
@click.option("--for", "server", required=True, metavar="SERVER", help="vllm, sglang, llamacpp or ollama.")
@click.option(
    "--rank", type=click.IntRange(min=1), help="Approximate DoRA by a LoRA of this rank. Default: merge it, exactly."
)
@click.option(
    "--check/--no-check",
    default=None,
    help="Compare the logits, which takes the whole model's memory. Default: where something is lost.",
)
@json_option
def convert(as_json: bool, **options: Any) -> None:
    """Writes ADAPTER as what a server loads, and how to start it.

    rsLoRA, AdaLoRA, MiSS, PiSSA, OLoRA, rank and alpha patterns become a plain LoRA of one rank, exactly. DoRA is
    merged into the base, or approximated with --rank, and the loss is stated. Needs autopeft[train].
    """
    from autopeft import api

    terminate_like_interrupt()
    with Progress():
        card = api.convert(**options)
    show(card, as_json, _card_text)


def _card_text(card: ServeCard) -> str:
    from autopeft.handover.serve_card import CARD_FILE, summary

    lines = [*summary(card), f"wrote {card.conversion.folder} ({CARD_FILE} says how to serve it):", ""]
    return "\n".join([*lines, *(f"  {command}" for command in card.commands)])


@cli.command(epilog=_EPILOG)
@_adapter_options
@click.option("--dtype", type=click.Choice(get_args(Dtype)), help="Of the written weights. Default: the base's own.")
@click.option(
    "--max-shard-size", "max_shard_bytes", type=Bytes(), default="5GB", show_default=True, help="Of a weight file."
)
@json_option
def merge(as_json: bool, **options: Any) -> None:
    """Writes the base with ADAPTER in it, as an ordinary model folder.

    Reads and writes one tensor at a time; the arithmetic is float32. A tokenizer is copied where there is one. Needs
    autopeft[train].
    """
    from autopeft import api

    terminate_like_interrupt()
    with Progress():
        merged = api.merge(**options)
    show(merged, as_json, _merged_text)


def _merged_text(merged: Merged) -> str:
    tokenizer = "with tokenizer" if merged.has_tokenizer else "no tokenizer to copy"
    return (
        f"{merged.method} merged into {merged.layers} layers: {merged.folder} "
        f"({merged.files} weight files, {', '.join(merged.dtypes)}, {tokenizer})"
    )


@cli.command("export-recipe", epilog=_EPILOG)
@click.argument("plan", type=click.Path(dir_okay=False))
@click.option("--to", required=True, metavar="TRAINER", help="trl, peft, axolotl, llamafactory, ms-swift or unsloth.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="New folder.")
@click.option("--candidate", default=1, show_default=True, type=click.IntRange(min=1), help="Its place in the plan.")
@json_option
def export_recipe(plan: str, as_json: bool, **options: Any) -> None:
    """Writes a candidate of PLAN as the configuration of another trainer.

    PLAN is a file that `autopeft suggest -o plan.json` wrote. The folder holds the configuration or script and the
    data as the trainer takes it. What the trainer does otherwise is said; what it cannot do is refused.
    """
    from autopeft import api

    show(api.export_recipe(plan, **options), as_json, _export_text)


def _export_text(export: Export) -> str:
    lines = [f"wrote {export.folder}/{export.main}, checked with {export.target} {export.version}"]
    lines += [f"  - {note}" for note in export.notes]
    return "\n".join([*lines, "", f"  cd {shlex.quote(export.folder)} && {export.command}"])
