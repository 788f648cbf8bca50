"""One explicit configuration: options or an adapter_config.json become a candidate, or are refused with a reason."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.memory.explicit import Tracing, estimate_explicit, explicit_candidate, read_peft_config
from autopeft.memory.quiet import quiet_libraries
from autopeft.methods import get_method, method_names
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import spec_from_config
from autopeft.specs import Candidate, Device, ModelSpec

GPU = Device(
    name="test GPU",
    kind="cuda",
    total_memory_bytes=80 * 2**30,
    free_memory_bytes=80 * 2**30,
    compute_capability=(8, 0),
    supports_bfloat16=True,
    supports_float16=True,
    supports_int8=True,
    supports_nf4=True,
)
PLAIN: dict[str, Any] = {"method": "lora", "r": None, "lora_alpha": None, "target_modules": None}


def rest(**changes: Any) -> Candidate:
    return Candidate(**{"method": "", "r": None, "lora_alpha": None, "adapter_dtype": None} | changes)


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    """SmolLM2-135M: the shape in its config.json."""
    config = {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return spec_from_config(config, id="smollm2")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter_config.json."""

    def write(**content: Any) -> Path:
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def test_defaults_are_rank_16_on_all_linear_layers_with_float32_adapters(model: ModelSpec) -> None:
    candidate = explicit_candidate(model, PLAIN, rest())
    assert (candidate.r, candidate.lora_alpha, candidate.adapter_dtype) == (16, 16.0, "float32")
    assert candidate.target_modules == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


def test_lora_on_q_and_v_trains_r_times_in_plus_out(model: ModelSpec) -> None:
    adapter = PLAIN | {"r": 8, "target_modules": ["q_proj", "v_proj"]}
    candidate = explicit_candidate(model, adapter, rest(per_device_batch_size=2, max_length=128))
    estimate = estimate_explicit(candidate, model, GPU, saved=None, tracing=Tracing())
    # 30 layers; q_proj is 576 x 576, v_proj 576 -> 3 key-value heads of 64 = 192.
    assert estimate.trainable_parameters == 30 * 8 * ((576 + 576) + (576 + 192))
    assert estimate.source == "closed_form"


@pytest.mark.parametrize("name", [name for name in method_names() if get_method(name).closed_form])
def test_every_method_that_the_closed_form_knows_can_be_priced(model: ModelSpec, name: str) -> None:
    quantization = "nf4" if name == "loftq" else "none"
    candidate = explicit_candidate(model, PLAIN | {"method": name}, rest(quantization=quantization))
    estimate = estimate_explicit(candidate, model, GPU, saved=None, tracing=Tracing())
    assert estimate.peak_memory_bytes == sum(estimate.components.values())
    assert estimate.required_bytes == estimate.peak_memory_bytes + estimate.overhead_bytes


def test_a_method_without_a_rank_takes_none(model: ModelSpec) -> None:
    candidate = explicit_candidate(model, PLAIN | {"method": "ia3"}, rest())
    assert (candidate.r, candidate.lora_alpha) == (None, None)
    with pytest.raises(InvalidInputError, match="'ia3' has no rank; leave out r"):
        explicit_candidate(model, PLAIN | {"method": "ia3", "r": 8}, rest())


@pytest.mark.parametrize(
    ("adapter", "more", "named"),
    [
        ({"r": 8}, {}, "r"),
        ({"lora_alpha": 8.0}, {}, "lora_alpha"),
        ({"target_modules": ["q_proj"]}, {}, "target_modules"),
        ({}, {"adapter_dtype": "bfloat16"}, "adapter_dtype"),
    ],
)
def test_full_fine_tuning_takes_no_adapter_options(
    model: ModelSpec, adapter: dict[str, Any], more: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"'full' has no adapter; leave out {named}$"):
        explicit_candidate(model, PLAIN | {"method": "full"} | adapter, rest(**more))


