"""Reads a saved adapter: what method it is, which layers it changes, and each layer's tensors one at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autopeft.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

Method = Literal["lora", "dora", "adalora", "miss", "miss-bat"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

_PARTS = {
    "lora": {"lora_A", "lora_B"},
    "dora": {"lora_A", "lora_B", "lora_magnitude_vector"},
    "adalora": {"lora_A", "lora_B", "lora_E"},
    "miss": {"miss_block"},
    "miss-bat": {"miss_block"},
}
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_[ABE]|lora_magnitude_vector|miss_block)(?:\.weight)?"
)
_KNOWN_STARTS = (True, False, None, "gaussian", "default", "eva", "orthogonal", "mica", "pissa", "olora")
"""Ways to begin: with the base left as it is, or, the last two, changed as its own weights decide."""

_READ = {
    "peft_type",
    "base_model_name_or_path",
    "lora_alpha",
    "alpha_pattern",
    "fan_in_fan_out",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "init_weights",
    "init_r",
    "bias",
}
_OF_TRAINING = {
    *("task_type", "revision", "inference_mode", "auto_mapping", "peft_version", "runtime_config", "megatron_core"),
    *("r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "mini_r"),
    *("lora_dropout", "miss_dropout", "modules_to_save", "ensure_weight_tying", "qalora_group_size"),
    *("loftq_config", "eva_config", "lora_ga_config", "corda_config"),
    *("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
}
"""Settings that say nothing of what the finished adapter computes, or what its tensors say as well."""


@dataclass(frozen=True, kw_only=True)
class SavedAdapter:
    """An adapter folder.

    Attributes:
        config: adapter_config.json.
        modules: paths of the adapted layers in the base model, in the order of the file.
        whole_weights: tensors that replace one of the base (``modules_to_save``), as path in the base -> name in file.
    """

    folder: Path
    config: dict[str, Any]
    method: Method
    modules: tuple[str, ...]
    whole_weights: dict[str, str]
    _names: dict[tuple[str, str], str]
    _shapes: dict[str, tuple[int, ...]]

    @property
    def title(self) -> str:
        """The method as people call it."""
        start = self.config.get("init_lora_weights")
        if self.method == "lora" and start in ("pissa", "olora"):
            return {"pissa": "PiSSA", "olora": "OLoRA"}[start]
        if self.method == "lora" and self.config.get("use_rslora"):
            return "rsLoRA"
        titles = {"lora": "LoRA", "dora": "DoRA", "adalora": "AdaLoRA", "miss": "MiSS", "miss-bat": "MiSS (bat)"}
        return titles[self.method]

    @property
    def start(self) -> str | None:
        """Returns "pissa" or "olora" where the base was changed when the training began; None elsewhere."""
        start = self.config.get("init_lora_weights")
        return start if self.method in ("lora", "dora") and start in ("pissa", "olora") else None

    @property
    def transposed(self) -> bool:
        """Whether the base stores these layers as ``(in, out)``, as GPT-2 does."""
        return bool(self.config.get("fan_in_fan_out"))

    def has_low_rank(self) -> bool:
        """Returns whether every layer's update is a product of two small matrices."""
        return self.method in ("lora", "adalora", "miss")

    def rank(self, module: str) -> int:
        """Returns the rank of a layer's update, the subtracted start of PiSSA and OLoRA included."""
        part = "miss_block" if self.method.startswith("miss") else "lora_A"
        rank = self.shape(module, part)[0]
        return 2 * rank if self.start else rank

    def scaling(self, module: str) -> float:
        """Returns the factor before ``B A``: alpha / r, alpha / sqrt(r) for rsLoRA, AdaLoRA's as peft computes it."""
        if self.method.startswith("miss"):
            return 1.0
        alpha = float(self.config.get("lora_alpha") or 0)
        if self.method == "adalora":
            start = float(self.config["init_r"])
            return (alpha or start) / (start + 1e-5)  # peft's own guard against a division by zero
        patterns = self.config.get("alpha_pattern") or {}
        alpha = float(next((value for key, value in patterns.items() if _matches(key, module)), alpha))
        rank = self.shape(module, "lora_A")[0]
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def shape(self, module: str, part: str) -> tuple[int, ...]:
        """Returns the shape of a layer's tensor, from the file's header."""
        return self.stored_shape(self._names[module, part])

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor by its name in the file."""
        return self._shapes[name]

    def dtypes(self) -> set[torch.dtype]:
        """Returns the dtypes of all tensors of the layers."""
        return {self.tensor(module, part).dtype for module, part in self._names}

    def tensor(self, module: str, part: str) -> torch.Tensor:
        """Returns a tensor of a layer as it is stored; ``part`` is "lora_A", "miss_block", ..."""
        return self.read(self._names[module, part])

    def read(self, name: str) -> torch.Tensor:
        """Returns a tensor by its name in the file."""
        from safetensors import safe_open

        with safe_open(self.folder / WEIGHTS_FILE, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
            return tensor


def read_adapter(folder: str | Path) -> SavedAdapter:
    """Returns a saved adapter, checked.

    Raises:
        InvalidInputError: if the folder holds no adapter, one of a type that is not known here, or one whose settings
            or tensors do more than these formulas say.
    """
    path = Path(folder)
    config = _config(path)
    method = _method(path, config)
    _check_settings(path, config)
    shapes = _shapes(path)
    names, whole = _sorted_names(path, shapes, method)
    modules = tuple(dict.fromkeys(module for module, _ in names))
    _check_parts(path, names, modules, method)
    return SavedAdapter(
        folder=path,
        config=config,
        method=method,
        modules=modules,
        whole_weights=whole,
        _names=names,
        _shapes=shapes,
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InvalidInputError(
            f"{folder} is no adapter folder: it has no {CONFIG_FILE}; give the folder that peft's save_pretrained, or "
            "a run, wrote (RUN/adapter)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInputError(f"{path} must hold an object, not {type(config).__name__}")
    return config


def _method(folder: Path, config: dict[str, Any]) -> Method:
    kind = str(config.get("peft_type"))
    if kind == "LORA":
        return "dora" if config.get("use_dora") else "lora"
    if kind == "ADALORA":
        return "adalora"
    if kind == "MISS":
        return "miss-bat" if config.get("init_weights") == "bat" else "miss"
    raise InvalidInputError(
        f"{folder / CONFIG_FILE}: peft_type {kind!r} cannot be converted; known: LORA (with rsLoRA, DoRA, PiSSA and "
        "OLoRA), ADALORA, MISS. Merge it with peft's merge_and_unload where peft can"
    )


def _check_settings(folder: Path, config: dict[str, Any]) -> None:
    """Refuses settings that change what the adapter computes in a way that is not known here."""
    path = folder / CONFIG_FILE
    unknown = [key for key, value in config.items() if key not in _READ | _OF_TRAINING and not _is_unset(value)]
    if unknown:
        raise InvalidInputError(
            f"{path} sets {', '.join(sorted(unknown))}, of which this version does not know the effect; "
            "unset them where they change nothing, or merge the adapter with peft"
        )
    if not _is_unset(config.get("bias")):
        raise InvalidInputError(f"{path}: bias is {config['bias']!r}; trained biases are no part of a plain LoRA")
    start = config.get("init_lora_weights", True)
    if start not in _KNOWN_STARTS:
        raise InvalidInputError(
            f"{path}: init_lora_weights is {start!r}, which changed the base's weights in a way that the adapter alone "
            "does not tell; save it again with path_initial_model_for_weight_conversion"
        )


def _is_unset(value: Any) -> bool:
    return value in (None, False, "none") or value in ({}, [])


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        hint = " (adapter_model.bin is pickle, which is unsafe and not read)" * (folder / "adapter_model.bin").is_file()
        raise InvalidInputError(f"{folder} has no {WEIGHTS_FILE}{hint}; save the adapter again with a current peft")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(f"{path} is no whole safetensors file: {error}") from error


def _sorted_names(
    folder: Path, shapes: dict[str, tuple[int, ...]], method: Method
) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """Returns the tensors of the layers by module and part, and those that replace whole weights."""
    names: dict[tuple[str, str], str] = {}
    whole: dict[str, str] = {}
    for name, shape in shapes.items():
        found = _TENSOR.fullmatch(name)
        if found is None and "lora_" not in name:
            whole[name.removeprefix(PREFIX)] = name
        elif found is None or found["part"] not in _PARTS[method] or len(shape) > _most_dimensions(method):
            raise InvalidInputError(
                f"{folder / WEIGHTS_FILE}: the tensor {name} of shape {list(shape)} is none that {method} has on a "
                "linear layer; embeddings, convolutions and fused experts are not converted"
            )
        else:
            names[found["module"], found["part"]] = name
    return names, whole


def _most_dimensions(method: Method) -> int:
    return 3 if method == "miss-bat" else 2


def _check_parts(folder: Path, names: dict[tuple[str, str], str], modules: tuple[str, ...], method: Method) -> None:
    missing = [f"{module}.{part}" for module, part in _wanted(modules, method) if (module, part) not in names]
    if missing or not modules:
        what = f"lacks {missing[0]} ({len(missing)} tensors in all)" if missing else "holds no adapted layer"
        raise InvalidInputError(f"{folder / WEIGHTS_FILE} {what}; copy or save the adapter again")


def _wanted(modules: tuple[str, ...], method: Method) -> Iterator[tuple[str, str]]:
    return ((module, part) for module in modules for part in sorted(_PARTS[method]))


def _matches(pattern: str, module: str) -> bool:
    """Returns whether a key of ``alpha_pattern`` means a module, as peft decides it (``get_pattern_key``)."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
