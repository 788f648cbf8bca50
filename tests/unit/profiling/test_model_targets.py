"""Names and aliases of target modules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.profiling.model import adapted_layers, resolve_target_modules, spec_from_config, supported_model_types
from autopeft.specs import ModelSpec

ROLES = {"attention": {"attention"}, "mlp": {"mlp"}, "all-linear": {"attention", "mlp", "other"}}


def spec(model_type: str) -> ModelSpec:
    return spec_from_config({"model_type": model_type}, id=model_type)


@pytest.mark.parametrize(
    ("model_type", "alias", "names"),
    [
        # Module names of transformers 5.23; a fused or shared name is the family's own.
        ("llama", "attention", ("k_proj", "o_proj", "q_proj", "v_proj")),
        ("llama", "mlp", ("down_proj", "gate_proj", "up_proj")),
        ("phi3", "all-linear", ("down_proj", "gate_up_proj", "o_proj", "qkv_proj")),
        ("gpt2", "attention", ("attn.c_proj", "c_attn")),
        ("gpt2", "mlp", ("c_fc", "mlp.c_proj")),
        ("bert", "attention", ("attention.output.dense", "key", "query", "value")),
        ("bert", "all-linear", ("intermediate.dense", "key", "output.dense", "query", "value")),
        ("distilbert", "mlp", ("lin1", "lin2")),
    ],
)
def test_an_alias_gives_the_shortest_names_that_match_nothing_else(
    model_type: str, alias: str, names: tuple[str, ...]
) -> None:
    assert resolve_target_modules(spec(model_type), [alias]) == names


def test_the_mlp_of_bert_needs_the_layer_index_because_attention_ends_in_the_same_name() -> None:
    names = resolve_target_modules(spec("bert"), ["mlp"])
    assert len(names) == 13
    assert "11.output.dense" in names
    assert {(layer.path, layer.count) for layer in adapted_layers(spec("bert"), names)} == {
        ("bert.encoder.layer.{layer}.intermediate.dense", 12),
        ("bert.encoder.layer.{layer}.output.dense", 12),
    }


@pytest.mark.parametrize("model_type", supported_model_types())
@pytest.mark.parametrize("alias", sorted(ROLES))
def test_an_alias_adapts_all_layers_of_its_roles_and_never_a_head(model_type: str, alias: str) -> None:
    model = spec(model_type)
    meant = tuple(layer for layer in model.linear_layers if layer.role in ROLES[alias])
    if not meant:
        # All their MLPs are experts, which stand in tensors of three dimensions.
        assert (model_type, alias) in {(name, "mlp") for name in ("gpt_oss", "mixtral", "qwen3_moe")}
        return
    assert adapted_layers(model, resolve_target_modules(model, [alias])) == meant


@given(st.sampled_from(supported_model_types()), st.data())
def test_resolving_twice_changes_nothing_and_the_order_does_not_matter(model_type: str, data: st.DataObject) -> None:
    model = spec(model_type)
    known = ["attention", "all-linear", *(layer.name for layer in model.linear_layers)]
    names = data.draw(st.lists(st.sampled_from(known), min_size=1))
    resolved = resolve_target_modules(model, names)
    assert resolved == tuple(sorted(set(resolved)))
    assert resolve_target_modules(model, resolved) == resolved
    assert resolve_target_modules(model, names[::-1]) == resolved


def test_a_name_that_two_layers_share_adapts_both() -> None:
    layers = adapted_layers(spec("gpt2"), resolve_target_modules(spec("gpt2"), ["c_proj"]))
    assert [layer.role for layer in layers] == ["attention", "mlp"]


def test_a_name_with_an_index_adapts_that_layer_alone_and_overlaps_count_once() -> None:
    (one,) = adapted_layers(spec("llama"), ["layers.3.self_attn.q_proj"])
    assert one.count == 1
    (all_of_them,) = adapted_layers(spec("llama"), ["layers.3.self_attn.q_proj", "q_proj"])
    assert all_of_them.count == 32


def test_a_head_is_adapted_only_when_it_is_named() -> None:
    names = resolve_target_modules(spec("llama"), ["lm_head", "attention"])
    assert "lm_head" in names
    assert "lm_head" in {layer.name for layer in adapted_layers(spec("llama"), names)}


@pytest.mark.parametrize("name", ["", "proj", "q_pro", "layers.32.self_attn.q_proj", "layers.03.self_attn.q_proj"])
def test_a_name_that_matches_nothing_is_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown target module of llama .*known: all-linear, attention, down_proj"
    ):
        resolve_target_modules(spec("llama"), [name])


def test_a_misspelt_name_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'q_proj'"):
        resolve_target_modules(spec("llama"), ["q_prj"])


def test_no_names_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no target modules given"):
        resolve_target_modules(spec("llama"), [])
