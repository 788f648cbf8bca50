"""Converts an adapter into what a server loads: plain LoRA of one rank, exactly where that is possible."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.engine.base import OriginalWeights
from autopeft.errors import InvalidInputError
from autopeft.handover.folders import new_folder
from autopeft.handover.layers import Factors, factors, merged_weight, nearest_factors, padded
from autopeft.handover.merging import DEFAULT_SHARD_BYTES, check_base, linear_shape, linear_weight, merge_adapter
from autopeft.handover.saved_adapter import CONFIG_FILE, PREFIX, WEIGHTS_FILE, SavedAdapter
from autopeft.handover.tensor_file import Layout, write_tensors
from autopeft.recommend.serving import Server

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What an approximation loses.

    Attributes:
        update_error: ``||update - approximation|| / ||update||``, Frobenius norms over all layers together.
        worst_layer: the layer where this is largest.
        worst_layer_error: there.
    """

    update_error: float
    worst_layer: str
    worst_layer_error: float


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How an adapter was converted.

    Attributes:
        result: "lora", a plain adapter, or "model", a merged one.
        r: of the written adapter; None for a model.
        ranks: the lowest and the highest rank of a layer before padding; None for a model.
        loss: None where the conversion is exact (up to rounding).
    """

    folder: str
    base: str
    server: str
    method: str
    result: str
    layers: int
    r: int | None = None
    lora_alpha: float | None = None
    ranks: tuple[int, int] | None = None
    dtype: str | None = None
    loss: Loss | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """A plain LoRA to be written: one rank and alpha for all layers.

    Attributes:
        fold: whether each layer's scaling goes into its B, because no common whole alpha says it.
    """

    r: int
    alpha: int
    fold: bool
    dtype: torch.dtype


@dataclass
class _Errors:
    """Sums up what approximations lose, layer by layer."""

    lost: dict[str, float] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)

    def add(self, module: str, update: torch.Tensor, approximation: torch.Tensor) -> None:
        self.lost[module] = float((update - approximation).norm())
        self.whole[module] = float(update.norm())

    def loss(self) -> Loss:
        shares = {
            module: lost / self.whole[module] if self.whole[module] else 0.0 for module, lost in self.lost.items()
        }
        worst = max(shares, key=shares.__getitem__)
        total = math.hypot(*self.whole.values())
        return Loss(
            update_error=math.hypot(*self.lost.values()) / total if total else 0.0,
            worst_layer=worst,
            worst_layer_error=shares[worst],
        )


def convert_adapter(
    adapter: SavedAdapter, base_folder: Path, server: Server, output: Path, rank: int | None
) -> Conversion:
    """Writes an adapter, or a merged model, that a server loads.

    Exact for LoRA, rsLoRA, AdaLoRA, MiSS, PiSSA and OLoRA: scalings are folded, ranks padded with zeros. DoRA and the
    form "bat" of MiSS change whole weights: without ``rank`` they are merged, with it the change is approximated and
    the loss stated.

    Raises:
        InvalidInputError: if base, server or rank do not fit, or the output exists.
    """
    base = OriginalWeights(base_folder)
    check_base(adapter, base, base_folder)
    if adapter.whole_weights:
        raise InvalidInputError(
            f"the adapter {adapter.folder} replaces whole weights ({min(adapter.whole_weights)}), which no plain LoRA "
            f"can; merge it: autopeft merge {adapter.folder} --base {base_folder} -o OUT"
        )
    if adapter.has_low_rank():
        return _exact(adapter, (base, base_folder), server, output, rank)
    if rank is None:
        return _merged(adapter, base_folder, server, output)
    return _approximated(adapter, (base, base_folder), server, output, rank)


def _exact(
    adapter: SavedAdapter, base: tuple[OriginalWeights, Path], server: Server, output: Path, rank: int | None
) -> Conversion:
    ranks = [adapter.rank(module) for module in adapter.modules]
    if rank is not None and rank < max(ranks):
        raise InvalidInputError(
            f"--rank {rank} is below {max(ranks)}, the highest rank of the adapter's layers; leave it out, since "
            f"{adapter.title} is converted exactly"
        )
    plain = _plain(adapter, max(1, rank or 0, *ranks))
    _check_rank(server, plain.r)

    @functools.lru_cache(maxsize=1)
    def layer(module: str) -> Factors:
        weights, _ = base
        weight = linear_weight(adapter, weights, module) if adapter.start else None
        return factors(adapter, module, linear_shape(adapter, weights, module), weight)

    return replace(
        _write_plain(adapter, base, server, output, plain, layer),
        ranks=(min(ranks), max(ranks)),
    )


def _plain(adapter: SavedAdapter, rank: int) -> _Plain:
    """Returns the form that changes least: the stored numbers stay as they are where one whole alpha says the scale."""
    import torch

    scalings = {adapter.scaling(module) for module in adapter.modules}
    alpha = min(scalings) * rank
    whole = len(scalings) == 1 and alpha >= 1 and math.isclose(alpha, round(alpha), rel_tol=1e-12)
    stored = adapter.dtypes()
    same = whole and len(stored) == 1 and adapter.method != "adalora" and adapter.start is None
    dtype = next(iter(stored)) if same else torch.float32
    return _Plain(r=rank, alpha=round(alpha) if whole else rank, fold=not whole, dtype=dtype)


def _check_rank(server: Server, rank: int) -> None:
    if server.ranks is not None and rank > max(server.ranks.allowed):
        raise InvalidInputError(
            f"the converted adapter has rank {rank}, and {server.title} takes at most {max(server.ranks.allowed)} "
            f"({server.ranks.option}); merge it instead: autopeft merge"
        )


def _approximated(
    adapter: SavedAdapter, base: tuple[OriginalWeights, Path], server: Server, output: Path, rank: int
) -> Conversion:
    import torch

    weights, _ = base
    narrowest = min(min(linear_shape(adapter, weights, module)) for module in adapter.modules)
    if rank > narrowest:
        raise InvalidInputError(f"--rank {rank} is above {narrowest}, the narrowest side of an adapted layer")
    _check_rank(server, rank)
    errors = _Errors()

    @functools.lru_cache(maxsize=1)
    def layer(module: str) -> Factors:
        weight = linear_weight(adapter, weights, module)
        update = merged_weight(adapter, module, weight) - weight
        nearest = nearest_factors(update, rank)
        errors.add(module, update, nearest.product())
        return nearest

    plain = _Plain(r=rank, alpha=rank, fold=False, dtype=torch.float32)
    written = _write_plain(adapter, base, server, output, plain, layer)
    return replace(written, ranks=(rank, rank), loss=errors.loss())


def _merged(adapter: SavedAdapter, base_folder: Path, server: Server, output: Path) -> Conversion:
    merged = merge_adapter(adapter, base_folder, output, None, DEFAULT_SHARD_BYTES)
    note = (
        f"{adapter.title} changes whole weights, so the adapter was merged: this is an ordinary model. "
        "With --rank R the change is approximated by a plain LoRA, and the loss stated"
    )
    return Conversion(
        folder=str(output),
        base=str(base_folder),
        server=server.name,
        method=adapter.title,
        result="model",
        layers=merged.layers,
        dtype=", ".join(merged.dtypes),
        notes=(note,),
    )


def _write_plain(
    adapter: SavedAdapter,
    base: tuple[OriginalWeights, Path],
    server: Server,
    output: Path,
    plain: _Plain,
    layer: functools._lru_cache_wrapper[Factors],
) -> Conversion:
    weights, base_folder = base
    layouts: dict[str, Layout] = {}
    for module in adapter.modules:
        rows, columns = linear_shape(adapter, weights, module)
        layouts[f"{PREFIX}{module}.lora_A.weight"] = Layout(dtype=plain.dtype, shape=(plain.r, columns))
        layouts[f"{PREFIX}{module}.lora_B.weight"] = Layout(dtype=plain.dtype, shape=(rows, plain.r))

    def tensor(name: str) -> torch.Tensor:
        module, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        found = layer(module)
        if part == "lora_A":
            return padded(found.a, plain.r, 0)
        return padded(found.scaling * found.b.float() if plain.fold else found.b, plain.r, 1)

    with new_folder(output) as scratch:
        write_tensors(scratch / WEIGHTS_FILE, layouts, tensor)
        config = json.dumps(_plain_config(adapter, weights, plain), indent=2) + "\n"
        (scratch / CONFIG_FILE).write_text(config, encoding="utf-8")
    return Conversion(
        folder=str(output),
        base=str(base_folder),
        server=server.name,
        method=adapter.title,
        result="lora",
        layers=len(adapter.modules),
        r=plain.r,
        lora_alpha=plain.alpha,
        dtype=str(plain.dtype).removeprefix("torch."),
    )


def _plain_config(adapter: SavedAdapter, base: OriginalWeights, plain: _Plain) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": adapter.config.get("task_type"),
        "base_model_name_or_path": adapter.config.get("base_model_name_or_path"),
        "inference_mode": True,
        "r": plain.r,
        "lora_alpha": plain.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": adapter.transposed,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": _target_names(adapter, base),
    }


def _target_names(adapter: SavedAdapter, base: OriginalWeights) -> list[str]:
    """Returns the last parts of the adapted layers' names, or whole paths where not every layer of a name is adapted.

    peft would give a layer that is named and not stored an adapter of random numbers and zeros.
    """
    leaves = {module.rpartition(".")[2] for module in adapter.modules}
    adapted = {base.key(module) for module in adapter.modules}
    named = {key for key in base.files if key.removesuffix(".weight").rpartition(".")[2] in leaves and ".weight" in key}
    return sorted(leaves) if named <= adapted else sorted(adapter.modules)
