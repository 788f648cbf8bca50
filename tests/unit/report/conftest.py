"""Hand-made run records: the shape of a real eight-minute run, the numbers invented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autopeft.report import RunRecord
from autopeft.specs import (
    Baseline,
    Candidate,
    Claim,
    Comparison,
    DatasetProfile,
    Device,
    Finding,
    HardwareProfile,
    LinearLayer,
    MemoryEstimate,
    ModelSpec,
    PhaseTime,
    PlanInputs,
    RankedCandidate,
    RankedMethod,
    Recommendation,
    RejectedCandidate,
    TrialResult,
    TruncationPoint,
    Verdict,
)
from autopeft.units import GIB, MIB

ALL_LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}
# SmolLM2-135M's config.json: hidden 576, 9 heads and 3 key-value heads of 64, intermediate 1536, 30 layers.
SHAPES = {
    "q_proj": (576, 576),
    "k_proj": (576, 192),
    "v_proj": (576, 192),
    "o_proj": (576, 576),
    "gate_proj": (576, 1536),
    "up_proj": (576, 1536),
    "down_proj": (1536, 576),
}


def candidate(method: str, **changes: Any) -> Candidate:
    settings: dict[str, Any] = {
        "method": method,
        "r": 16,
        "lora_alpha": 16.0,
        "target_modules": ALL_LINEAR,
        "learning_rate": 3e-4,
        "per_device_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_length": 256,
        "quantization": "nf4" if method == "loftq" else "none",
    }
    return Candidate(**settings | changes)


def linear_layer(name: str) -> LinearLayer:
    part = "self_attn" if name[0] in "qkvo" else "mlp"
    wide, narrow = SHAPES[name]
    return LinearLayer(
        name=name,
        path=f"model.layers.{{layer}}.{part}.{name}",
        in_features=wide,
        out_features=narrow,
        count=30,
        role="attention" if part == "self_attn" else "mlp",
    )


def model_spec() -> ModelSpec:
    return ModelSpec(
        id="SmolLM2-135M-Instruct",
        format="folder",
        path="models/SmolLM2-135M-Instruct",
        revision="7e27bd9f95328f0f3b08261d1252705110c806f8",
        model_type="llama",
        kind="causal_lm",
        parameter_count=134_515_008,
        parameter_count_source="header",
        layers=30,
        hidden_size=576,
        intermediate_size=1536,
        vocab_size=49152,
        attention_heads=9,
        key_value_heads=3,
        head_dim=64,
        tie_word_embeddings=True,
        linear_layers=tuple(map(linear_layer, SHAPES)),
        context_length=8192,
        stored_dtype="bfloat16",
        license="apache-2.0",
        notes=("The tokenizer has no padding token; the end token pads.",),
    )


def data_profile() -> DatasetProfile:
    return DatasetProfile(
        source="data/style.jsonl",
        files=("data/style.jsonl",),
        content_hash="9f2c" * 16,
        format="prompt_completion",
        columns={"prompt": "question", "completion": "answer"},
        task="instruction",
        example_count=1500,
        total_characters=412_000,
        token_counts_source="tokenizer.json",
        sampled_examples=1500,
        mean_tokens=92.4,
        max_tokens=311,
        token_quantiles={"0.5": 88, "0.9": 141, "0.95": 167, "0.99": 214},
        total_tokens=138_600,
        supervised_ratio=0.47,
        truncation=(TruncationPoint(max_length=256, rows_truncated_share=0.003, supervised_tokens_lost_share=0.001),),
        duplicate_count=2,
        findings=(
            Finding(
                code="exact-duplicates",
                severity="warning",
                message="2 rows are exact copies of an earlier one",
                count=2,
                examples=("line 812: Blessed are the meek",),
                advice="remove them, or they count twice",
            ),
        ),
    )


def hardware_profile() -> HardwareProfile:
    device = Device(
        name="AMD EPYC 7B13",
        kind="cpu",
        total_memory_bytes=16 * GIB,
        free_memory_bytes=14 * GIB,
        peak_flops={"float32": 1.5e11},
    )
    return HardwareProfile(
        name="this machine", origin="probed", devices=(device,), host_memory_bytes=16 * GIB, host_cores=2
    )


def ranked(entry: Candidate, place: int) -> RankedCandidate:
    peak = int(0.9 * GIB) + place * 90 * MIB
    estimate = MemoryEstimate(
        peak_memory_bytes=peak,
        peak_reserved_bytes=peak,
        overhead_bytes=300 * MIB,
        required_bytes=peak + 300 * MIB,
        components={"base_weights": 260 * MIB, "activations": peak - 260 * MIB},
        phases={"backward": peak},
        trainable_parameters=4_884_480,
        seconds_per_step=1.1,
        source="closed_form",
        relative_error=0.15,
    )
    return RankedCandidate(
        candidate=entry,
        estimate=estimate,
        available_bytes=14 * GIB,
        predicted_seconds=None if place == 5 else 412.0 + 40 * place,
        steps=375,
        score=1.0 - place / 10,
        reasons=(
            Claim(about="max_length", text="256 tokens keep 99.9 % of the supervised ones", basis="computed"),
            Claim(about="effective_batch_size", text="an effective batch of 8 suits 1,500 rows", basis="judgement"),
            Claim(about="method", text=f"{entry.method} is place {place}", basis="measured", source="a paper"),
        ),
    )


def recommendation() -> Recommendation:
    methods = ("lora", "rslora", "dora", "loftq", "adalora")
    return Recommendation(
        seed=7,
        inputs=PlanInputs(model="models/SmolLM2-135M-Instruct", data="data/style.jsonl"),
        hardware=hardware_profile(),
        model=model_spec(),
        data=data_profile(),
        candidates=tuple(ranked(candidate(name), place) for place, name in enumerate(methods, 1)),
        rejected=(
            RejectedCandidate(
                method="full",
                variant="all weights",
                reason="it is searched only when asked for",
                required_bytes=3 * GIB,
            ),
        ),
        baselines=(
            Baseline(name="untouched-base", candidate=None, description="the model as it was downloaded"),
            Baseline(name="plain-lora", candidate=candidate("lora", learning_rate=2e-4), description="LoRA r 16"),
        ),
        notes=("The device has no bfloat16 arithmetic.",),
    )


def layer_names() -> list[str]:
    return [layer.path.format(layer=i).removeprefix("model.") for i in range(30) for layer in map(linear_layer, SHAPES)]


def trial(number: int, method: str, loss: float | None, **changes: Any) -> TrialResult:
    chosen = candidate(method, **changes.pop("candidate", {}))
    end = loss if loss is not None else 1.4
    settings: dict[str, Any] = {
        "trial": number,
        "name": f"trial-{number:04d}",
        "stage": "search",
        "candidate": chosen,
        "status": "complete",
        "eval_loss": loss,
        "steps": 30,
        "tokens": 22_176,
        "seconds": 41.5,
        "train_seconds": 31.0,
        "seed": 20_261,
        "predicted_required_bytes": int(1.25 * GIB),
        "predicted_peak_bytes": int(0.95 * GIB),
        "measured_peak_bytes": int((1.1 + number / 50) * GIB),
        "measured_peak_kind": "resident",
        "trainable_parameters": 4_884_480,
        "adapter_folder": f"trials/trial-{number:04d}/adapter",
        "curve": ((10, 7_400, end + 0.3), (20, 14_800, end + 0.1), (30, 22_176, end)),
        "versions": VERSIONS,
    }
    return TrialResult(**settings | changes)


def trials() -> tuple[TrialResult, ...]:
    layers = layer_names()
    errors = {layer: 0.085 + 0.0001 * (i % 30) for i, layer in enumerate(layers)}
    return (
        trial(0, "lora", 0.9712),
        trial(1, "rslora", 0.9544),
        trial(2, "dora", 0.9698),
        trial(
            3,
            "loftq",
            0.9931,
            quantization_error_before=errors,
            quantization_error_after={layer: 0.8 * error for layer, error in errors.items()},
        ),
        trial(4, "adalora", 1.0412, rank_pattern={layer: (7 * i) % 25 for i, layer in enumerate(layers)}),
        trial(
            5,
            "lora",
            1.2204,
            status="pruned",
            steps=10,
            tokens=7_400,
            curve=((10, 7_400, 1.2204),),
            candidate={"learning_rate": 5e-5},
        ),
        trial(
            6,
            "dora",
            None,
            status="oom",
            curve=(),
            measured_peak_bytes=None,
            measured_peak_kind=None,
            error="the worker passed its limit of 1.2 GiB",
            candidate={"r": 64},
        ),
        trial(7, "rslora", 0.9601, candidate={"learning_rate": 8e-4, "r": 32}),
        trial(8, "rslora", 0.8807, name="final-winner", stage="final", trial=None, steps=60, tokens=44_352),
        trial(9, "lora", 0.9120, name="final-plain-lora", stage="final", trial=None, steps=60, tokens=44_352),
    )


def method_rank(method: str, number: int, loss: float, difference: float | None) -> RankedMethod:
    against = None
    if difference is not None:
        against = Comparison(
            left=method,
            right="rslora",
            difference=difference,
            low=difference - 0.012,
            high=difference + 0.012,
            significant=difference > 0.012,
        )
    return RankedMethod(
        method=method,
        trial=number,
        candidate=candidate(method),
        choose_loss=loss,
        test_loss=loss + 0.01,
        against_best=against,
        seconds=41.5,
        trials=2,
    )


def verdict() -> Verdict:
    return Verdict(
        conclusion=(
            "rsLoRA r=16 lowers held-out loss from 1.5612 (untouched base) to 0.8911; against plain LoRA r=16: "
            "-0.0310 [-0.0422, -0.0198]; between the methods no significant difference."
        ),
        significant=False,
        winner=candidate("rslora"),
        winner_trial=1,
        winner_reason="It is the cheapest of the 3 methods that cannot be told apart.",
        losses={"winner": 0.8911, "plain-lora": 0.9221, "untouched-base": 1.5612},
        comparisons=(
            Comparison(
                left="winner", right="plain-lora", difference=-0.031, low=-0.0422, high=-0.0198, significant=True
            ),
            Comparison(
                left="winner", right="untouched-base", difference=-0.6701, low=-0.71, high=-0.63, significant=True
            ),
        ),
        ranking=(
            method_rank("rslora", 1, 0.9544, None),
            method_rank("dora", 2, 0.9698, 0.0121),
            method_rank("lora", 0, 0.9712, 0.0104),
            method_rank("loftq", 3, 0.9931, 0.0377),
            method_rank("adalora", 4, 1.0412, 0.0868),
        ),
        cut=("12 of 20 trials", "final training: 0.4 of one epoch instead of 1"),
        caveats=("One seed: the noise between seeds is not in the intervals.",),
        tokens_searched=162_632,
        seconds=466.0,
        phases=(PhaseTime(phase="search", seconds=301.0), PhaseTime(phase="final", seconds=121.0)),
    )


@pytest.fixture
def finished() -> RunRecord:
    """A run with a verdict."""
    manifest = {"settings": {"trials": None, "time_budget_seconds": 480.0, "seed": 7}, "split_hash": "c0ffee"}
    return RunRecord(plan=recommendation(), manifest=manifest, trials=trials(), verdict=verdict(), folder="runs/demo")


@pytest.fixture
def started() -> RunRecord:
    """A run before its first trial ended."""
    return RunRecord(plan=recommendation(), manifest={}, trials=(), verdict=None, folder="runs/demo")


@pytest.fixture
def make_trial() -> Callable[..., TrialResult]:
    return trial


@pytest.fixture
def make_candidate() -> Callable[..., Candidate]:
    return candidate
