"""Hands a finished adapter over: converted for a server, or merged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import InvalidInputError
from autopeft.resources import cache_folder
from autopeft.specs.candidate import Dtype

if TYPE_CHECKING:
    from autopeft.handover.export.target import Export
    from autopeft.handover.merging import Merged
    from autopeft.handover.serve_card import ServeCard
    from autopeft.specs import Recommendation

LOGGER = logging.getLogger(__name__)


def convert(
    adapter: str | Path,
    *,
    base: str | Path,
    server: str,
    output: str | Path,
    rank: int | None = None,
    check: bool | None = None,
) -> ServeCard:
    """Writes an adapter as what a server loads: a plain LoRA of one rank, or a merged model.

    Exact for LoRA, rsLoRA, rank and alpha patterns, AdaLoRA, MiSS, PiSSA and OLoRA. DoRA and the form "bat" of MiSS are
    merged, or, with ``rank``, approximated. Reads and writes one tensor at a time.

    Args:
        adapter: folder that peft's ``save_pretrained`` or a run wrote.
        base: unquantized model folder (a tokenizer is not needed), .gguf file or hub id.
        server: "vllm", "sglang", "llamacpp" or "ollama".
        output: new folder.
        rank: of an approximation; for an exact conversion the rank that layers are padded to at least.
        check: whether to compare the logits of a causal model in float32, which takes the memory of the whole model.
            None: where the conversion loses something.

    Returns:
        What was done, what it loses and the commands that serve it; also in SERVE.md and serve.json.

    Raises:
        InvalidInputError: if adapter, base or server do not fit each other, or the output exists.
        MissingExtraError: without the training stack.
    """
    from autopeft.engine.stack import require_training_stack
    from autopeft.handover.conversion import convert_adapter
    from autopeft.handover.parity import compare_logits
    from autopeft.handover.saved_adapter import read_adapter
    from autopeft.handover.serve_card import serve_card, write_card
    from autopeft.recommend.serving import server_named

    target = server_named(server)
    if target.launch is None:
        raise InvalidInputError(
            f"--for {server} is no server; to merge an adapter: autopeft merge ADAPTER --base MODEL"
        )
    require_training_stack("convert")
    saved, folder = read_adapter(adapter), _base_folder(base)
    conversion = convert_adapter(saved, folder, target, Path(output), rank)
    logits = None
    if conversion.loss is not None if check is None else check:
        LOGGER.info("comparing logits in float32")
        logits = compare_logits(folder, saved.folder, Path(output))
    card = serve_card(conversion, target, logits)
    write_card(card, target.title)
    return card


def merge(
    adapter: str | Path,
    *,
    base: str | Path,
    output: str | Path,
    dtype: Dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Merged:
    """Writes the base with the adapter in it, as an ordinary model folder, one tensor at a time.

    Args:
        adapter: folder that peft's ``save_pretrained`` or a run wrote.
        base: unquantized model folder (a tokenizer is copied where there is one), .gguf file or hub id.
        output: new folder.
        dtype: of the written weights; None for the base's own. The arithmetic is float32.
        max_shard_bytes: of one file of weights.

    Raises:
        InvalidInputError: if adapter and base do not fit each other, or the output exists.
        MissingExtraError: without the training stack.
    """
    from autopeft.engine.stack import require_training_stack
    from autopeft.handover.merging import merge_adapter
    from autopeft.handover.saved_adapter import read_adapter

    require_training_stack("merge")
    return merge_adapter(read_adapter(adapter), _base_folder(base), Path(output), dtype, max_shard_bytes)


def export_recipe(plan: str | Path | Recommendation, *, to: str, output: str | Path, candidate: int = 1) -> Export:
    """Writes a candidate of a plan as the configuration or script of another trainer, with the data as it takes it.

    Args:
        plan: a plan, or the path of a plan.json.
        to: "trl", "peft", "axolotl", "llamafactory", "ms-swift" or "unsloth".
        output: new folder.
        candidate: its place in the plan, from 1.

    Returns:
        What was written, how it is started, and what the trainer does otherwise than the plan says.

    Raises:
        InvalidInputError: if the trainer cannot express the candidate, or the output exists.
        UnknownNameError: if there is no such trainer.
        DataError: if the plan's data cannot be read any more.
    """
    from autopeft.api._plans import read_plan
    from autopeft.handover.export.recipe import recipe_of
    from autopeft.handover.export.target import export_recipe as write

    whole = read_plan(plan) if isinstance(plan, str | Path) else plan
    return write(recipe_of(whole, candidate), to, Path(output))


def _base_folder(base: str | Path) -> Path:
    from autopeft.engine.source import model_folder

    name, at, revision = str(base).partition("@")
    path = Path(base)
    if path.exists() or not at:
        name, revision = str(base), ""
    return model_folder(name, revision or None, cache_folder())
