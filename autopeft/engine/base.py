"""Loads the base model and reads its original weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import ModelError
from autopeft.specs import LANGUAGE_PART_KEYS, Candidate

if TYPE_CHECKING:
    import torch


def torch_dtype(name: str) -> torch.dtype:
    """Returns torch's dtype of a glossary dtype name."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[name]


def quantization_config(candidate: Candidate) -> Any:
    """Returns the BitsAndBytesConfig that stores the base as the candidate says; None for no quantization."""
    from transformers import BitsAndBytesConfig

    if candidate.quantization == "none":
        return None
    if candidate.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=candidate.double_quantization,
        bnb_4bit_compute_dtype=torch_dtype(candidate.dtype),
    )


def load_base(folder: Path, candidate: Candidate, device: str) -> Any:
    """Returns the causal language model of a folder, on the device, stored and computed as the candidate says.

    A checkpoint that is quantized already stays as it is stored, and computes in the candidate's dtype. Of a multimodal
    model the language part is loaded alone.

    Raises:
        ModelError: if weights of the model are missing in the checkpoint.
    """
    from transformers import AutoModelForCausalLM

    stored = is_stored_quantized(folder)
    # Only a quantized load needs to know the device while loading; elsewhere device_map would add accelerate's hooks.
    settings: dict[str, Any] = {"device_map": {"": device}} if stored or candidate.quantization != "none" else {}
    settings |= _language_part(folder)
    if not stored:  # even None would stand in the way of what config.json says
        settings["quantization_config"] = quantization_config(candidate)
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch_dtype(candidate.dtype),
        attn_implementation=candidate.attention,
        trust_remote_code=False,
        output_loading_info=True,
        **settings,
    )
    if found["missing_keys"]:
        raise ModelError(
            f"{folder} lacks {len(found['missing_keys'])} weights of its model ({min(found['missing_keys'])}, ...); "
            "they would be random numbers: download the checkpoint again"
        )
    model.config.use_cache = False
    if stored:
        _compute_in(model, torch_dtype(candidate.dtype))
    return model if "device_map" in settings else model.to(device)


def _language_part(folder: Path) -> dict[str, Any]:
    """Returns what makes ``from_pretrained`` load the language part of a multimodal checkpoint; nothing for others."""
    from transformers import AutoConfig

    whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text = whole.get_text_config(decoder=True)
    if text is whole:
        return {}
    stored = getattr(whole, "quantization_config", None)
    if stored is not None:  # how the weights are stored is said of the whole model, and holds for its parts
        text.quantization_config = stored
    return {"config": text, "key_mapping": LANGUAGE_PART_KEYS}


def is_stored_quantized(folder: Path) -> bool:
    """Returns whether the checkpoint in a folder is quantized already."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return bool(content.get("quantization_config"))


def _compute_in(model: Any, dtype: torch.dtype) -> None:
    """Makes bitsandbytes' 4-bit layers compute in a dtype; a checkpoint may state another, by default float32."""
    for module in model.modules():
        if hasattr(module, "compute_dtype") and hasattr(module, "compute_type_is_set"):
            module.compute_dtype, module.compute_type_is_set = dtype, True


def keep_differentiable(model: Any) -> None:
    """Keeps bitsandbytes' 4-bit layers from repacking themselves when they are scored in the middle of a training.

    On processors with AVX512-BF16, bitsandbytes 0.50 repacks a layer on its first forward in eval mode for a kernel
    without a gradient, and uses that kernel from then on: gradients no longer pass the layer, silently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class OriginalWeights:
    """The weights of a model folder as they are stored, read one tensor at a time.

    Attributes:
        files: name of each tensor -> the file that holds it, in the order of the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the headers of the folder's safetensors files.

        Raises:
            ModelError: if it has none.
        """
        self.files = _tensor_files(folder)
        self._folder = folder

    def weight(self, module_path: str) -> torch.Tensor:
        """Returns the float32 weight ``(out_features, in_features)`` of a linear layer.

        Raises:
            ModelError: if the checkpoint has no such tensor.
        """
        import torch

        return self.tensor(self.key(module_path)).to(torch.float32)

    def shape(self, module_path: str) -> tuple[int, ...]:
        """Returns the shape of a layer's weight without reading it.

        Raises:
            ModelError: if the checkpoint has no such tensor.
        """
        from safetensors import safe_open

        key = self.key(module_path)
        with safe_open(self.files[key], framework="pt") as tensors:
            return tuple(tensors.get_slice(key).get_shape())

    def tensor(self, key: str) -> torch.Tensor:
        """Returns a tensor by its name in the checkpoint, as it is stored."""
        from safetensors import safe_open

        with safe_open(self.files[key], framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(key)
            return tensor

    def key(self, module_path: str) -> str:
        """Returns the checkpoint's name of a layer's weight.

        Some checkpoints leave out the name of the backbone, or hold it inside another model.

        Raises:
            ModelError: if there is no such tensor.
        """
        wanted = f"{module_path}.weight"
        rest = wanted.partition(".")[2]
        for key in (wanted, rest, f"language_model.{wanted}", f"model.language_model.{rest}"):
            if key in self.files:
                return key
        raise ModelError(f"the checkpoint in {self._folder} has no tensor {wanted!r} in its original precision")


def _tensor_files(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {key: folder / file for key, file in weight_map.items()}
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), path)
    if not files:
        raise ModelError(f"{folder} has no .safetensors file; other weight formats are not read (pickle is unsafe)")
    return files
