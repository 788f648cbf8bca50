"""Merges an adapter into its base, tensor by tensor: an ordinary model folder, whatever the method was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.engine.base import OriginalWeights, is_stored_quantized, torch_dtype
from autopeft.errors import InvalidInputError, ModelError
from autopeft.handover.folders import copy_companions, new_folder
from autopeft.handover.layers import merged_weight
from autopeft.handover.saved_adapter import SavedAdapter
from autopeft.handover.tensor_file import Layout, write_tensors
from autopeft.specs.candidate import Dtype

if TYPE_CHECKING:
    import torch

DEFAULT_SHARD_BYTES = 5 * 10**9
"""What transformers' save_pretrained writes into one file."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged model.

    Attributes:
        layers: how many weights hold the adapter now.
        dtypes: of the written tensors, sorted.
        has_tokenizer: whether the base, or the adapter's folder, had one to copy.
    """

    folder: str
    method: str
    layers: int
    files: int
    dtypes: tuple[str, ...]
    has_tokenizer: bool


def check_base(adapter: SavedAdapter, base: OriginalWeights, folder: Path) -> None:
    """Compares the shapes of the adapted layers with the base's.

    Raises:
        InvalidInputError: naming the first layer that the base lacks or has in another shape.
    """
    if is_stored_quantized(folder):
        raise InvalidInputError(
            f"the weights in {folder} are quantized already; give the unquantized model with --base, and score the "
            "result on it: an adapter fits the weights that it was trained on best"
        )
    for module in adapter.modules:
        shape = _base_shape(adapter, base, module, folder)
        for found, at in _fitting(adapter, module, shape):
            if not at:
                trained_on = adapter.config.get("base_model_name_or_path")
                raise InvalidInputError(
                    f"the adapter {adapter.folder} does not fit the base {folder}: {module} is {shape[0]} x {shape[1]} "
                    f"there, and the adapter has {found}; adapter_config.json names the base {trained_on!r}"
                )


def linear_shape(adapter: SavedAdapter, base: OriginalWeights, module: str) -> tuple[int, int]:
    """Returns ``(out_features, in_features)`` of a layer of the base."""
    rows, columns = base.shape(module)
    return (columns, rows) if adapter.transposed else (rows, columns)


def linear_weight(adapter: SavedAdapter, base: OriginalWeights, module: str) -> torch.Tensor:
    """Returns the float32 weight ``(out_features, in_features)`` of a layer of the base."""
    weight = base.weight(module)
    return weight.T if adapter.transposed else weight


def _base_shape(adapter: SavedAdapter, base: OriginalWeights, module: str, folder: Path) -> tuple[int, int]:
    try:
        return linear_shape(adapter, base, module)
    except ModelError as error:
        hint = "it is tied to the embedding" if module.endswith("lm_head") else "is it another model?"
        raise InvalidInputError(
            f"the adapter {adapter.folder} does not fit the base {folder}: it has no weight of {module} ({hint}); "
            f"adapter_config.json names the base {adapter.config.get('base_model_name_or_path')!r}"
        ) from error


def _fitting(adapter: SavedAdapter, module: str, shape: tuple[int, int]) -> Iterator[tuple[str, bool]]:
    """Yields what a layer's tensors say of its shape, and whether that is the base's."""
    rows, columns = shape
    if adapter.method == "miss-bat":
        blocks, rank, _ = adapter.shape(module, "miss_block")
        yield f"{blocks} blocks of {rank} x {rank}", blocks * rank == rows and columns % rank == 0
    elif adapter.method == "miss":
        rank, outputs = adapter.shape(module, "miss_block")
        yield f"a block of {rank} x {outputs}", rows % outputs == 0 and rank <= columns
    else:
        inputs, outputs = adapter.shape(module, "lora_A")[1], adapter.shape(module, "lora_B")[0]
        yield f"{outputs} x {inputs}", (outputs, inputs) == shape


def merge_adapter(
    adapter: SavedAdapter, base_folder: Path, output: Path, dtype: Dtype | None, max_shard_bytes: int
) -> Merged:
    """Writes the base with the adapter in it as a new model folder.

    Args:
        adapter: of any known method.
        base_folder: with config.json and unquantized safetensors; a tokenizer is copied where there is one.
        output: a folder that does not exist yet.
        dtype: of the written weights; None for each tensor's own. The arithmetic is float32.
        max_shard_bytes: a file of weights holds no more, single larger tensors excepted.

    Raises:
        InvalidInputError: if the base does not fit the adapter, or the output exists.
    """
    base = OriginalWeights(base_folder)
    check_base(adapter, base, base_folder)
    _check_whole_weights(adapter, base)
    with new_folder(output) as scratch:
        return _write(adapter, base, (base_folder, scratch, output), dtype, max_shard_bytes)


def _check_whole_weights(adapter: SavedAdapter, base: OriginalWeights) -> None:
    for name, stored in adapter.whole_weights.items():
        if name not in base.files or _layout(base, name, None).shape != adapter.stored_shape(stored):
            raise InvalidInputError(
                f"the adapter {adapter.folder} holds {name} of shape {list(adapter.stored_shape(stored))}, which the "
                "base has not (a new or resized head, or a tied one); merge it with peft's merge_and_unload"
            )


def _write(
    adapter: SavedAdapter,
    base: OriginalWeights,
    folders: tuple[Path, Path, Path],
    dtype: Dtype | None,
    max_shard_bytes: int,
) -> Merged:
    base_folder, scratch, output = folders
    module_of = {base.key(module): module for module in adapter.modules}

    def tensor(name: str) -> torch.Tensor:
        return _merged_tensor(adapter, base, name, module_of.get(name))

    layouts = {name: _layout(base, name, dtype) for name in base.files}
    shards = list(_shards(layouts, max_shard_bytes))
    for number, shard in enumerate(shards, start=1):
        write_tensors(scratch / _file_name(number, len(shards)), shard, tensor)
    if len(shards) > 1:
        _write_index(scratch, shards)
    copy_companions(base_folder, scratch)
    copy_companions(adapter.folder, scratch)  # a tokenizer that was trained with wins
    _write_config(base_folder, scratch, dtype)
    return Merged(
        folder=str(output),
        method=adapter.title,
        layers=len(adapter.modules),
        files=len(shards),
        dtypes=tuple(sorted({str(layout.dtype).removeprefix("torch.") for layout in layouts.values()})),
        has_tokenizer=any(scratch.glob("tokenizer*")),
    )


def _merged_tensor(adapter: SavedAdapter, base: OriginalWeights, name: str, module: str | None) -> torch.Tensor:
    if module is not None:
        merged = merged_weight(adapter, module, linear_weight(adapter, base, module))
        return merged.T if adapter.transposed else merged
    if name in adapter.whole_weights:
        return adapter.read(adapter.whole_weights[name])
    return base.tensor(name)


def _layout(base: OriginalWeights, name: str, dtype: Dtype | None) -> Layout:
    """Returns how a tensor is written; the header does not tell torch's dtype, so an empty slice is read."""
    from safetensors import safe_open

    with safe_open(base.files[name], framework="pt") as tensors:
        part = tensors.get_slice(name)
        shape = tuple(part.get_shape())
        stored = part[:0].dtype if shape else tensors.get_tensor(name).dtype
    wanted = torch_dtype(dtype) if dtype is not None and stored.is_floating_point else stored
    return Layout(dtype=wanted, shape=shape)


def _shards(layouts: dict[str, Layout], max_shard_bytes: int) -> Iterator[dict[str, Layout]]:
    shard: dict[str, Layout] = {}
    held = 0
    for name, layout in layouts.items():
        if shard and held + layout.size_bytes > max_shard_bytes:
            yield shard
            shard, held = {}, 0
        shard[name] = layout
        held += layout.size_bytes
    yield shard


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _write_index(folder: Path, shards: list[dict[str, Layout]]) -> None:
    names = {name: _file_name(number, len(shards)) for number, shard in enumerate(shards, start=1) for name in shard}
    total = sum(layout.size_bytes for shard in shards for layout in shard.values())
    content = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_config(base_folder: Path, target: Path, dtype: Dtype | None) -> None:
    config: dict[str, Any] = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
