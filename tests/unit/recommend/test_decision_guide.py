"""What experienced people tell each other about choosing a method, held against what the advice says."""

from dataclasses import replace

import pytest

from autopeft.errors import NothingFitsError
from autopeft.memory.closed_form import estimate_memory
from autopeft.methods import get_method
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model, spec_from_config
from autopeft.recommend import CandidateFactory, recommend
from autopeft.recommend.explain import CLOSE_POINTS
from autopeft.spaces import all_spaces
from autopeft.specs import PlanInputs, TruncationPoint

GIB = 2**30
GB = 10**9
INPUTS = PlanInputs(model="m", data="d")
LLAMA, SMALL_LLAMA = "llama-3.1-8b", "llama-3.2-3b"


@pytest.fixture
def advise(make_data):
    """Recommends for a model and a device of the catalogue, and data of so many rows."""

    def plan(model, hardware, rows, data=None, **inputs):
        spec = load_model(model) if isinstance(model, str) else model
        profile = load_hardware(hardware) if isinstance(hardware, str) else hardware
        return recommend(profile, spec, make_data(rows, **data or {}), replace(INPUTS, **inputs), seed=0)

    return plan


def firsts(plan):
    entry = plan.candidates[0]
    return entry.candidate.method, entry.candidate.quantization


def prompting(plan):
    return [note for note in plan.notes if note.startswith("prompting first: ")]


def test_with_a_massive_budget_and_a_general_task_prompting_comes_before_fine_tuning(advise):
    eight = load_hardware("h100-80gb-sxm")
    eight = replace(eight, devices=8 * eight.devices)
    (note,) = prompting(advise(LLAMA, eight, 20_000, {"task": "instruction"}))
    assert "for a general task compare a prompt to it before you train" in note


def test_with_one_consumer_gpu_or_a_task_of_its_own_nobody_is_sent_to_prompting(advise):
    assert prompting(advise(LLAMA, "rtx-4090", 20_000)) == []
    text = {"task": "continued_pretraining", "format": "text"}
    assert prompting(advise(LLAMA, "b200", 20_000, text)) == []
    assert prompting(advise(LLAMA, "b200", 20_000, {"task": "instruction", "task_kind": "code"})) == []


def test_a_handful_of_rows_belongs_into_the_prompt(advise):
    (note,) = prompting(advise(LLAMA, "rtx-4090", 12, {"task": "chat"}))
    assert "all 12 rows (3600 tokens) fit into the model's context" in note


def best_of(plan, method):
    return next(entry for entry in plan.candidates if entry.candidate.method == method)


@pytest.mark.parametrize("device", ["rtx-4090", "rtx-3060-12gb", "t4", "a100-80gb"])
def test_in_a_narrow_domain_on_limited_compute_nothing_beats_lora_or_qlora_by_more_than_noise(advise, device):
    plan = advise(LLAMA, device, 5000)
    assert best_of(plan, "lora").score > plan.candidates[0].score - CLOSE_POINTS
    assert ("lora", "nf4") in [(entry.candidate.method, entry.candidate.quantization) for entry in plan.candidates]
    assert plan.candidates[0].candidate.method != "full"


@pytest.mark.parametrize("model", ["llama-3.2-1b", "smollm2-135m-instruct", "roberta-base"])
@pytest.mark.parametrize("objective", ["quality", "balanced"])
def test_full_fine_tuning_is_never_first_for_launching_fewer_kernels(advise, model, objective):
    assert firsts(advise(model, "b200", 2_000, objective=objective))[0] != "full"


def test_full_fine_tuning_of_a_small_model_may_be_the_shortest_training(advise):
    assert firsts(advise("llama-3.2-1b", "b200", 2_000, objective="speed"))[0] == "full"


