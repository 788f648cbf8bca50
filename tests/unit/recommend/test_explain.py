from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from autopeft.profiling.model import resolve_target_modules
from autopeft.recommend import recommend
from autopeft.recommend.explain import compared_terms, explain_plan, runner_up, visible_terms
from autopeft.recommend.sensitivity import Change, answers, label, neighbours, scaled_data, usual_changes
from autopeft.report.explained import explained_table
from autopeft.specs import PlanInputs

GIB = 2**30
INPUTS = PlanInputs(model="m", data="d", methods=("lora", "dora", "full"))


@pytest.fixture(scope="module")
def plan(large_model, make_data, make_hardware):
    """Llama-3-8B, 10,000 rows, 40 GiB."""
    return recommend(make_hardware(40 * GIB), large_model, make_data(), INPUTS, seed=0)


@pytest.fixture(scope="module")
def devices(make_hardware):
    sizes = {"small": 16, "smaller": 24, "larger": 80, "largest": 180}
    return [
        make_hardware(gib * GIB, name=name, total_memory_bytes=gib * GIB, kind="cuda") for name, gib in sizes.items()
    ]


def test_the_terms_of_two_scores_add_up_to_the_lead(plan):
    first, second = plan.candidates[0], runner_up(plan)
    explained = explain_plan(plan, ())
    assert explained.lead == pytest.approx(first.score - second.score)
    assert sum(term.difference for term in explained.terms) == pytest.approx(explained.lead, abs=1e-3)
    differences = [term.difference for term in explained.terms]
    assert differences == sorted(differences, reverse=True)
    assert explained.terms[0].term in explained.summary[1]


def test_terms_that_differ_by_less_than_is_shown_do_not_speak(plan):
    explained = explain_plan(plan, ())
    assert all(abs(term.difference) >= 0.005 for term in visible_terms(explained.terms))
    assert not any(text in explained.summary[1] for text in ("+0.00", "-0.00"))


def test_fewer_layers_than_all_linear_ones_are_named(plan, large_model):
    attention = resolve_target_modules(large_model, ("attention",))
    entry = next(entry for entry in plan.candidates if entry.candidate.method == "lora").candidate
    narrow = replace(entry, target_modules=attention)
    assert label(narrow, large_model).startswith(f"lora r {entry.r} attention only, ")
    assert "attention" not in label(entry, large_model)


def test_equal_scores_are_said_to_be_equal(plan):
    first = plan.candidates[0]
    twin = replace(first, candidate=replace(first.candidate, method="dora"))
    assert compared_terms(first, twin) == ()
    summary = explain_plan(replace(plan, candidates=(first, twin)), ()).summary
    assert "their terms are equal" in summary[1]


def test_a_small_lead_is_said_to_mean_nothing(plan):
    second = replace(runner_up(plan), score=plan.candidates[0].score - 0.1)
    summary = explain_plan(replace(plan, candidates=(plan.candidates[0], second)), ()).summary
    assert any("means nothing" in line for line in summary)


def test_a_plan_of_one_method_says_so(plan):
    lora = tuple(entry for entry in plan.candidates if entry.candidate.method == "lora")
    explained = explain_plan(replace(plan, candidates=lora), ())
    assert explained.second is None
    assert "no other method than lora is left" in explained.summary[1]


def test_a_change_of_nothing_flips_nothing(plan):
    (answer,) = answers(plan, [Change(text="nothing")])
    assert (answer.flips, answer.differences, answer.first) == (
        False,
        (),
        label(plan.candidates[0].candidate, plan.model),
    )


def test_too_little_memory_flips_the_answer_and_says_what_is_lacking(plan):
    (answer,) = answers(plan, [Change(text="2 GiB", inputs={"budget_memory_bytes": 2 * GIB})])
    assert answer.flips
    assert answer.first.startswith("nothing fits: training llama-3-8b takes at least")


def test_less_memory_flips_the_storage_of_the_base(plan):
    (answer,) = answers(plan, [Change(text="16 GiB", inputs={"budget_memory_bytes": 16 * GIB})])
    assert answer.flips
    assert "quantization none -> nf4" in answer.differences


