import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.recommend import recommend
from autopeft.recommend.pareto import mark_front, on_front
from autopeft.specs import PlanInputs

rows = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=40)


def dominates(left, right):
    return all(a <= b for a, b in zip(left, right, strict=True)) and left != right


def test_what_is_nowhere_better_is_not_on_the_front():
    assert on_front(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]])).tolist() == [True, True, False, True]


@given(rows)
def test_the_front_is_what_no_other_row_dominates(points):
    kept = on_front(np.array(points, dtype=float))
    assert kept.tolist() == [not any(dominates(other, point) for other in points) for point in points]


def test_many_rows_are_judged_block_by_block_like_few():
    points = np.random.default_rng(0).random((3000, 3)).round(2)
    kept = on_front(points)
    front = points[kept]
    assert 0 < len(front) < 300
    for point in points[~kept][:50]:
        assert any(dominates(tuple(other), tuple(point)) for other in front)


def test_no_candidates_have_no_front():
    assert mark_front([]) == ()


def test_the_first_by_each_criterion_is_on_the_front_of_a_plan(small_model, make_data, make_hardware):
    plan = recommend(make_hardware(), small_model, make_data(), PlanInputs(model="m", data="d"), seed=0)
    front = [entry for entry in plan.candidates if entry.on_front]
    assert 0 < len(front) < len(plan.candidates)
    assert max(e.quality_points for e in front) == max(e.quality_points for e in plan.candidates)
    assert min(e.predicted_seconds for e in front) == min(e.predicted_seconds for e in plan.candidates)
    assert min(e.estimate.required_bytes for e in front) == min(e.estimate.required_bytes for e in plan.candidates)
    flagged = plan.to_dict()["candidates"]
    assert [entry["on_front"] for entry in flagged] == [entry.on_front for entry in plan.candidates]
    assert flagged[0]["quality_points"] == pytest.approx(plan.candidates[0].quality_points)