@pytest.mark.parametrize("objective", ["quality", "balanced", "cost", "speed"])
def test_dora_comes_before_lora_only_where_it_earns_its_cost(advise, objective):
    plan = advise(LLAMA, "a100-80gb", 5000, objective=objective)
    dora, lora = best_of(plan, "dora"), best_of(plan, "lora")
    gain = dora.quality_points - lora.quality_points
    cost = lora.score_terms["time"] - dora.score_terms["time"]
    assert (dora.score > lora.score) == (gain > cost + lora.score_terms["memory"] - dora.score_terms["memory"])


def test_dora_comes_first_for_quality_alone_and_last_of_the_two_for_speed(advise):
    quality, speed = (advise(LLAMA, "a100-80gb", 5000, objective=name) for name in ("quality", "speed"))
    assert firsts(quality)[0] == "dora"
    assert best_of(speed, "lora").score > best_of(speed, "dora").score


def test_loftq_is_considered_for_four_bits_and_little_data(advise):
    plan = advise(SMALL_LLAMA, "rtx-3060-12gb", 300)
    by_score = [entry.candidate.method for entry in plan.candidates if entry.candidate.quantization == "nf4"]
    assert by_score[0] == "loftq"
    assert any("few steps" in claim.text for claim in plan.candidates[0].reasons) or firsts(plan)[0] != "loftq"
    assert "loftq" not in [e.candidate.method for e in plan.candidates if e.candidate.quantization != "nf4"]


def test_ranks_above_those_of_lora_are_offered_as_rslora(advise):
    text = {"task": "continued_pretraining", "format": "text", "supervised_ratio": 1.0, "total_tokens": 2 * GB}
    plan = advise(LLAMA, "a100-40gb", 4_000_000, text)
    first = plan.candidates[0].candidate
    assert first.method == "rslora"
    assert first.r > max(all_spaces()["lora"].parameters["r"].choices)


def test_adalora_comes_first_under_a_limit_on_the_parameters_of_the_adapter(advise):
    limit = 8_000_000
    plan = advise(LLAMA, "a100-80gb", 5000, max_adapter_parameters=limit)
    first = plan.candidates[0].candidate
    assert first.method == "adalora"
    for entry in plan.candidates:
        assert get_method(entry.candidate.method).kept_parameters(entry.candidate, plan.model) <= limit
    too_large = [entry for entry in plan.rejected if entry.method == "full"]
    assert all("--max-adapter-parameters allows 8,000,000" in entry.reason for entry in too_large)


def test_without_such_a_limit_adalora_does_not_come_first(advise):
    assert firsts(advise(LLAMA, "a100-80gb", 5000))[0] != "adalora"


def test_a_175_billion_model_takes_350_gb_in_16_bits_before_the_first_gradient(make_candidate_of_full):
    # 96 layers of width 12288, the MLP chosen so that all weights together are GPT-3's 175 billion.
    config = {
        "model_type": "llama", "hidden_size": 12288, "intermediate_size": 32768, "num_hidden_layers": 96,
        "num_attention_heads": 96, "num_key_value_heads": 96, "vocab_size": 50257, "tie_word_embeddings": False,
    }  # fmt: skip
    model = spec_from_config(config, id="gpt-3-sized")
    assert model.parameter_count == pytest.approx(175e9, rel=0.01)
    full = estimate_memory(make_candidate_of_full, model, None, sequence_length=512)
    assert full.phases["load"] == pytest.approx(350 * GB, rel=0.01)
    assert full.peak_memory_bytes > 4 * 350 * GB  # gradients and two moments, each as large as the weights


@pytest.fixture
def make_candidate_of_full(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(), make_hardware(), INPUTS)
    return factory.drafts.build("full", factory.drafts.recommended("full"))


LONG_ROWS = {
    "max_tokens": 2000,
    "truncation": (TruncationPoint(max_length=1024, rows_truncated_share=0.3, supervised_tokens_lost_share=0.6),),
}


