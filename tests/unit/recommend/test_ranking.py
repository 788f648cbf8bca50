from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import NothingFitsError, UnknownNameError
from autopeft.memory.closed_form import estimate_memory
from autopeft.profiling.hardware import hardware_names, load_hardware
from autopeft.recommend import CandidateFactory, price_best, recommend, reprice
from autopeft.recommend.scoring import ScoreParts, score
from autopeft.spaces import suggested_methods
from autopeft.specs import PlanInputs, Recommendation, from_json, to_json

GIB = 2**30
INPUTS = PlanInputs(model="m", data="d")
SIZES_GIB = (2, 3, 4, 6, 7, 8, 10, 12, 14, 16, 17, 18, 20, 24, 28, 32, 40, 48, 64, 80, 120, 200)


@pytest.fixture
def plan(large_model, make_data, make_hardware):
    return recommend(make_hardware(), large_model, make_data(), INPUTS, seed=3)


def methods_of(plan):
    return {entry.candidate.method for entry in plan.candidates} | {entry.method for entry in plan.rejected}


def test_every_method_is_a_candidate_or_rejected_with_a_reason(large_model, make_data, make_hardware):
    for free_gib in (8, 16, 80):
        plan = recommend(make_hardware(free_gib * GIB), large_model, make_data(), INPUTS, seed=0)
        assert methods_of(plan) == set(suggested_methods())
        assert all(entry.reason for entry in plan.rejected)


def test_both_storages_of_the_base_are_candidates_of_their_own(plan):
    storages = {entry.candidate.quantization for entry in plan.candidates if entry.candidate.method == "lora"}
    assert storages == {"none", "nf4"}


def test_only_the_methods_asked_for_are_judged(small_model, make_data, make_hardware):
    plan = recommend(make_hardware(), small_model, make_data(), replace(INPUTS, methods=("dora", "lora")), seed=0)
    assert methods_of(plan) == set(suggested_methods())
    judged = {entry.candidate.method for entry in plan.candidates}
    left_out = {entry.method: (entry.variant, entry.reason) for entry in plan.rejected if entry.method not in judged}
    assert judged == {"dora", "lora"}
    assert left_out == dict.fromkeys(set(suggested_methods()) - judged, ("all", "not asked for (--method dora, lora)"))


def test_an_unknown_method_is_named_with_the_closest(small_model, make_data, make_hardware):
    with pytest.raises(UnknownNameError, match=r"'lroa'.*Did you mean 'lora'"):
        recommend(make_hardware(), small_model, make_data(), replace(INPUTS, methods=("lroa",)), seed=0)


def test_the_best_come_first(plan):
    scores = [entry.score for entry in plan.candidates]
    assert scores == sorted(scores, reverse=True)


@settings(deadline=None, max_examples=40)
@given(free=st.integers(2 * GIB, 90 * GIB), rows=st.integers(1, 200_000), effective=st.none() | st.integers(1, 64))
def test_no_candidate_needs_more_than_there_is(large_model, make_data, make_hardware, free, rows, effective):
    inputs = replace(INPUTS, effective_batch_size=effective)
    try:
        plan = recommend(make_hardware(free), large_model, make_data(rows), inputs, seed=0)
    except NothingFitsError:
        return
    for entry in plan.candidates:
        assert entry.estimate.required_bytes <= entry.available_bytes == free
        assert effective is None or entry.candidate.effective_batch_size == effective


# Every third of the alphabet: all kinds and sizes, in a third of the time.
@pytest.mark.parametrize("name", hardware_names()[::3])
def test_no_candidate_needs_more_than_a_catalogue_device_has(name, small_model, make_data):
    hardware = load_hardware(name)
    plan = recommend(hardware, small_model, make_data(), INPUTS, seed=0)
    assert plan.candidates
    assert all(e.estimate.required_bytes <= hardware.device.free_memory_bytes for e in plan.candidates)


@pytest.mark.parametrize("changes", [{}, {"peak_flops": {}}, {"supports_nf4": False}], ids=["gpu", "unknown", "no nf4"])
def test_more_memory_never_worsens_the_best_score(large_model, make_data, make_hardware, changes):
    scores = []
    for size in SIZES_GIB:
        try:
            plan = recommend(make_hardware(size * GIB, **changes), large_model, make_data(), INPUTS, seed=0)
        except NothingFitsError:
            assert not scores, "what fitted in less memory must fit in more"
            continue
        scores.append(plan.candidates[0].score)
    assert len(scores) > 5
    assert scores == sorted(scores)


