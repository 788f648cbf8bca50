"""The shipped priors are what the evidence gives, and the evidence is documented."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from priors import fit, learning_rate, quality
from priors.evidence import Model, Quality, Sweep, evidence_folder, read_quality, read_sources, read_sweeps

from autopeft.recommend import scoring
from autopeft.recommend.priors import priors as shipped_priors
from autopeft.resources import read_yaml, resource_folder
from autopeft.spaces import all_spaces

MODEL = Model("someone/model", "llama", 4096, mixture_of_experts=False)


def sweep(best=3e-4, rates=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3), **changes):
    points = tuple((math.log(rate), 1 + 0.01 * math.log(rate / best) ** 2) for rate in rates)
    made = Sweep("s", MODEL, "lora", 32, 32.0, 128, 780, points, is_loss=True)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def refit():
    return fit.priors()


def test_the_shipped_coefficients_equal_a_refit(refit):
    assert_close(read_yaml(resource_folder("profiles") / "priors.yaml"), refit)


def assert_close(shipped, found):
    """Compares nested data; numbers to a thousandth, since linear algebra differs between machines."""
    if isinstance(found, dict):
        assert list(shipped) == list(found)
        for name, value in found.items():
            assert_close(shipped[name], value)
    elif isinstance(found, float):
        assert shipped == pytest.approx(found, rel=1e-3)
    else:
        assert list(shipped) == list(found) if isinstance(found, list) else shipped == found


def test_the_points_that_scores_use_are_the_fitted_ones():
    effects = shipped_priors().quality.effects
    assert scoring.QUANTIZATION_POINTS["nf4"] == round(effects["nf4"].points, 1)
    assert round(effects["rank"].points, 1) == scoring.HALVED_RANK_POINTS
    assert round(effects["attention"].points, 1) == -scoring.ATTENTION_ONLY_POINTS


@pytest.mark.parametrize("method", ["adalora", "dora", "loftq", "miss", "pissa"])
def test_half_of_a_methods_effect_is_counted_on_and_of_the_tuned_one_where_there_is_one(method):
    effect = shipped_priors().quality.effects[method]
    found = effect.points if effect.tuned_points is None else effect.tuned_points
    assert all_spaces()[method].quality_prior_points == math.trunc(10 * found / 2) / 10


def test_dora_takes_loras_learning_rate_as_its_sweeps_say():
    optima = [learning_rate.optimum(entry) for entry in read_sweeps()]
    assert math.exp(fit.fit_learning_rates(optima).groups["method:dora"]) == pytest.approx(1, abs=0.1)
    assert all_spaces()["dora"].learning_rate_factor == 1


def test_every_row_of_evidence_has_a_documented_source():
    sources = read_sources()
    for name in ("learning_rates.csv", "quality.csv", "trends.csv"):
        with (evidence_folder() / name).open(encoding="utf-8", newline="") as file:
            assert {row["source"] for row in csv.DictReader(file)} <= set(sources), name
    for key, source in sources.items():
        assert {"where", "read", "checked", "tuned", "conditions", "confounds"} == set(source), key
        assert source["read"] in ("opened", "collected"), key


def test_published_scores_are_points_between_0_and_100():
    assert all(0 <= row.points <= 100 for row in read_quality())


def test_the_optimum_between_grid_points_is_found():
    assert learning_rate.optimum(sweep(best=2e-4)).log_rate == pytest.approx(math.log(2e-4))


def test_an_optimum_at_the_edge_of_a_grid_is_a_bound_and_counts_one_sided():
    high = learning_rate.optimum(sweep(best=3e-4, rates=(3e-5, 1e-4, 3e-4)))
    assert high.edge == "high"
    assert learning_rate.miss(math.log(6e-4), high.log_rate, high.edge) == 0
    assert learning_rate.miss(math.log(1.5e-4), high.log_rate, high.edge) == pytest.approx(math.log(2))


def test_a_fit_follows_many_sweeps_and_mistrusts_a_few():
    def fitted(best, count):
        models = [replace(MODEL, name=f"m{number}", family=f"f{number}") for number in range(count)]
        optima = [learning_rate.optimum(sweep(best=best, model=model)) for model in models]
        return math.exp(learning_rate.fit(optima).log_rate(sweep(model=replace(MODEL, name="new", family="new"))))

    assert 3e-4 < fitted(1e-3, 1) < fitted(1e-3, 30) < 1e-3


def test_the_cost_of_a_rate_is_read_off_the_curve():
    assert learning_rate.cost(sweep(), math.log(3e-4)) == 0
    assert learning_rate.cost(sweep(), math.log(1e-3)) == pytest.approx(0.01 * math.log(10 / 3) ** 2)
    assert learning_rate.cost(sweep(), math.log(1.0)) == learning_rate.cost(sweep(), math.log(3e-3))


def row(method, points, **changes):
    made = Quality("s", "m", method, 16, "", "", "none", "task", points)
    return replace(made, **changes)


def test_a_method_is_compared_with_plain_lora_on_its_own_base():
    rows = [row("lora", 70.0), row("lora", 68.0, quantization="nf4"), row("loftq", 69.0, quantization="nf4")]
    found = {tuple(pair.difference.items()): pair.points for pair in quality.pairs(rows, {"s": True})}
    assert found[("loftq", 1.0), ("nf4", 0.0), ("rank", 0.0)] == pytest.approx(1.0)


def test_a_run_that_failed_is_no_evidence_for_the_other_method():
    assert quality.pairs([row("lora", 30.0), row("dora", 70.0)], {"s": False}) == []


def test_one_source_with_many_rows_does_not_outvote_several():
    many = quality.pairs([row("lora", 70.0, task=f"t{n}") for n in range(50)], {"s": False})
    assert many == []  # LoRA alone says nothing of a method
    loud = [quality.Pair("loud", "m", False, {"dora": 1.0}, 4.0)] * 100
    others = [quality.Pair(f"s{n}", "m", False, {"dora": 1.0}, 0.0) for n in range(10)]
    assert quality.fit([*loud, *others]).effects["dora"] < np.mean([pair.points for pair in (*loud, *others)]) / 2
