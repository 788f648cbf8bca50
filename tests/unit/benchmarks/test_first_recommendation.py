"""What counts as a comparison of a whole recommendation with the recipe, and that none is left out silently."""

import pytest
from first_recommendation import comparison, situations
from first_recommendation.tables import Configuration, Outcome, Table, differences, gain, nearest, tables
from priors.evidence import Quality, read_quality, read_sweeps

from autopeft.profiling.model import load_model
from autopeft.spaces import all_spaces

LORA = Configuration("lora", 16, "all", "none")


def row(**changes):
    fields = {"method": "lora", "rank": 16, "targets": "", "quantization": "none", "task": "t", "points": 1.0}
    return Quality(source="s", model="m", budget="", **fields | changes)


def table_of(*configurations, budget=""):
    return Table("s", "m", budget, {made: {"t": float(place)} for place, made in enumerate(configurations)})


def test_repeated_scores_of_a_task_are_averaged_and_budgets_are_tables_of_their_own():
    (found,) = tables([row(points=1.0), row(points=2.0), row(task="u", points=5.0)])
    assert found.trainings == {Configuration("lora", 16, "", "none"): {"t": 1.5, "u": 5.0}}


def test_the_nearest_row_has_the_method_and_storage_then_the_targets_then_the_rank():
    narrow, far = Configuration("lora", 16, "attention", "none"), Configuration("lora", 64, "all", "none")
    others = (Configuration("dora", 16, "all", "none"), Configuration("lora", 16, "all", "nf4"))
    assert nearest(table_of(narrow, far, *others), LORA) == far
    assert nearest(table_of(*others), LORA) is None


def test_of_equally_near_ranks_the_lower_one_is_taken_and_a_stated_rank_before_an_unstated_one():
    low, high, unstated = (Configuration("lora", rank, "", "none") for rank in (8, 32, None))
    assert nearest(table_of(high, unstated, low), LORA) == low


@pytest.mark.parametrize(
    ("found", "rate", "told"),
    [
        (Configuration("lora", 32, "", "none"), 3.9e-4, ()),
        (Configuration("lora", 64, "", "none"), None, ("lora r 64 in place of r 16",)),
        (Configuration("lora", None, "", "none"), None, ("lora of unstated rank in place of r 16",)),
        (Configuration("lora", 16, "mlp", "none"), None, ("lora on mlp in place of all",)),
        (Configuration("lora", 16, "all", "none"), 2e-5, ("lora at 2.0e-05 in place of 2.0e-04",)),
    ],
)
def test_what_is_more_than_a_factor_of_two_from_what_is_meant_is_told(found, rate, told):
    assert differences(table_of(found), found, LORA, rate, 2e-4) == told


def test_equal_numbers_of_trained_parameters_stand_for_the_rank():
    found = Configuration("lora", None, "", "none")
    assert differences(table_of(found, budget="0.1%"), found, LORA, None, 2e-4) == ()


def test_only_tasks_that_both_were_scored_on_are_compared():
    other = Configuration("dora", 16, "all", "none")
    table = Table("s", "m", "", {LORA: {"a": 1.0, "b": 9.0}, other: {"a": 3.0, "c": 0.0}})
    assert gain(table, other, LORA) == (2.0, 1)
    assert gain(Table("s", "m", "", {LORA: {"a": 1.0}, other: {"b": 1.0}}), other, LORA) is None


class Tuned:
    """Rates of a table that states none."""

    def stated(self, found):
        return None

    def advised(self, found):
        return 2e-4


def test_one_row_for_both_wins_and_loses_nothing():
    found = comparison.judged(table_of(Configuration("lora", 8, "", "none")), LORA, LORA, Tuned())
    assert (found.verdict, found.points) == ("same row", None)


def test_a_missing_row_is_named():
    dora = Configuration("dora", 16, "all", "none")
    found = comparison.judged(table_of(LORA), dora, LORA, Tuned())
    assert (found.verdict, found.remarks) == ("missing", ("no dora row on an unquantized base",))


def test_the_difference_is_the_recommendations_minus_the_recipes():
    dora = Configuration("dora", 32, "", "none")
    found = comparison.judged(table_of(LORA, dora), Configuration("dora", 16, "all", "none"), LORA, Tuned())
    assert (found.verdict, found.points, found.tasks) == ("compared", 1.0, 1)


def test_every_published_table_is_counted_once_in_a_summary():
    entries = [Outcome(table_of(LORA), verdict, points=points) for verdict, points in VERDICTS]
    line = comparison.summary_table([(situations.SITUATIONS[0], entries)]).splitlines()[-1]
    assert line == "| ample memory | 4 | 2 | 1 | 1 | 1 | -0.50 | -0.50 of 2 | 1, 1 |"


VERDICTS = (("compared", 1.0), ("nearest", -2.0), ("same row", None), ("missing", None))


def test_every_published_row_has_its_conditions_and_a_shape():
    rows = read_quality()
    assert {entry.source for entry in rows} == set(situations.CONDITIONS["sources"])
    assert {entry.model for entry in rows} == set(situations.CONDITIONS["shapes"])
    assert all(load_model(shape).layers for shape in situations.CONDITIONS["shapes"].values() if shape)


def test_no_source_that_states_rates_was_fitted_to_by_the_rule_of_the_rate():
    stated = {name for name, entry in situations.CONDITIONS["sources"].items() if "learning_rates" in entry}
    assert stated
    assert not stated & {sweep.source for sweep in read_sweeps()}


def test_points_without_a_source_that_nobody_is_are_those_of_the_search_spaces():
    points = situations.points_without("nobody")
    shipped = {name: space.quality_prior_points for name, space in all_spaces().items()}
    assert points == pytest.approx(shipped)


def test_half_of_an_effect_is_counted_on_cut_to_a_tenth_and_never_less_than_nothing():
    assert situations.counted_points(0.64) == 0.3
    assert situations.counted_points(-0.2) == 0.0


def test_the_situation_of_a_left_out_paper_counts_for_nothing():
    found = situations.plan_for("adalora_paper", "roberta-base", situations.SITUATIONS[3])
    assert found is not None
    assert found.candidates[0].candidate.method == "adalora"
    assert situations.first_without("adalora_paper", found).candidate.method != "adalora"


def test_the_document_holds_the_comparison_of_one_table():
    text = comparison.DOCUMENT.read_text(encoding="utf-8")
    dora = next(entry for entry in tables(read_quality()) if entry.name == "c3a_paper Meta-Llama-3-8B")
    found = comparison.outcome(dora, situations.SITUATIONS[1])
    assert f"| {dora.name} | {found.tasks} | {found.points:+.2f} | - |" in text