def test_the_usual_changes_are_those_that_are_asked_of_every_plan(plan, devices):
    texts = [change.text for change in usual_changes(plan, devices)]
    assert texts[:4] == ["10 % less memory", "half of the memory", "twice the data", "ten times the data"]
    assert texts[4:6] == ["on smaller (24.00 GiB)", "on largest (180.00 GiB)"]
    assert "time at twice the price" in texts
    assert {"--objective quality", "--objective speed"} <= set(texts)
    assert "--objective balanced" not in texts


def test_a_plan_that_does_not_count_time_is_not_asked_about_its_price(plan, devices):
    quality = replace(plan, inputs=replace(plan.inputs, objective="quality"))
    assert not any("price" in change.text for change in usual_changes(quality, devices))


def test_neighbours_are_of_the_same_kind_and_differ_in_memory(plan, devices, make_hardware):
    host = make_hardware(96 * GIB, name="host", kind="cpu", total_memory_bytes=96 * GIB)
    found = neighbours(devices[2].device, [*devices, host])
    assert [profile.device.name for profile in found] == ["smaller", "largest"]
    assert neighbours(host.device, [*devices, host]) == ()


def test_twice_the_data_has_twice_the_rows_and_tokens_of_the_same_length(make_data):
    data, twice = make_data(), scaled_data(make_data(), 2)
    assert (twice.example_count, twice.total_tokens) == (2 * data.example_count, 2 * data.total_tokens)
    assert (twice.mean_tokens, twice.max_tokens, twice.truncation) == (
        data.mean_tokens,
        data.max_tokens,
        data.truncation,
    )


def test_every_rejected_method_has_its_reason_and_what_would_let_it_in(plan):
    rejected = {(entry.method, entry.variant): entry for entry in explain_plan(plan, ()).rejected}
    assert rejected["full", "none"].remedy.startswith("a device with ")
    assert rejected["adalora", "all"].remedy == "--method adalora"
    assert all(entry.reason for entry in rejected.values())


def test_what_a_budget_keeps_out_a_larger_budget_lets_in(large_model, make_data, make_hardware):
    inputs = replace(INPUTS, budget_memory_bytes=12 * GIB)
    plan = recommend(make_hardware(80 * GIB), large_model, make_data(), inputs, seed=0)
    remedies = {(entry.method, entry.variant): entry.remedy for entry in explain_plan(plan, ()).rejected}
    assert remedies["lora", "none"].startswith("a budget of ")
    assert remedies["lora", "none"].endswith("(80.00 GiB are free)")


def test_what_takes_too_long_is_let_in_by_a_higher_limit(small_model, make_data, make_hardware):
    free = recommend(make_hardware(), small_model, make_data(), replace(INPUTS, objective="speed"), seed=0)
    inputs = replace(INPUTS, max_seconds=1.01 * free.candidates[0].predicted_seconds, objective="speed")
    plan = recommend(make_hardware(), small_model, make_data(), inputs, seed=0)
    remedies = [entry.remedy for entry in explain_plan(plan, ()).rejected if "--max-time" in entry.reason]
    assert remedies
    assert all(remedy.startswith("a limit that allows ") for remedy in remedies)


def test_the_extremes_are_at_least_as_good_as_the_first_candidate_by_their_criterion(plan):
    explained = explain_plan(plan, ())
    first = plan.candidates[0]
    best = {extreme.criterion: extreme for extreme in explained.extremes}
    assert set(best) == {"score", "quality", "memory", "time"}
    assert best["score"].score >= first.score - 1e-3
    assert best["quality"].quality_points >= first.quality_points
    assert best["memory"].required_bytes <= first.estimate.required_bytes
    assert best["time"].predicted_seconds <= first.predicted_seconds * 1.001
    assert explained.forms > explained.on_front > 0


def test_methods_whose_forms_only_a_trace_prices_are_said_to_be_left_out(plan):
    first = plan.candidates[0]
    traced = replace(first, candidate=replace(first.candidate, method="ia3", r=None, lora_alpha=None))
    explained = explain_plan(replace(plan, candidates=(traced, *plan.candidates)), ())
    assert explained.forms_without == ("ia3",)
    assert explain_plan(plan, ()).forms_without == ()
    with StringIO() as shown:
        Console(file=shown, width=200).print(explained_table(explained))
        assert "those of ia3 are left out" in shown.getvalue()