def test_full_fine_tuning_trains_everything(model: ModelSpec) -> None:
    candidate = explicit_candidate(model, PLAIN | {"method": "full"}, rest())
    estimate = estimate_explicit(candidate, model, GPU, saved=None, tracing=Tracing())
    assert estimate.trainable_parameters == model.parameter_count == 134_515_008  # as its safetensors header counts
    assert candidate.target_modules == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamw_torhc"}, r"unknown optimizer 'adamw_torhc'; known: .*Did you mean 'adamw_torch'"),
        ({"quantization": "nf8"}, r"unknown quantization 'nf8'; known: int8, nf4, none"),
        ({"dtype": "fp16"}, r"unknown dtype 'fp16'; known: bfloat16, float16, float32"),
        ({"adapter_dtype": "fp8"}, "unknown adapter_dtype 'fp8'"),
        ({"attention": "flash"}, "unknown attention 'flash'"),
        ({"trainer": "axolotl"}, "unknown trainer 'axolotl'; known: transformers, trl"),
    ],
)
def test_an_unknown_choice_is_told_with_the_known_ones(model: ModelSpec, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        explicit_candidate(model, PLAIN, rest(**changes))


@pytest.mark.parametrize(
    ("adapter", "changes", "message"),
    [
        ({"r": 0}, {}, "r must be a whole number of at least 1, not 0"),
        ({"r": 2.5}, {}, r"r must be a whole number of at least 1, not 2\.5"),
        ({"lora_alpha": 0.0}, {}, r"lora_alpha must be a number above zero, not 0\.0"),
        ({"lora_alpha": float("nan")}, {}, "lora_alpha must be a number above zero, not nan"),
        ({}, {"per_device_batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({}, {"max_length": -1}, "sequence_length must be a whole number of at least 1, not -1"),
        ({"target_modules": []}, {}, "no target modules given"),
    ],
)
def test_an_impossible_number_is_refused(
    model: ModelSpec, adapter: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        explicit_candidate(model, PLAIN | adapter, rest(**changes))


def test_a_method_that_cannot_train_it_says_why(model: ModelSpec) -> None:
    candidate = explicit_candidate(model, PLAIN | {"method": "full"}, rest(quantization="nf4"))
    with pytest.raises(InvalidInputError, match="full fine-tuning trains the weights themselves"):
        estimate_explicit(candidate, model, GPU, saved=None, tracing=Tracing())


def test_a_saved_lora_is_priced_as_the_same_options_are(model: ModelSpec, saved: Callable[..., Path]) -> None:
    path = saved(peft_type="LORA", r=8, lora_alpha=32, target_modules=["v_proj", "q_proj"], lora_dropout=0.1)
    config = read_peft_config(path, model)
    assert config.needs_trace is None
    candidate = explicit_candidate(model, config.settings, rest())
    adapter = PLAIN | {"r": 8, "lora_alpha": 32.0, "target_modules": ["q_proj", "v_proj"]}
    assert candidate == explicit_candidate(model, adapter, rest(lora_dropout=0.1))


@pytest.mark.parametrize(
    ("content", "method"),
    [
        ({}, "lora"),
        ({"use_rslora": True}, "rslora"),
        ({"use_dora": True}, "dora"),
        ({"peft_type": "ADALORA"}, "adalora"),
    ],
)
def test_the_method_of_a_saved_configuration_is_recognized(
    model: ModelSpec, saved: Callable[..., Path], content: dict[str, Any], method: str
) -> None:
    path = saved(**{"peft_type": "LORA", "target_modules": ["q_proj"]} | content)
    assert read_peft_config(path, model).settings["method"] == method


def test_what_a_saved_configuration_leaves_out_has_pefts_defaults(model: ModelSpec, saved: Callable[..., Path]) -> None:
    # peft 0.21: LoraConfig r=8, lora_alpha=8; AdaLoraConfig target_r=8, init_r=12.
    lora = read_peft_config(saved(peft_type="LORA", target_modules=["q_proj"]), model).settings
    assert (lora["r"], lora["lora_alpha"], lora["lora_dropout"]) == (8, 8.0, 0.0)
    adalora = read_peft_config(saved(peft_type="ADALORA", target_modules=["q_proj"]), model).settings
    assert (adalora["r"], adalora["options"]) == (8, {"init_r": 12})


def test_a_saved_adalora_trains_its_initial_rank(model: ModelSpec, saved: Callable[..., Path]) -> None:
    path = saved(
        peft_type="ADALORA", target_r=4, init_r=24, lora_alpha=24, target_modules=["q_proj"], rank_pattern={"x": 1}
    )
    config = read_peft_config(path, model)
    candidate = explicit_candidate(model, config.settings, rest())
    estimate = estimate_explicit(candidate, model, GPU, saved=config, tracing=Tracing())
    assert estimate.trainable_parameters == 30 * 24 * (576 + 576 + 1)  # A, B and the diagonal E
    assert "rank_pattern" not in json.loads(config.text)


@pytest.mark.parametrize("start", ["pissa", "loftq", "eva"])
def test_how_the_adapter_was_initialized_takes_no_memory(
    model: ModelSpec, saved: Callable[..., Path], start: str
) -> None:
    path = saved(peft_type="LORA", target_modules=["q_proj"], init_lora_weights=start, eva_config={"rho": 2.0})
    config = read_peft_config(path, model)
    assert config.needs_trace is None
    assert json.loads(config.text)["init_lora_weights"] is True
    assert "eva_config" not in config.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"rank_pattern": {"q_proj": 32}}, "the closed form has no term for rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "the closed form has no term for modules_to_save"),
        ({"bias": "all"}, "the closed form has no term for bias"),
        ({"target_modules": ".*q_proj"}, r"target_modules '\.\*q_proj' is matched by peft itself"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens are no linear layers"),
        ({"peft_type": "LOHA"}, "the closed form does not know the peft type LOHA"),
    ],
)
def test_what_only_a_trace_can_price_says_so(
    model: ModelSpec, saved: Callable[..., Path], content: dict[str, Any], reason: str
) -> None:
    path = saved(**{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]} | content)
    config = read_peft_config(path, model)
    assert config.needs_trace is not None
    assert re.search(reason, config.needs_trace)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"dtype": "bfloat16"}, "Tesla T4 does not support bfloat16; use --dtype float16"),
        ({"attention": "flash_attention_2"}, "Tesla T4 does not support flash attention; use --attention sdpa"),
        ({"max_length": 8193}, "rows of 8193 tokens are longer than the 8192 that smollm2 reads"),
    ],
)
def test_what_the_device_or_the_model_does_not_support_is_an_assumption(
    model: ModelSpec, changes: dict[str, Any], said: str | None
) -> None:
    candidate = explicit_candidate(model, PLAIN, rest(**{"dtype": "float16"} | changes))
    device = load_hardware("t4").device
    lines = estimate_explicit(candidate, model, device, saved=None, tracing=Tracing()).assumptions
    found = [line for line in lines if "support" in line or "longer than" in line]
    assert found == ([] if said is None else [said])


