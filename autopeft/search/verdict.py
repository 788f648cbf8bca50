"""Turns scores into the verdict: what won, by how much, how sure that is, and what the figures leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.recommend.advice import MAX_SUPERVISED_LOSS
from autopeft.search.finals import PLAIN, WINNER, Choice, Finals
from autopeft.search.prepare import UNTOUCHED, lost_share, truncation_sentence
from autopeft.search.statistics import fewest_rows, paired_comparison
from autopeft.specs import Comparison, JobFacts, PhaseTime, RankedMethod, Scores, TrialResult, Verdict

TUNED_RATES = 3
"""Learning rates that a method must have tried before its best is called tuned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a verdict is made of.

    Attributes:
        trials: all search trials.
        tests: test scores by name of the training, "untouched-base" included.
        cut: what the budget cut.
        seed: of the resampling.
        facts: what the runner found in the data.
        dry_run: whether the figures are simulated.
    """

    trials: tuple[TrialResult, ...]
    choice: Choice
    finals: Finals
    tests: Mapping[str, Scores]
    cut: tuple[str, ...]
    seconds: float
    phases: tuple[PhaseTime, ...]
    seed: int
    facts: JobFacts
    dry_run: bool = False


def make_verdict(evidence: Evidence) -> Verdict:
    """Returns the verdict; its intervals hold together with 95 % (Bonferroni over all of them)."""
    family = _family_size(evidence)
    comparisons = _against_baselines(evidence, family)
    ranking = _ranking(evidence, family)
    runner_up = _against_next_method(evidence, family)
    return Verdict(
        conclusion=_conclusion(evidence, comparisons, runner_up),
        significant=runner_up is not None and runner_up.significant and runner_up.high < 0,
        winner=evidence.choice.winner.candidate,
        winner_trial=_number(evidence.choice.winner),
        winner_reason=evidence.choice.reason,
        losses=_losses(evidence),
        comparisons=comparisons,
        ranking=ranking,
        cut=evidence.cut,
        caveats=_caveats(evidence, family),
        tokens_searched=sum(trial.tokens for trial in evidence.trials),
        seconds=evidence.seconds,
        phases=evidence.phases,
    )


def _family_size(evidence: Evidence) -> int:
    """Returns how many comparisons are looked at: the winner with each baseline, and the methods with each other."""
    baselines = 1 + (PLAIN in evidence.tests)
    scored = sum(trial.name in evidence.tests for trial in evidence.choice.best)
    return baselines + max(0, scored - 1)


def _against_baselines(evidence: Evidence, family: int) -> tuple[Comparison, ...]:
    names = {PLAIN: "plain-lora", UNTOUCHED: "untouched-base"}
    return tuple(
        _compare(evidence, ("winner", label), (WINNER, name), family)
        for name, label in names.items()
        if name in evidence.tests
    )


def _ranking(evidence: Evidence, family: int) -> tuple[RankedMethod, ...]:
    """Returns the methods in the order of the choose split, so that the test split confirms and does not choose."""
    best = evidence.choice.best
    return tuple(_ranked(evidence, trial, best[0], family) for trial in best)


def _ranked(evidence: Evidence, trial: TrialResult, first: TrialResult, family: int) -> RankedMethod:
    assert trial.eval_loss is not None
    method, tests = trial.candidate.method, evidence.tests
    comparable = trial is not first and trial.name in tests and first.name in tests
    labels = (method, first.candidate.method)
    return RankedMethod(
        method=method,
        trial=_number(trial),
        candidate=trial.candidate,
        choose_loss=trial.eval_loss,
        test_loss=tests[trial.name].eval_loss if trial.name in tests else None,
        against_best=_compare(evidence, labels, (trial.name, first.name), family) if comparable else None,
        seconds=trial.seconds,
        trials=sum(other.candidate.method == method for other in evidence.trials),
    )


def _against_next_method(evidence: Evidence, family: int) -> Comparison | None:
    """Returns the winner's search trial against the best trial of any other method; None where one is not scored."""
    winner = evidence.choice.winner
    other = next((trial for trial in evidence.choice.best if trial.candidate.method != winner.candidate.method), None)
    if other is None or winner.name not in evidence.tests or other.name not in evidence.tests:
        return None
    labels = (winner.candidate.method, other.candidate.method)
    return _compare(evidence, labels, (winner.name, other.name), family)


def _compare(evidence: Evidence, labels: tuple[str, str], names: tuple[str, str], family: int) -> Comparison:
    left, right = (evidence.tests[name] for name in names)
    return paired_comparison(labels, left, right, comparisons=family, seed=evidence.seed)


def _losses(evidence: Evidence) -> dict[str, float]:
    losses = {"winner": evidence.tests[WINNER].eval_loss}
    plain = WINNER if evidence.finals.plain is evidence.finals.winner else PLAIN
    if plain in evidence.tests:
        losses["plain-lora"] = evidence.tests[plain].eval_loss
    return losses | {"untouched-base": evidence.tests[UNTOUCHED].eval_loss}