@settings(deadline=None, max_examples=30)
@given(first=st.integers(GIB, 40 * GIB), second=st.integers(GIB, 40 * GIB))
def test_more_memory_never_worsens_the_best_score_of_a_small_model(
    small_model, make_data, make_hardware, first, second
):
    scores = []
    for free in sorted((first, second)):
        try:
            plan = recommend(make_hardware(free), small_model, make_data(), INPUTS, seed=0)
        except NothingFitsError:
            scores.append(float("-inf"))
        else:
            scores.append(plan.candidates[0].score)
    assert scores[0] <= scores[1]


def test_a_shrinking_budget_changes_quantization_then_batch(large_model, make_data, make_hardware):
    firsts = []
    for budget in range(80, 7, -4):
        inputs = replace(INPUTS, budget_memory_bytes=budget * GIB)
        plan = recommend(make_hardware(), large_model, make_data(), inputs, seed=0)
        firsts.append(plan.candidates[0].candidate)
    storages = [first.quantization for first in firsts]
    switch = storages.index("nf4")
    assert storages == ["none"] * switch + ["nf4"] * (len(firsts) - switch)
    assert not firsts[0].activation_checkpointing
    assert firsts[-1].activation_checkpointing
    assert firsts[-1].per_device_batch_size < firsts[0].per_device_batch_size


def test_a_rank_is_lowered_before_nothing_fits(large_model, make_data, make_hardware):
    inputs = replace(INPUTS, methods=("rslora",))
    high = recommend(make_hardware(80 * GIB), large_model, make_data(), inputs, seed=0).candidates[0].candidate
    low = recommend(make_hardware(int(7.5 * GIB)), large_model, make_data(), inputs, seed=0).candidates[0]
    assert high.r == 32
    assert low.candidate.r < 32
    assert any("in place of the advised 32" in claim.text for claim in low.reasons)


def test_the_same_inputs_give_the_same_bytes(large_model, make_data, make_hardware):
    texts = [to_json(recommend(make_hardware(), large_model, make_data(), INPUTS, seed=7).to_dict()) for _ in range(2)]
    assert texts[0] == texts[1]
    assert Recommendation.from_dict(from_json(texts[0], dict, "plan")).seed == 7


def test_a_plan_read_back_makes_the_same_candidates(plan):
    read = Recommendation.from_dict(from_json(to_json(plan.to_dict()), dict, "plan"))
    assert read == plan
    factory = CandidateFactory.from_plan(read)
    for entry in read.candidates:
        assert factory.candidate(entry.candidate.method, factory.values_of(entry.candidate)) == entry.candidate


def test_nothing_fits_says_what_is_needed_and_what_would_help(large_model, make_data, make_hardware):
    inputs = replace(INPUTS, budget_memory_bytes=4 * GIB)
    with pytest.raises(NothingFitsError) as caught:
        recommend(make_hardware(), large_model, make_data(), inputs, seed=0)
    text = str(caught.value)
    assert "available are 4.00 GiB (4294967296 bytes)" in text
    assert "base nf4" in text
    for remedy in ("--budget-memory", "B parameters"):
        assert remedy in text
    assert caught.value.exit_code == 3


def test_rows_that_were_asked_for_are_not_shortened_but_it_is_said_what_that_would_save(
    large_model, make_data, make_hardware
):
    inputs = replace(INPUTS, budget_memory_bytes=4 * GIB, max_length=1024)
    with pytest.raises(NothingFitsError, match=r"rows of 1024 tokens.*--max-length 256, which takes"):
        recommend(make_hardware(), large_model, make_data(), inputs, seed=0)


def test_the_budget_that_a_shortage_names_is_enough(large_model, make_data, make_hardware):
    inputs = replace(INPUTS, budget_memory_bytes=4 * GIB)
    with pytest.raises(NothingFitsError) as caught:
        recommend(make_hardware(), large_model, make_data(), inputs, seed=0)
    needed = int(str(caught.value).partition("--budget-memory ")[2].split()[0])
    assert recommend(
        make_hardware(), large_model, make_data(), replace(inputs, budget_memory_bytes=needed), seed=0
    ).candidates
    with pytest.raises(NothingFitsError):
        recommend(make_hardware(), large_model, make_data(), replace(inputs, budget_memory_bytes=needed - 1), seed=0)


