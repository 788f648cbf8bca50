"""What issue 3 asks of the advice, on published sweeps that the rule was fitted without."""

import advice_against_published as published
import numpy as np
import pytest


@pytest.fixture(scope="module")
def standings():
    return published.judged_by(published.by_name)


def test_at_least_nine_of_ten_models_are_within_a_factor_of_two_of_their_best_rate(standings):
    for misses in ([entry.vertex for entry in standings], [entry.grid for entry in standings]):
        assert np.mean([miss <= published.FACTOR for miss in misses]) >= 0.9


def test_no_model_loses_more_than_half_a_percent_of_its_loss(standings):
    costs = [entry.cost for entry in standings if entry.cost is not None]
    assert len(costs) >= 20
    assert max(costs) <= published.MAX_COST


def test_the_advice_is_better_on_average_than_the_fixed_recipe(standings):
    recipe = published.judged_at(lambda _: published.RECIPE_RATE)
    ours, theirs = (np.mean([entry.cost for entry in found if entry.cost is not None]) for found in (standings, recipe))
    assert ours < theirs / 2


def test_the_document_holds_the_tables_of_the_rule_that_is_shipped(standings):
    text = published.DOCUMENT.read_text(encoding="utf-8")
    for line in published.model_table(standings).splitlines():
        assert line in text