def _number(trial: TrialResult) -> int:
    assert trial.trial is not None, "a search trial has a number"
    return trial.trial


def _conclusion(evidence: Evidence, comparisons: Sequence[Comparison], runner_up: Comparison | None) -> str:
    found = {comparison.right: comparison for comparison in comparisons}
    losses = _losses(evidence)
    parts = [
        _against_base(evidence, found["untouched-base"], losses),
        _against_plain(evidence, found.get("plain-lora")),
    ]
    parts.append(_between_methods(evidence, runner_up))
    return "; ".join(part for part in parts if part) + "."


def _against_base(evidence: Evidence, comparison: Comparison, losses: Mapping[str, float]) -> str:
    candidate = evidence.choice.winner.candidate
    name = candidate.method + ("" if candidate.r is None else f" r={candidate.r}")
    before, after = losses["untouched-base"], losses["winner"]
    if not comparison.significant:
        return f"{name} does not change held-out loss significantly: {before:.3f} (untouched base) and {after:.3f}"
    verb = "lowers" if comparison.difference < 0 else "RAISES"
    return f"{name} {verb} held-out loss from {before:.3f} (untouched base) to {after:.3f}"


def _against_plain(evidence: Evidence, comparison: Comparison | None) -> str:
    if comparison is None:
        return "it is the plain LoRA recipe itself" if evidence.finals.plain is evidence.finals.winner else ""
    interval = f"{comparison.difference:+.3f} [{comparison.low:+.3f}, {comparison.high:+.3f}]"
    if not comparison.significant:
        return f"against plain LoRA: {interval}, no significant difference: the plain recipe is as good"
    return f"against plain LoRA: {interval}" + ("" if comparison.difference < 0 else ", so the plain recipe is better")


def _between_methods(evidence: Evidence, comparison: Comparison | None) -> str:
    if len(evidence.choice.best) == 1:
        return "only one method has a completed trial"
    if comparison is None:
        return "between the methods nothing was tested: the time did not suffice"
    interval = f"{comparison.difference:+.3f} [{comparison.low:+.3f}, {comparison.high:+.3f}]"
    text = f"against the next best method ({comparison.right}): {interval}"
    if comparison.significant:
        return text + ("" if comparison.high < 0 else f", so {comparison.right} is better on the test split")
    return f"{text}, no significant difference between the methods"


def _caveats(evidence: Evidence, family: int) -> tuple[str, ...]:
    caveats = ["THE FIGURES ARE SIMULATED (dry run): nothing was trained"] if evidence.dry_run else []
    caveats += [
        "one training seed: the intervals cover the choice of test rows, not the noise of the seed",
        f"the intervals are widened for {family} comparisons (Bonferroni), so that all hold together with 95 %",
        f"held-out loss over {len(evidence.tests[WINNER].losses)} test rows; no task metric was measured",
    ]
    caveats += _too_few_rows(evidence, family) + _truncation(evidence.facts) + _unequal_tuning(evidence)
    if evidence.finals.steps > evidence.choice.winner.steps:
        caveats.append(
            f"methods are ranked by trials of {evidence.choice.winner.steps} steps; "
            f"after {evidence.finals.steps}, as in the final training, the order may differ"
        )
    return (*caveats, *_without_result(evidence), *evidence.finals.notes)


def _too_few_rows(evidence: Evidence, family: int) -> list[str]:
    rows, needed = len(evidence.tests[WINNER].losses), fewest_rows(family)
    if rows >= needed:
        return []
    plural = f"{family} comparisons need" if family > 1 else "one comparison needs"
    return [f"{rows} test rows are too few to show any difference: {plural} at least {needed}; bring more data"]


def _truncation(facts: JobFacts) -> list[str]:
    if not facts.dropped_rows and lost_share(facts) <= MAX_SUPERVISED_LOSS:
        return []
    return [f"{truncation_sentence(facts)}; the losses are those of what is left; a larger --max-length keeps more"]


def _unequal_tuning(evidence: Evidence) -> list[str]:
    """Returns a sentence if the methods' learning rates were not tuned alike, since that alone can decide."""
    rates: dict[str, set[float]] = {}
    for trial in evidence.trials:
        rates.setdefault(trial.candidate.method, set()).add(trial.candidate.learning_rate)
    counts = {method: len(tried) for method, tried in rates.items()}
    if len(counts) < 2 or min(counts.values()) >= TUNED_RATES:
        return []
    tried = ", ".join(f"{method} {count}" for method, count in counts.items())
    return [
        f"learning rates tried: {tried}; with fewer than {TUNED_RATES} each, a difference between methods may be one "
        "of learning rates; a longer search tells them apart"
    ]


def _without_result(evidence: Evidence) -> list[str]:
    """Returns a sentence for each method of which no trial completed."""
    ranked = {trial.candidate.method for trial in evidence.choice.best}
    failed = {trial.candidate.method: trial for trial in evidence.trials if trial.candidate.method not in ranked}
    return [
        f"{method} has no completed trial: {trial.name} ended as {trial.status}"
        + (f" ({trial.error})" if trial.error else "")
        for method, trial in failed.items()
    ]
