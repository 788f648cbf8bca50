"""Already quantized checkpoints: what is read of them, what can be trained over them, and what peft says to that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.errors import ModelError
from autopeft.memory.pricing import price_memory
from autopeft.memory.storage import quantization_problem
from autopeft.methods import get_method, registry
from autopeft.profiling._stored_format import known_formats, stored_format
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model, spec_from_config
from autopeft.report.context import model_facts
from autopeft.specs import Candidate, ModelSpec

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "torch_dtype": "float16",
}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
# As on the hub: TheBloke/*-GPTQ, *-AWQ, neuralmagic/*, Qwen/*-FP8, openai/gpt-oss-20b.
SETTINGS: dict[str, dict[str, Any]] = {
    "bitsandbytes-nf4": NF4 | {"bnb_4bit_use_double_quant": True},
    "bitsandbytes-fp4": {"load_in_4bit": True},
    "bitsandbytes-int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
    },
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}
BITS = {"bitsandbytes-nf4": 4, "bitsandbytes-fp4": 4, "bitsandbytes-int8": 8, "gptq": 4, "awq": 4}
BITS |= {"compressed-tensors": 8, "fp8": 8, "mxfp4": 4}
GPU = load_hardware("rtx-4090").device
# Where each method trains, written out: yes, or words of the reason.
ADAPTERS = ("lora", "rslora", "dora", "adalora", "loftq", "full")
OUTCOMES: dict[str, tuple[str | None, ...]] = {
    "bitsandbytes-nf4": (None, None, None, None, "LoftQ needs the original weights", "trains the weights themselves"),
    "gptq": (None, None, "GPTQLoraLinear", None, "LoftQ undoes the error of nf4", "cannot be trained"),
    "awq": (None, None, "AwqLoraLinear", "no layer for AWQ weights", "LoftQ undoes", "cannot be trained"),
    "fp8": (None, None, "FP8 codes without their scales", None, "LoftQ undoes", "cannot be trained"),
    "mxfp4": (*["Mxfp4Config(dequantize=True)"] * 4, "LoftQ undoes", "cannot be trained"),
}


def stored_as(name: str) -> ModelSpec:
    return spec_from_config(LLAMA | {"quantization_config": SETTINGS[name]}, id=name)


def candidate(method: str, model: ModelSpec, quantization: Any = None) -> Candidate:
    base = quantization or (model.stored_format.base if model.stored_format else "none")
    targets = () if method == "full" else ("q_proj", "v_proj")
    return Candidate(method=method, r=8, lora_alpha=8, target_modules=targets, quantization=base)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_format_and_its_bits_are_read_from_the_configuration(name: str) -> None:
    stored = stored_as(name).stored_format
    assert stored is not None
    assert (stored.name, stored.bits, stored_as(name).stored_quantization) == (name, BITS[name], name)


def test_the_bits_of_hqq_stand_two_levels_deep_in_what_transformers_writes() -> None:
    weights = {"nbits": 8, "group_size": 64, "axis": 1}
    settings = {"quant_method": "hqq", "quant_config": {"weight_quant_params": weights}, "skip_modules": ["lm_head"]}
    found = stored_format({"quantization_config": settings}, "config.json")
    assert found is not None
    assert (found.name, found.bits) == ("hqq", 8)


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_method_says_whether_it_trains_over_the_stored_weights_and_why_not(name: str) -> None:
    model = stored_as(name)
    assert set(ADAPTERS) <= set(registry())
    for method, expected in zip(ADAPTERS, OUTCOMES[name], strict=True):
        problem = get_method(method).why_not(candidate(method, model), model, GPU)
        assert (problem is None) == (expected is None), (method, problem)
        assert expected is None or expected in str(problem)


def test_a_checkpoint_of_bitsandbytes_is_the_nf4_base_and_no_other() -> None:
    model = stored_as("bitsandbytes-nf4")
    assert quantization_problem("nf4", model, GPU) is None
    assert "holds nf4 weights and none in 16 bits" in str(quantization_problem("none", model, GPU))
    assert "already quantized (bitsandbytes-nf4), which int8 cannot replace" in str(
        quantization_problem("int8", model, GPU)
    )


def test_a_gptq_checkpoint_stays_as_it_is_and_is_priced_packed() -> None:
    model, plain = stored_as("gptq"), spec_from_config(LLAMA, id="plain")
    assert quantization_problem("none", model, GPU) is None
    packed = price_memory(candidate("lora", model), model, GPU, sequence_length=64)
    whole = price_memory(candidate("lora", plain), plain, GPU, sequence_length=64)
    assert packed.components["base_weights"] < whole.components["base_weights"]
    assert any("GPTQ weights, whose memory is taken for that of nf4" in text for text in packed.assumptions)


def test_a_stored_nf4_base_is_priced_with_the_scales_that_it_has() -> None:
    model = stored_as("bitsandbytes-nf4")
    single = spec_from_config(LLAMA | {"quantization_config": NF4}, id="single scales")
    sizes = [
        price_memory(candidate("lora", each), each, GPU, sequence_length=64).components["base_weights"]
        for each in (model, single)
    ]
    assert sizes[0] < sizes[1]


def test_a_format_that_nobody_knows_is_trained_by_no_adapter_and_says_what_to_do() -> None:
    model = spec_from_config(LLAMA | {"quantization_config": {"quant_method": "novel"}}, id="x")
    problem = str(get_method("lora").why_not(candidate("lora", model), model, GPU))
    assert "'novel' weights is not known here; give the checkpoint that is not quantized" in problem


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([4], r"quantization_config must be an object with a text quant_method, not \[4\]"),
        ({"quant_method": 4}, r"must be an object with a text quant_method"),
        ({"bits": 4}, r"names no quant_method"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, r"bnb_4bit_quant_type is 'nf5'; allowed: 'nf4', 'fp4'"),
    ],
)
def test_wrong_quantization_settings_are_one_clear_sentence(tmp_path: Path, settings: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": settings}), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"config.json: quantization_config.*{message}|{message}"):
        load_model(str(tmp_path))


def test_old_plans_without_the_facts_still_refuse_to_quantize_again() -> None:
    model = replace(spec_from_config(LLAMA, id="x"), stored_quantization="gptq")
    assert "already quantized (gptq)" in str(quantization_problem("nf4", model, GPU))


def test_the_facts_are_those_of_the_installed_peft() -> None:
    """Asks peft's own layer classes; what packs the weights need not be installed for it."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from peft.tuners.adalora import AdaLoraModel
    from peft.tuners.lora.aqlm import AqlmLoraLinear
    from peft.tuners.lora.awq import AwqLoraLinear
    from peft.tuners.lora.gptq import GPTQLoraLinear

    for layer in (GPTQLoraLinear, AwqLoraLinear, AqlmLoraLinear):
        with pytest.raises(ValueError, match="does not support DoRA"):
            layer(torch.nn.Linear(4, 4), "default", peft.LoraConfig(use_dora=True), r=2)
    packed = torch.nn.Module()  # what AWQ, HQQ and EETQ put in the place of a linear layer is none itself
    settings = peft.AdaLoraConfig(total_step=100)
    with pytest.raises(ValueError, match="is not supported"):
        AdaLoraModel._create_new_module(settings, "default", packed)


