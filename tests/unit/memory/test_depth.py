from hypothesis import given
from hypothesis import strategies as st

from autopeft.memory._depth import TracedPart, extrapolate, pattern_period, shallow_depths


def test_alternating_layers_repeat_after_two_and_gemma_3s_after_six():
    assert pattern_period(["sliding", "full"] * 13, 26) == 2
    assert pattern_period((["sliding"] * 5 + ["full"]) * 5, 26) == 6
    assert pattern_period(None, 32) == 1
    assert pattern_period(["full"] * 8, 8) == 1


@given(layers=st.integers(1, 130), period=st.integers(1, 8))
def test_shallow_depths_stand_whole_periods_below_the_full_depth(layers, period):
    depths = shallow_depths(layers, period)
    if len(depths) == 1:
        assert depths == (layers,)
    else:
        assert 3 <= depths[0] < depths[1] < layers
        assert all((layers - depth) % period == 0 for depth in depths)
        assert depths[1] - depths[0] == period


@given(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(6, 100))
def test_what_grows_by_the_same_bytes_a_layer_is_met_exactly(start, each, layers):
    low, high = (TracedPart({"activations": start + depth * each}) for depth in (3, 4))
    assert extrapolate(low, high, (3, 4), layers).components == {"activations": start + layers * each}