def test_a_device_without_nf4_is_told_that_nf4_would_help(large_model, make_data, make_hardware):
    with pytest.raises(NothingFitsError, match="a device that supports nf4"):
        recommend(make_hardware(12 * GIB, supports_nf4=False), large_model, make_data(), INPUTS, seed=0)


def test_a_method_that_can_never_work_is_no_matter_of_memory(small_model, make_data, make_hardware):
    inputs = replace(INPUTS, methods=("loftq",))
    with pytest.raises(NothingFitsError, match=r"no method is left to train .* does not support nf4"):
        recommend(make_hardware(supports_nf4=False), small_model, make_data(), inputs, seed=0)


def test_the_baselines_are_the_untouched_model_and_the_plain_recipe(plan):
    assert [baseline.name for baseline in plan.baselines] == ["untouched-base", "plain-lora"]
    assert plan.baselines[0].candidate is None


def test_where_the_plain_recipe_does_not_fit_a_note_says_so(large_model, make_data, make_hardware):
    # The recipe adapts all linear layers at r 16; a few MiB below it only leaner forms fit.
    factory = CandidateFactory(large_model, make_data(), make_hardware(), INPUTS)
    least = factory.variant("lora", "nf4").smallest.required_bytes
    plan = recommend(make_hardware(least), large_model, make_data(), INPUTS, seed=0)
    assert [baseline.name for baseline in plan.baselines] == ["untouched-base"]
    assert any("the plain LoRA recipe is no baseline here: needs" in note for note in plan.notes)


def test_a_budget_above_the_free_memory_is_noted(small_model, make_data, make_hardware):
    inputs = replace(INPUTS, budget_memory_bytes=20 * GIB)
    plan = recommend(make_hardware(10 * GIB), small_model, make_data(token_counts_source="characters"), inputs, seed=0)
    assert any("test GPU has 10.00 GiB free" in note for note in plan.notes)
    assert any("estimated from characters" in note for note in plan.notes)


def test_a_plan_for_the_same_hardware_comes_back_as_it_is(plan):
    assert reprice(plan, plan.hardware) is plan


def test_repricing_moves_what_no_longer_fits_and_says_so(plan, make_hardware):
    smaller = make_hardware(12 * GIB, name="small GPU")
    renewed = reprice(plan, smaller)
    assert renewed.hardware == smaller
    assert renewed.seed == plan.seed
    assert all(entry.estimate.required_bytes <= 12 * GIB for entry in renewed.candidates)
    assert ("lora", "none") in {(entry.method, entry.variant) for entry in renewed.rejected}
    assert "made for test GPU with 80.00 GiB free" in renewed.notes[0]
    assert "lora (none) no longer fits" in renewed.notes[0]


def test_repricing_on_a_machine_that_is_too_small_says_what_would_help(plan, make_hardware):
    with pytest.raises(NothingFitsError, match="What would help"):
        reprice(plan, make_hardware(3 * GIB))


def test_a_better_estimate_rejects_what_it_finds_too_large(plan):
    def doubled(candidate, model, device, *, sequence_length):
        estimate = estimate_memory(candidate, model, device, sequence_length=sequence_length)
        return replace(estimate, required_bytes=2 * estimate.required_bytes, source="traced")

    traced = price_best(plan, 1, doubled)
    first = plan.candidates[0].candidate
    assert first not in [entry.candidate for entry in traced.candidates]
    assert len(traced.candidates) == len(plan.candidates) - 1
    assert (traced.rejected[0].method, traced.rejected[0].variant) == (first.method, first.quantization)


def test_the_score_is_the_documented_sum():
    parts = ScoreParts(
        quality_points=0.2,
        quantization="nf4",
        halved_ranks=1.0,
        narrow_targets=True,
        relative_time=2.0,
        memory_share=0.5,
    )
    assert score(parts) == pytest.approx(0.2 - 0.6 - 0.2 - 0.7 - 1.0 - 0.1)


def test_lora_comes_before_dora_where_both_fit_since_dora_takes_longer(plan):
    order = [(entry.candidate.method, entry.candidate.quantization) for entry in plan.candidates]
    assert order.index(("lora", "none")) < order.index(("dora", "none"))
