"""Adapters of every known kind on a tiny model without a tokenizer, with random numbers in place of a training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.testing import tiny_llama

TARGETS = ["q_proj", "v_proj", "down_proj"]
Maker = Callable[..., Path]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("plain"))


def fill_with_random_numbers(model: Any) -> None:
    """What a training would have done: every stored tensor is away from its start."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "miss_" in name:
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data += noise.to(parameter.dtype)


@pytest.fixture(scope="session")
def make_adapter(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Returns a function that saves an adapter of a peft configuration class with the given settings."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    def make(kind: str = "LoraConfig", base: Path = base_folder, dtype: str | None = None, **settings: Any) -> Path:
        config = getattr(peft, kind)(task_type="CAUSAL_LM", **({"target_modules": TARGETS} | settings))
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        fill_with_random_numbers(model)
        if dtype is not None:
            model = model.to(getattr(torch, dtype))
        folder = tmp_path_factory.mktemp("adapter") / "adapter"
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def adalora(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AdaLoRA adapter whose layers have kept different ranks, one of them none."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    config = peft.AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=TARGETS,
        init_r=6,
        target_r=3,
        tinit=1,
        tfinal=1,
        total_step=9,
        lora_alpha=24,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), config)
    fill_with_random_numbers(model)
    masks = {name: [True] * 6 for name, _ in model.named_parameters() if "lora_E" in name}
    for number, name in enumerate(masks):
        kept = number % 6
        masks[name] = [index < kept for index in range(6)]
    pattern = {name.removeprefix("base_model.model."): mask for name, mask in masks.items()}
    model.base_model.peft_config["default"].rank_pattern = pattern
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.data[~torch.tensor(masks[name])] = 0
    folder = tmp_path_factory.mktemp("adalora") / "adapter"
    model.save_pretrained(folder)
    return folder