def test_on_an_8_gb_laptop_what_fits_is_a_model_of_one_to_three_billion_on_nf4(advise):
    laptop = {"hardware": "rtx-4060", "rows": 5000, "data": LONG_ROWS}
    shown = 13 * GIB // 2  # screen and desktop take their share
    for model in ("llama-3.2-1b", SMALL_LLAMA):
        fitting = advise(model, **laptop, budget_memory_bytes=shown).candidates
        assert ("lora", "nf4") in [(entry.candidate.method, entry.candidate.quantization) for entry in fitting]
    plan = advise(SMALL_LLAMA, **laptop, budget_memory_bytes=shown)
    assert firsts(plan)[1] == "nf4"
    assert "lora" in {entry.method for entry in plan.rejected if entry.variant == "none"}
    with pytest.raises(NothingFitsError, match="a model of at most about"):
        advise(LLAMA, **laptop, budget_memory_bytes=shown)


def test_a_style_of_few_rows_takes_a_lower_rank_than_knowledge_of_many(advise):
    style = advise(LLAMA, "a100-80gb", 500).candidates
    knowledge = advise(
        LLAMA, "a100-80gb", 300_000, {"task": "continued_pretraining", "format": "text", "supervised_ratio": 1.0}
    ).candidates
    ranks = [next(e.candidate.r for e in entries if e.candidate.method == "lora") for entries in (style, knowledge)]
    assert ranks[0] < ranks[1]
    assert ranks[0] <= 8


def test_knowledge_takes_all_linear_layers_and_a_high_rank_or_every_weight(advise, large_model):
    data = {"task": "continued_pretraining", "format": "text", "supervised_ratio": 1.0, "total_tokens": GB}
    adapters = advise(LLAMA, "a100-80gb", 2_000_000, data, methods=("lora", "rslora")).candidates
    assert all(len(entry.candidate.target_modules) == 7 for entry in adapters)
    assert all(entry.candidate.r >= 64 for entry in adapters)
    assert firsts(advise("llama-3.2-1b", "a100-80gb", 2_000_000, data))[0] == "full"


def test_little_data_is_told_to_be_repeated_with_another_seed(advise):
    assert any("repeat it with another --seed" in note for note in advise(SMALL_LLAMA, "rtx-4090", 300).notes)
    assert not any("another --seed" in note for note in advise(SMALL_LLAMA, "rtx-4090", 5000).notes)


@pytest.mark.parametrize("method", [name for name, space in all_spaces().items() if "r" in space.parameters])
@pytest.mark.parametrize("task", ["chat", "continued_pretraining"])
def test_twice_the_data_never_lowers_the_advised_rank(small_model, make_data, make_hardware, method, task):
    ranks = []
    for doubling in range(16):
        data = make_data(100 * 2**doubling, task=task)
        rank, _ = CandidateFactory(small_model, data, make_hardware(), INPUTS).drafts.rank_advice(method)
        ranks.append(rank)
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


def test_a_shrinking_budget_settles_the_storage_then_the_batch_then_the_length(large_model, make_data, make_hardware):
    lengths = (512, 1024, 2048, 4096)
    lost = (0.4, 0.2, 0.05, 0.0)
    points = [
        TruncationPoint(max_length=length, rows_truncated_share=share, supervised_tokens_lost_share=share)
        for length, share in zip(lengths, lost, strict=True)
    ]
    data = make_data(max_tokens=4000, truncation=tuple(points))
    found = []
    for gib in (80, 40, 28, 20, 16, 12, 10, 9, 8):
        inputs = replace(INPUTS, budget_memory_bytes=gib * GIB)
        first = recommend(make_hardware(), large_model, data, inputs, seed=0).candidates[0].candidate
        found.append((first.quantization, first.per_device_batch_size, first.max_length))
    storages, batches, kept = zip(*found, strict=True)
    assert (storages[0], kept[0]) == ("none", 4096)
    assert (storages[-1], batches[-1]) == ("nf4", 1)
    assert kept[-1] < 4096
    assert settled(storages) < settled(batches) < settled(kept)


def settled(values):
    """The place from which on nothing changes any more."""
    return next(place for place in range(len(values)) if len(set(values[place:])) == 1)
