from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.memory.tracing.depth import extrapolate, layer_kinds, period_of, shallow_depths, shortened


def config(**fields):
    return SimpleNamespace(**{"model_type": "llama", "num_hidden_layers": 12} | fields)


@pytest.mark.parametrize(
    ("kinds", "prefix", "period"),
    [
        (["sliding", "full"] * 13, 0, 2),
        ((["sliding"] * 5 + ["full"]) * 4 + ["sliding", "sliding"], 0, 6),  # gemma 3: 26 layers
        (["full"] * 32, 0, 1),
        (["dense"] * 3 + ["experts"] * 58, 3, 1),  # DeepSeek-V3
    ],
)
def test_the_pattern_of_the_layers_is_found(kinds, prefix, period):
    assert period_of(kinds) == (prefix, period)


def test_layers_that_never_repeat_are_traced_at_full_depth():
    prefix, period = period_of(list(range(8)))
    assert shallow_depths(8, period, prefix) == (8,)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"layer_types": ["sliding", "full"] * 6}, (0, 2)),
        ({"first_k_dense_replace": 2}, (2, 1)),
        ({"mlp_only_layers": [0]}, (1, 1)),
        ({"decoder_sparse_step": 3}, (0, 3)),
        ({"model_type": "gemma2"}, (0, 2)),
        ({}, (0, 1)),
    ],
)
def test_the_configuration_says_what_differs_between_layers(fields, expected):
    assert period_of(layer_kinds(config(**fields))) == expected


def test_a_shortened_configuration_keeps_the_first_layers_and_leaves_the_original_alone():
    whole = config(layer_types=["sliding", "full"] * 6)
    short = shortened(whole, 4)
    assert (short.num_hidden_layers, short.layer_types) == (4, ["sliding", "full"] * 2)
    assert (whole.num_hidden_layers, len(whole.layer_types)) == (12, 12)


@given(layers=st.integers(1, 130), period=st.integers(1, 8), prefix=st.integers(0, 5))
def test_shallow_depths_stand_whole_periods_below_the_full_depth(layers, period, prefix):
    depths = shallow_depths(layers, period, prefix)
    if len(depths) == 1:
        assert depths == (layers,)
    else:
        assert max(3, prefix + period) <= depths[0] < depths[1] < layers
        assert all((layers - depth) % period == 0 for depth in depths)
        assert depths[1] - depths[0] == period


@given(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(6, 100))
def test_what_grows_by_the_same_bytes_a_layer_is_met_exactly(start, each, layers):
    low, high = ({"activations": start + depth * each} for depth in (3, 4))
    assert extrapolate(low, high, layers - 3) == {"activations": start + layers * each}