def test_the_facts_agree_with_what_transformers_trains() -> None:
    pytest.importorskip("torch")
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    constant = {
        "auto-round",
        "fbgemm_fp8",
        "higgs",
        "mxfp4",
        "nvfp4",
        "quark",
        "spqr",
        "vptq",
        "gptq",
        "eetq",
        "hqq",
        "fp8",
    }
    for name in sorted(constant & set(known_formats())):
        answer = AUTO_QUANTIZER_MAPPING[name].is_trainable.fget(None)
        spec = spec_from_config(LLAMA | {"quantization_config": {"quant_method": name, "bits": 4}}, id=name)
        assert spec.stored_format is not None
        assert bool(spec.stored_format.trains) == answer, name
    assert len(constant & set(known_formats())) >= 12


def suggested(folder: Path, settings: dict[str, Any], rows: Path) -> Any:
    (folder / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": settings}), encoding="utf-8")
    return autopeft.suggest(model=folder, data=rows, hardware="rtx-4090")


def test_a_plan_for_a_gptq_checkpoint_rejects_what_peft_refuses_with_its_reason(tmp_path: Path, rows: Path) -> None:
    plan = suggested(tmp_path, SETTINGS["gptq"], rows)
    assert {(each.candidate.method, each.candidate.quantization) for each in plan.candidates} == {
        ("lora", "none"),
        ("rslora", "none"),
        ("adalora", "none"),
    }
    reasons = {(each.method, each.variant): each.reason for each in plan.rejected}
    assert "GPTQLoraLinear" in reasons["dora", "none"]
    assert "which nf4 cannot replace" in reasons["lora", "nf4"]


def test_a_plan_for_a_checkpoint_of_bitsandbytes_stays_on_its_storage(tmp_path: Path, rows: Path) -> None:
    plan = suggested(tmp_path, SETTINGS["bitsandbytes-nf4"], rows)
    assert {each.candidate.quantization for each in plan.candidates} == {"nf4"}
    assert {each.candidate.method for each in plan.candidates} == {"lora", "rslora", "dora", "adalora"}
    assert plan.baselines[1].candidate.quantization == "nf4"


def test_the_model_table_says_what_each_method_can_do_with_stored_weights() -> None:
    facts = dict(model_facts(stored_as("awq")))
    assert facts["lora over it"] == "yes"
    assert "AwqLoraLinear" in facts["dora over it"]
    assert "lora over it" not in dict(model_facts(spec_from_config(LLAMA, id="plain")))
