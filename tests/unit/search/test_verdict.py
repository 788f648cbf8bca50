"""What the verdict says follows from the scores, and says no more than they do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autopeft.search.finals import PLAIN, WINNER, Choice, Finals
from autopeft.search.prepare import UNTOUCHED
from autopeft.search.verdict import Evidence, make_verdict
from autopeft.specs import Candidate, JobFacts, Scores, TrialResult

ROWS = 200
TOKENS = 20


def _scores(mean: float, seed: int) -> Scores:
    """Rows share their hardness; each model has noise of its own of 0.05."""
    hardness = np.random.default_rng(0).normal(0, 0.3, ROWS)
    losses = TOKENS * (mean + hardness + np.random.default_rng(seed).normal(0, 0.05, ROWS))
    return Scores(
        eval_loss=float(losses.sum() / (ROWS * TOKENS)),
        losses=tuple(map(float, losses)),
        supervised_tokens=(TOKENS,) * ROWS,
        seconds=1.0,
    )


def _trial(number: int, method: str, loss: float | None, status="complete") -> TrialResult:
    return TrialResult(
        trial=number,
        name=f"trial-{number:04d}",
        stage="search",
        candidate=Candidate(method=method, r=16, lora_alpha=16.0),
        status=status,
        eval_loss=loss,
        steps=24,
        tokens=1000,
        seconds=30.0,
        train_seconds=24.0,
        seed=1,
        predicted_required_bytes=1,
        predicted_peak_bytes=1,
        measured_peak_bytes=None,
        measured_peak_kind=None,
        trainable_parameters=1,
        adapter_folder="x",
        error=None if status == "complete" else "out of memory at step 3",
    )


FACTS = JobFacts(
    rows={"train": 800, "choose": 50, "test": 200},
    tokens={"train": 32000, "choose": 2000, "test": 8000},
    supervised_tokens={"train": 16000, "choose": 1000, "test": 4000},
    dropped_rows=0,
    versions={},
    device_name="toy",
    split_hash="0",
)
DORA, LORA = _trial(0, "dora", 0.95), _trial(1, "lora", 1.00)


def _evidence(base: float, winner: float, plain: float, dora: float = 0.95, lora: float = 1.0) -> Evidence:
    final = dataclasses.replace(DORA, name=WINNER, trial=None, stage="final", steps=50)
    return Evidence(
        trials=(DORA, LORA),
        choice=Choice(best=(DORA, LORA), winner=DORA, reason="because"),
        finals=Finals(winner=final, plain=dataclasses.replace(final, name=PLAIN), steps=50),
        tests={
            UNTOUCHED: _scores(base, 1),
            WINNER: _scores(winner, 2),
            PLAIN: _scores(plain, 3),
            DORA.name: _scores(dora, 4),
            LORA.name: _scores(lora, 5),
        },
        cut=("1 of 2 trials",),
        seconds=100.0,
        phases=(),
        seed=1,
        facts=FACTS,
    )


def _with_rows(evidence: Evidence, rows: int) -> Evidence:
    def first(scores: Scores) -> Scores:
        return dataclasses.replace(
            scores, losses=scores.losses[:rows], supervised_tokens=scores.supervised_tokens[:rows]
        )

    return dataclasses.replace(evidence, tests={name: first(scores) for name, scores in evidence.tests.items()})


def test_a_clear_winner_is_called_one_with_its_figures():
    verdict = make_verdict(_evidence(base=1.56, winner=0.86, plain=0.95))
    before, after = verdict.losses["untouched-base"], verdict.losses["winner"]
    plain = verdict.comparisons[0]
    interval = f"{plain.difference:+.3f} [{plain.low:+.3f}, {plain.high:+.3f}]"
    assert verdict.conclusion.startswith(
        f"dora r=16 lowers held-out loss from {before:.3f} (untouched base) to {after:.3f}; "
        f"against plain LoRA: {interval}; against the next best method"
    )
    assert plain.high < 0
    assert verdict.significant
    assert [(found.left, found.right) for found in verdict.comparisons] == [
        ("winner", "plain-lora"),
        ("winner", "untouched-base"),
    ]


def test_equal_models_end_without_a_significant_difference():
    verdict = make_verdict(_evidence(base=1.0, winner=1.0, plain=1.0, dora=1.0, lora=1.0))
    assert not verdict.significant
    assert not any(comparison.significant for comparison in verdict.comparisons)
    assert "does not change held-out loss significantly" in verdict.conclusion
    assert "no significant difference: the plain recipe is as good" in verdict.conclusion
    assert "no significant difference between the methods" in verdict.conclusion


def test_a_training_that_harms_is_said_to_harm():
    verdict = make_verdict(_evidence(base=1.0, winner=1.4, plain=1.2))
    assert "RAISES held-out loss" in verdict.conclusion
    assert "so the plain recipe is better" in verdict.conclusion


def test_a_winner_that_loses_on_the_test_split_is_not_called_significant():
    verdict = make_verdict(_evidence(base=1.5, winner=0.9, plain=1.0, dora=1.1, lora=0.9))
    assert not verdict.significant
    assert "so lora is better on the test split" in verdict.conclusion


def test_the_ranking_follows_the_choose_split_and_compares_on_the_test_split():
    verdict = make_verdict(_evidence(base=1.5, winner=0.9, plain=1.0, dora=1.1, lora=0.9))
    assert [(ranked.method, ranked.choose_loss) for ranked in verdict.ranking] == [("dora", 0.95), ("lora", 1.00)]
    assert verdict.ranking[0].against_best is None
    assert verdict.ranking[1].against_best.high < 0


def test_methods_that_were_not_scored_have_no_test_loss():
    evidence = _evidence(base=1.5, winner=0.9, plain=1.0)
    tests = {name: scores for name, scores in evidence.tests.items() if name != LORA.name}
    verdict = make_verdict(dataclasses.replace(evidence, tests=tests))
    assert verdict.ranking[1].test_loss is None
    assert verdict.ranking[1].against_best is None
    assert "between the methods nothing was tested" in verdict.conclusion
    assert not verdict.significant


def test_a_winner_that_is_the_plain_recipe_is_compared_with_the_base_alone():
    evidence = _evidence(base=1.5, winner=0.9, plain=1.0)
    finals = dataclasses.replace(evidence.finals, plain=evidence.finals.winner)
    tests = {name: scores for name, scores in evidence.tests.items() if name != PLAIN}
    verdict = make_verdict(dataclasses.replace(evidence, finals=finals, tests=tests))
    assert "it is the plain LoRA recipe itself" in verdict.conclusion
    assert verdict.losses["plain-lora"] == verdict.losses["winner"]
    assert [found.right for found in verdict.comparisons] == ["untouched-base"]


def test_caveats_name_the_seed_the_looks_and_methods_without_a_result():
    evidence = _evidence(base=1.5, winner=0.9, plain=1.0)
    failed = _trial(2, "adalora", None, status="oom")
    verdict = make_verdict(dataclasses.replace(evidence, trials=(*evidence.trials, failed)))
    text = "\n".join(verdict.caveats)
    assert "one training seed" in text
    # Winner against base and plain LoRA, and lora against dora.
    assert "widened for 3 comparisons" in text
    assert "adalora has no completed trial: trial-0002 ended as oom (out of memory at step 3)" in text
    assert "SIMULATED" not in text
    assert verdict.cut == ("1 of 2 trials",)
    assert verdict.tokens_searched == 3000


@pytest.mark.parametrize("dry_run", [True, False])
def test_simulated_figures_are_named_first(dry_run):
    evidence = dataclasses.replace(_evidence(base=1.5, winner=0.9, plain=1.0), dry_run=dry_run)
    assert ("SIMULATED" in make_verdict(evidence).caveats[0]) is dry_run


# Three comparisons: 2 * 0.5**6 = 0.031 > 0.05 / 3 = 0.0167 >= 2 * 0.5**7 = 0.0156.
@pytest.mark.parametrize(("rows", "enough"), [(2, False), (6, False), (7, True)])
def test_too_few_test_rows_show_nothing_and_the_verdict_says_so(rows, enough):
    verdict = make_verdict(_with_rows(_evidence(base=9.0, winner=0.9, plain=5.0, dora=0.9, lora=5.0), rows))
    assert verdict.significant is enough
    assert all(comparison.significant is enough for comparison in verdict.comparisons)
    expected = f"{rows} test rows are too few to show any difference: 3 comparisons need at least 7"
    assert any(caveat.startswith(expected) for caveat in verdict.caveats) is not enough


# 21,000 supervised tokens are left: 105 lost are 0.4975 % of all, 106 are 0.502 %.
@pytest.mark.parametrize(
    ("dropped", "lost", "said"),
    [
        (0, 105, None),
        (0, 106, "max_length cut 9 rows and with them 0.5 % of the supervised tokens"),
        (1, 40, "max_length cut 9 rows and with them 0.2 % of the supervised tokens; 1 row"),
    ],
)
def test_what_truncation_took_is_a_caveat_where_it_can_matter(dropped, lost, said):
    facts = dataclasses.replace(FACTS, dropped_rows=dropped, truncated_rows=9, lost_supervised_tokens=lost)
    evidence = dataclasses.replace(_evidence(base=1.5, winner=0.9, plain=1.0), facts=facts)
    caveats = [caveat for caveat in make_verdict(evidence).caveats if "max_length" in caveat]
    assert caveats == [] if said is None else caveats[0].startswith(said)
