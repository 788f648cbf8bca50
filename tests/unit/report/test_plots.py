"""The plots: valid Plotly figures whose numbers are the run's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from autopeft.report import RunRecord, plots
from autopeft.report.content import Figure
from autopeft.specs import TrialResult

FIGURES = {name: getattr(plots, name) for name in vars(plots) if name.endswith("_figure") and name[0] != "_"}


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_valid_plotly_and_strict_json(name: str, finished: RunRecord) -> None:
    figure = FIGURES[name](finished)
    assert isinstance(figure, Figure)
    text = json.dumps(figure.data, allow_nan=False)
    for token in ("text", "muted", "grid", "surface"):
        text = text.replace(f'"${token}"', '"#123456"')
    assert "$" not in text
    go.Figure(json.loads(text))


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_without_trials_has_no_figure(name: str, started: RunRecord) -> None:
    assert FIGURES[name](started) is None


def traces(figure: Figure | None) -> list[dict[str, Any]]:
    assert figure is not None
    return list(figure.data["data"])


def test_a_baselines_bar_is_its_interval_seen_from_the_winner(finished: RunRecord) -> None:
    [trace] = traces(plots.losses_figure(finished))
    assert trace["y"] == ["untouched base model", "plain LoRA recipe", "winner"]
    assert trace["x"] == [1.5612, 0.9221, 0.8911]
    # winner - plain-lora lies in [-0.0422, -0.0198]: plain-lora lies in 0.8911 + [0.0198, 0.0422] = [0.9109, 0.9333].
    assert trace["x"][1] - trace["error_x"]["arrayminus"][1] == pytest.approx(0.9109)
    assert trace["x"][1] + trace["error_x"]["array"][1] == pytest.approx(0.9333)
    assert (trace["error_x"]["arrayminus"][2], trace["error_x"]["array"][2]) == (0.0, 0.0)


def test_the_ranking_shows_its_first_at_the_top_and_at_zero(finished: RunRecord) -> None:
    [trace] = traces(plots.ranking_figure(finished))
    assert trace["y"][-1] == "rslora"
    assert trace["x"][-1] == 0.0
    assert trace["x"][0] == 0.0868


def test_pruned_trials_are_drawn_dotted_with_a_cross_at_the_end(finished: RunRecord) -> None:
    drawn = traces(plots.curves_figure(finished))
    assert len(drawn) == 9, "every training with a curve"
    [pruned] = [trace for trace in drawn if "pruned" in trace["text"][0]]
    assert pruned["line"]["dash"] == "dot"
    assert pruned["marker"]["symbol"] == ["x"]
    assert sum(trace["showlegend"] for trace in drawn) == 5, "one legend entry a method"


def test_a_trial_that_diverged_is_left_out_of_the_plots(
    finished: RunRecord, make_trial: Callable[..., TrialResult]
) -> None:
    bad = make_trial(11, "lora", math.nan, curve=((10, 100, math.inf), (20, 200, math.nan)))
    alone = replace(finished, trials=(bad,), verdict=None)
    assert plots.curves_figure(alone) is None
    assert plots.learning_rates_figure(alone) is None


def test_memory_is_compared_with_the_figure_of_the_same_meaning(
    finished: RunRecord, make_trial: Callable[..., TrialResult]
) -> None:
    allocated = make_trial(0, "lora", 1.0, measured_peak_kind="max_allocated")
    resident = make_trial(1, "dora", 1.0)
    figure = plots.memory_figure(replace(finished, trials=(allocated, resident)))
    points = {trace["name"]: trace["x"][0] for trace in traces(figure) if trace["mode"] == "markers"}
    assert points == {"lora": pytest.approx(0.95), "dora": pytest.approx(1.25)}


def test_the_limit_is_drawn_only_where_it_does_not_dwarf_the_points(finished: RunRecord) -> None:
    near = replace(finished.plan, inputs=replace(finished.plan.inputs, budget_memory_bytes=2 * 2**30))
    assert "limit" not in [trace["name"] for trace in traces(plots.memory_figure(finished))]
    assert "limit" in [trace["name"] for trace in traces(plots.memory_figure(replace(finished, plan=near)))]


def test_every_rank_is_in_the_rank_figure(finished: RunRecord) -> None:
    pattern = finished.trials[4].rank_pattern or {}
    bars = traces(plots.rank_pattern_figure(finished))
    assert sum(sum(bar["y"]) for bar in bars) == sum(pattern.values())
    assert len(bars) == 7, "one colour for each kind of layer"
    assert bars[0]["x"][:3] == ["0", "1", "2"]


def test_the_final_training_is_shown_before_a_search_trial(finished: RunRecord) -> None:
    final = replace(finished.trials[8], rank_pattern={"layers.0.q_proj": 3})
    [bar] = traces(plots.rank_pattern_figure(replace(finished, trials=(*finished.trials, final))))
    assert bar["y"] == [3]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("layers.3.self_attn.q_proj", ("3", "q_proj")),
        ("encoder.layer.11.output.dense", ("11", "dense")),
        ("pooler.dense", ("pooler.dense", "dense")),
        ("h2o.proj", ("h2o.proj", "proj")),
    ],
)
def test_a_layer_name_is_split_into_block_and_kind(layer: str, expected: tuple[str, str]) -> None:
    assert plots.split_layer(layer) == expected


def test_a_method_keeps_its_colour_in_every_plot(finished: RunRecord) -> None:
    curves = {trace["name"]: trace["line"]["color"] for trace in traces(plots.curves_figure(finished))}
    points = {trace["name"]: trace["marker"]["color"] for trace in traces(plots.learning_rates_figure(finished))}
    assert curves == points
    assert len(set(curves.values())) == 5
