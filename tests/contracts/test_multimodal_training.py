"""Of a multimodal checkpoint the language part is profiled, loaded and adapted, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

from autopeft.engine.adapters import inject
from autopeft.engine.base import OriginalWeights, load_base
from autopeft.methods import get_method
from autopeft.profiling.model import load_model, resolve_target_modules
from autopeft.specs import Candidate

TEXT = {
    "model_type": "gemma3_text",
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A Gemma 3 with a vision tower, whose projections are named as those of the language model, and its folder."""
    folder = tmp_path_factory.mktemp("gemma3")
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma3", text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder, model


def test_its_parameters_are_counted_in_the_header_and_the_other_parts_are_named(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    spec = load_model(str(folder))
    language = sum(parameter.numel() for parameter in model.model.language_model.parameters())
    vision = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    assert (spec.model_type, spec.wrapper) == ("gemma3_text", "gemma3")
    assert (spec.parameter_count, spec.parameter_count_source) == (language, "header")
    assert f"vision_tower {vision:,}" in spec.notes[0]
    assert "neither loaded nor adapted" in spec.notes[0]


def test_the_language_part_is_loaded_with_its_weights_and_all_linear_adapts_it_alone(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    spec = load_model(str(folder))
    targets = resolve_target_modules(spec, ("all-linear",))
    wanted = Candidate(method="lora", r=2, lora_alpha=2.0, target_modules=targets, dtype="float32")
    base = load_base(folder, wanted, "cpu")
    assert sum(parameter.numel() for parameter in base.parameters()) == spec.parameter_count
    original = model.model.language_model.layers[1].mlp.up_proj.weight
    assert torch.equal(base.model.layers[1].mlp.up_proj.weight, original)
    assert torch.equal(OriginalWeights(folder).weight("model.layers.1.mlp.up_proj"), original)
    adapted = inject(base, wanted, 10)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert trained == get_method("lora").trainable_parameters(wanted, spec)
    assert not any("vision" in name for name, _ in adapted.named_parameters())


def test_a_quantized_multimodal_checkpoint_keeps_its_storage_in_the_language_part(
    saved: tuple[Path, Any], tmp_path: Path
) -> None:
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    whole = AutoModelForImageTextToText.from_pretrained(
        saved[0], quantization_config=settings, device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    whole.save_pretrained(tmp_path)
    spec = load_model(str(tmp_path))
    assert (spec.wrapper, spec.stored_quantization) == ("gemma3", "bitsandbytes-nf4")
    wanted = Candidate(method="lora", r=2, lora_alpha=2.0, target_modules=("q_proj",), quantization="nf4")
    layer = load_base(tmp_path, wanted, "cpu").model.layers[1].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit"
    assert torch.equal(layer.weight.data, whole.model.language_model.layers[1].mlp.up_proj.weight.data)