def test_the_base_that_an_adapter_names_is_not_looked_for(model: ModelSpec, saved: Callable[..., Path]) -> None:
    path = saved(peft_type="LORA", target_modules=["q_proj"], base_model_name_or_path="someone/something")
    assert "base_model_name_or_path" not in json.loads(read_peft_config(path, model).text)


def test_the_libraries_are_quiet_in_a_trace_and_heard_again_after_it(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("transformers.test")

    def trace() -> None:
        with quiet_libraries():
            warnings.warn("noise", FutureWarning, stacklevel=1)
            logger.error("noise")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trace()
    assert "noise" not in capfd.readouterr().err
    assert logger.isEnabledFor(logging.WARNING)
    with pytest.warns(FutureWarning, match="heard"):
        warnings.warn("heard", FutureWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no valid JSON"),
        ("[1]", "is no adapter_config.json: it names no peft_type"),
        ('{"r": 8}', "is no adapter_config.json: it names no peft_type"),
        ('{"peft_type": "LORA", "r": "8", "target_modules": ["q_proj"]}', "r must be a number, not '8'"),
    ],
)
def test_a_file_that_is_no_adapter_configuration_is_refused(
    model: ModelSpec, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_peft_config(path, model)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(model: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read .*gone\.json: No such file"):
        read_peft_config(tmp_path / "gone.json", model)
