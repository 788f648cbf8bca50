import math
from dataclasses import replace

import pytest

from autopeft.errors import InvalidInputError, NothingFitsError, UnknownNameError
from autopeft.recommend import CandidateFactory, recommend
from autopeft.recommend.serving import server_named, servers, serving_claims, serving_problem
from autopeft.spaces import all_spaces, suggested_methods
from autopeft.specs import PlanInputs, RejectedCandidate

INPUTS = PlanInputs(model="m", data="d")


@pytest.fixture(scope="module")
def plans(small_model, make_data, make_hardware):
    hardware, data = make_hardware(), make_data()
    return {name: recommend(hardware, small_model, data, replace(INPUTS, serve=name), seed=0) for name in servers()}


def kept(plan):
    return {entry.candidate.method for entry in plan.candidates}


def reasons(plan, method):
    return [entry.reason for entry in plan.rejected if entry.method == method]


def claims(plan, method, quantization="none"):
    for entry in plan.candidates:
        if (entry.candidate.method, entry.candidate.quantization) == (method, quantization):
            return [claim.text for claim in entry.reasons if claim.about == "serve"]
    raise AssertionError(f"no {method} on {quantization}")


def test_the_servers_of_the_issue_are_known():
    assert set(servers()) == {"vllm", "sglang", "llamacpp", "ollama", "merged"}


@pytest.mark.parametrize("name", sorted(servers()))
def test_every_server_says_what_becomes_of_every_form_that_a_method_saves(name):
    forms = {space.adapter_form for space in all_spaces().values()}
    assert forms <= set(servers()[name].forms)
    assert servers()[name].name == name


def test_plain_lora_on_an_unquantized_base_is_served_everywhere_as_it_was_trained(plans):
    for plan in plans.values():
        assert claims(plan, "lora") == []


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp", "ollama"])
def test_adapter_servers_refuse_dora_and_name_merging(plans, name):
    assert "dora" not in kept(plans[name])
    assert all("--serve merged" in reason for reason in reasons(plans[name], "dora"))
    assert reasons(plans[name], "dora")


def test_a_merged_model_can_come_of_every_method(plans):
    assert kept(plans["merged"]) == set(suggested_methods())


@pytest.mark.parametrize("name", ["sglang", "llamacpp", "ollama"])
def test_rslora_gets_the_alpha_that_gives_its_scale_as_plain_lora(plans, name):
    (claim,) = claims(plans[name], "rslora")
    candidate = next(e.candidate for e in plans[name].candidates if e.candidate.method == "rslora")
    folded = float(claim.partition("lora_alpha ")[2].split()[0])
    assert folded / candidate.r == pytest.approx(candidate.lora_alpha / math.sqrt(candidate.r), rel=1e-4)
    assert f"{math.sqrt(candidate.r):.3g} times too weak" in claim


def test_adalora_is_converted_at_no_more_than_its_initial_rank(plans):
    (claim,) = claims(plans["llamacpp"], "adalora")
    assert "folded into plain LoRA" in claim
    assert "one rank of at most 12" in claim


def test_loftq_is_served_on_its_own_base_alone(plans):
    assert any("exact on the same nf4 base only" in claim for claim in claims(plans["vllm"], "loftq", "nf4"))
    assert all("no GGUF holds" in reason for reason in reasons(plans["llamacpp"], "loftq"))
    assert "loftq" not in kept(plans["llamacpp"])


def test_an_adapter_of_a_quantized_base_is_to_be_scored_on_the_served_one(plans):
    assert any("load the same nf4 base, or score it" in claim for claim in claims(plans["vllm"], "lora", "nf4"))
    assert claims(plans["llamacpp"], "lora", "nf4") == [
        "trained on a nf4 base: score it on the base that will be served"
    ]


def test_vllm_is_told_to_make_room_for_a_high_rank(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(), make_hardware(), replace(INPUTS, serve="vllm"))
    space, server = all_spaces()["lora"], server_named("vllm")
    texts = {r: [c.text for c in serving_claims(server, factory.candidate("lora", {"r": r}), space)] for r in (16, 64)}
    assert texts[16] == []
    assert texts[64] == ["vLLM makes room for rank 16: start it with --max-lora-rank 64"]


def test_a_rank_above_all_that_a_server_takes_is_refused(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(), make_hardware(), INPUTS)
    candidate = replace(factory.candidate("lora", {}), r=1024)
    problem = serving_problem(server_named("vllm"), candidate, all_spaces()["lora"])
    assert problem == "rank 1024 is above 512, the highest that vLLM takes (--max-lora-rank)"


def test_a_form_that_no_file_knows_is_refused_by_name(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(), make_hardware(), INPUTS)
    space = replace(all_spaces()["lora"], adapter_form="unknown")
    problem = serving_problem(server_named("sglang"), factory.candidate("lora", {}), space)
    assert problem is not None
    assert problem.startswith(
        "nothing is known of how SGLang serves lora (adapter form 'unknown'; known forms: doubled_rank, lora,"
    )


def test_an_unknown_server_names_the_known_ones(small_model, make_data, make_hardware):
    with pytest.raises(UnknownNameError, match=r"unknown server.*'vlm'; known: .*Did you mean 'vllm'"):
        recommend(make_hardware(), small_model, make_data(), replace(INPUTS, serve="vlm"), seed=0)


def test_asking_only_for_what_cannot_be_served_says_why(small_model, make_data, make_hardware):
    with pytest.raises(NothingFitsError, match="vLLM refuses use_dora"):
        recommend(make_hardware(), small_model, make_data(), replace(INPUTS, serve="vllm", methods=("dora",)), seed=0)


def test_the_search_may_not_try_what_cannot_be_served(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(), make_hardware(), replace(INPUTS, serve="vllm"))
    assert isinstance(
        factory.price(factory.drafts.build("dora", factory.drafts.recommended("dora"))), RejectedCandidate
    )
    with pytest.raises(InvalidInputError, match="dora cannot be searched here"):
        factory.allowed("dora")
