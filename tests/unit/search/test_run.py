"""Whole searches on the fake runner, with the recommender's own candidates."""

from __future__ import annotations

import dataclasses

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autopeft.errors import AutoPeftError, InvalidInputError, RunFolderError
from autopeft.search import RunFolder, RunSettings, run_search
from autopeft.search.durable import read_json
from autopeft.search.prepare import job_of
from autopeft.search.session import Session
from autopeft.search.settings import recommended_candidates
from autopeft.search.study import STUDY_NAME
from autopeft.specs import Distribution, MethodSpace, RankedCandidate, RejectedCandidate
from autopeft.training.fake import FakeRunner, FakeWorld


def _search(path, plan, settings, world=None, source=None):
    """Runs one search; returns verdict, results, events and the runner."""
    events = []
    runner = FakeRunner(world or FakeWorld())
    with RunFolder.create(path, plan, settings) as folder:
        verdict = run_search(plan, settings, folder, runner, on_event=events.append, source=source)
        assert folder.load_verdict() == verdict
        return verdict, folder.load_results(), events, runner


def _study(path) -> optuna.Study:
    backend = JournalFileBackend(str(path / "study.journal"), lock_obj=JournalFileOpenLock(str(path / "study.journal")))
    return optuna.load_study(storage=JournalStorage(backend), study_name=STUDY_NAME)


def test_eight_minutes_on_two_cores_give_a_verdict_over_all_methods(tmp_path, plan):
    world = FakeWorld(rows=900, seconds_per_step=1.0, fixed_seconds=5.0, seconds_per_scored_row=0.06)
    verdict, results, events, runner = _search(tmp_path / "run", plan, RunSettings(time_budget_seconds=480.0), world)
    completed = {
        result.candidate.method for result in results if result.stage == "search" and result.status == "complete"
    }
    assert completed == {"lora", "rslora", "dora", "loftq", "adalora"}
    assert [result.name for result in results if result.stage == "final"] == ["final-winner", "final-plain-lora"]
    assert runner.clock() <= 480
    assert verdict.seconds == pytest.approx(runner.clock())
    assert set(verdict.losses) == {"winner", "plain-lora", "untouched-base"}
    assert all(ranked.test_loss is not None for ranked in verdict.ranking)
    assert "5 of 20 search trials" in verdict.cut
    assert next(event.message for event in events if event.kind == "cut") == "5 of 20 search trials"


@pytest.mark.parametrize("budget", [150.0, 240.0, 900.0, 3600.0])
@pytest.mark.parametrize("seconds_per_step", [0.2, 1.0])
def test_a_run_ends_within_its_budget_wherever_it_does_not_say_otherwise(tmp_path, plan, budget, seconds_per_step):
    world = FakeWorld(rows=900, seconds_per_step=seconds_per_step)
    settings = RunSettings(time_budget_seconds=budget)
    verdict, results, events, runner = _search(tmp_path / "run", plan, settings, world)
    exceeded = any("exceeded" in event.message for event in events)
    assert runner.clock() <= budget or exceeded
    assert any(result.name == "final-winner" and result.status == "complete" for result in results)
    assert verdict.seconds == pytest.approx(sum(phase.seconds for phase in verdict.phases))


def test_the_fair_terms_hold_every_trial_has_the_same_steps_tokens_and_seed(tmp_path, plan):
    _, results, _, _ = _search(tmp_path / "run", plan, RunSettings(trials=8))
    complete = [result for result in results if result.stage == "search" and result.status == "complete"]
    assert len({(result.steps, result.tokens, result.seed) for result in complete}) == 1
    finals = [result for result in results if result.stage == "final"]
    assert len({(result.steps, result.tokens, result.seed) for result in finals}) == 1


def test_recommended_candidates_come_first_each_once_and_plain_lora_follows(tmp_path, plan):
    settings = RunSettings(trials=9)
    _, results, _, _ = _search(tmp_path / "run", plan, settings)
    tried = [result.candidate for result in results if result.stage == "search"]
    best = [entry.candidate for entry in recommended_candidates(plan, settings)]
    assert tried[: len(best)] == best
    assert tried[len(best)] == next(entry.candidate for entry in plan.baselines if entry.name == "plain-lora")
    assert len(tried) == 9
    assert all(first != second for index, first in enumerate(tried) for second in tried[:index])


def test_the_study_is_a_plain_optuna_study_with_plain_names(tmp_path, plan):
    _, results, _, _ = _search(tmp_path / "run", plan, RunSettings(trials=8))
    study = _study(tmp_path / "run")
    lines = {result.trial: result for result in results if result.stage == "search"}
    for trial in study.trials:
        assert {"method", "r", "learning_rate"} <= set(trial.params)
        if trial.number in lines and lines[trial.number].status == "complete":
            assert trial.value == lines[trial.number].eval_loss
            assert trial.params["r"] == lines[trial.number].candidate.r
    assert not [trial for trial in study.trials if not trial.state.is_finished()]


def test_first_trials_are_never_pruned_and_poor_later_ones_are(tmp_path, plan):
    _, results, _, _ = _search(tmp_path / "run", plan, RunSettings(trials=20, seed=3), FakeWorld(rows=900))
    statuses = [result.status for result in results if result.stage == "search"]
    assert statuses[:5] == ["complete"] * 5
    assert "pruned" in statuses[5:]


def test_failures_are_lines_and_the_search_goes_on(tmp_path, plan):
    world = FakeWorld(failures={"dora": "oom", "adalora": "diverged", "trial-0000": "failed"})
    verdict, results, _, _ = _search(tmp_path / "run", plan, RunSettings(trials=10), world)
    statuses = {(result.candidate.method, result.status) for result in results}
    assert ("dora", "oom") in statuses
    assert results[0].status == "failed"
    diverged = next(result for result in results if result.candidate.method == "adalora")
    assert (diverged.status, diverged.eval_loss) == ("pruned", None)
    assert "is not a number" in diverged.error
    assert not {"dora", "adalora"} & {ranked.method for ranked in verdict.ranking}
    assert any(caveat.startswith("dora has no completed trial") for caveat in verdict.caveats)


def test_a_search_without_a_completed_trial_names_the_log(tmp_path, plan):
    world = FakeWorld(failures={f"trial-{number:04d}": "failed" for number in range(10)})
    with pytest.raises(AutoPeftError, match=r"no trial of the search completed \(trial-0000 .*worker\.log"):
        _search(tmp_path / "run", plan, RunSettings(trials=5), world)


def test_a_machine_on_which_nothing_trains_is_found_out_at_once(tmp_path, plan):
    with pytest.raises(AutoPeftError, match=r"could be trained for even 3 steps.*worker\.log"):
        _search(tmp_path / "run", plan, RunSettings(), FakeWorld(failures={"calibration": "oom"}))


def test_a_failed_final_training_can_be_tried_again(tmp_path, two_method_plan):
    settings = RunSettings(trials=2)
    with RunFolder.create(tmp_path / "run", two_method_plan, settings) as folder:
        runner = FakeRunner(FakeWorld(failures={"final-winner": "oom"}))
        with pytest.raises(AutoPeftError, match=r"final training of trial-0\d+ ended as oom.*--resume tries it again"):
            run_search(two_method_plan, settings, folder, runner, on_event=lambda _: None)
    with RunFolder.open(tmp_path / "run") as folder:
        verdict = run_search(two_method_plan, settings, folder, FakeRunner(), on_event=lambda _: None)
    assert verdict.losses["winner"] < verdict.losses["untouched-base"]


def test_a_failed_plain_baseline_leaves_a_verdict_with_a_caveat(tmp_path, plan):
    world = FakeWorld(failures={"final-plain-lora": "timeout"})
    verdict, _, _, _ = _search(tmp_path / "run", plan, RunSettings(trials=5), world)
    assert "plain-lora" not in verdict.losses
    assert any("plain LoRA's final training ended as timeout" in caveat for caveat in verdict.caveats)


def test_equal_methods_leave_the_choice_to_the_cheapest(tmp_path, plan):
    verdict, _, _, _ = _search(tmp_path / "run", plan, RunSettings(trials=5), FakeWorld(row_noise=0.5))
    assert verdict.winner.method == "lora"
    assert "cannot be told apart" in verdict.winner_reason
    assert "lora is the cheapest of them" in verdict.winner_reason
    assert not verdict.significant
    assert "no significant difference between the methods" in verdict.conclusion


def test_a_method_that_is_truly_better_wins_although_it_is_dearer(tmp_path, plan):
    world = FakeWorld(method_effect={"dora": -0.4}, row_noise=0.02)
    verdict, _, _, _ = _search(tmp_path / "run", plan, RunSettings(trials=5), world)
    assert verdict.winner.method == "dora"
    assert verdict.significant
    assert verdict.ranking[0].method == "dora"
    assert all(ranked.against_best.low > 0 for ranked in verdict.ranking[1:])


def test_only_methods_of_the_settings_are_searched(tmp_path, plan):
    _, results, _, _ = _search(tmp_path / "run", plan, RunSettings(trials=4, methods=("rslora", "dora")))
    assert {result.candidate.method for result in results if result.stage == "search"} == {"rslora", "dora"}
    with pytest.raises(InvalidInputError, match=r"no candidate of vera \(it holds: .*lora"):
        RunFolder.create(tmp_path / "other", plan, RunSettings(methods=("vera",)))


def test_the_exported_adapter_is_the_final_winner(tmp_path, plan):
    _search(tmp_path / "run", plan, RunSettings(trials=5))
    exported = (tmp_path / "run" / "adapter" / "simulated-adapter.json").read_text()
    assert exported == (tmp_path / "run" / "trials" / "final-winner" / "adapter" / "simulated-adapter.json").read_text()


def test_splits_and_seeds_repeat(tmp_path, plan):
    _search(tmp_path / "one", plan, RunSettings(trials=5, seed=3))
    _search(tmp_path / "two", plan, RunSettings(trials=5, seed=3))
    _search(tmp_path / "three", plan, RunSettings(trials=5, seed=4))
    one, two, three = (read_json(tmp_path / name / "splits.json") for name in ("one", "two", "three"))
    for splits in (one, two, three):
        splits["job"].pop("cache_folder")
    assert one == two
    assert one["facts"]["split_hash"] != three["facts"]["split_hash"]


def test_no_search_trial_sees_the_test_split_before_the_choice(tmp_path, plan):
    _, _, events, _ = _search(tmp_path / "run", plan, RunSettings(trials=6))
    kinds = [(event.kind, event.data.get("stage") or event.data.get("split")) for event in events]
    assert kinds.index(("stage", "choose")) < kinds.index(("score", "test"))
    assert kinds.index(("stage", "final")) < kinds.index(("score", "test"))


def test_data_that_split_differently_are_refused_on_resume(tmp_path, two_method_plan):
    settings = RunSettings(trials=2)
    _search(tmp_path / "run", two_method_plan, settings)
    with RunFolder.open(tmp_path / "run") as folder:
        runner = FakeRunner(FakeWorld(rows=500))
        with pytest.raises(RunFolderError, match="split differently"):
            run_search(two_method_plan, settings, folder, runner, on_event=lambda _: None)


def test_the_memory_limit_of_the_job_is_the_plans(tmp_path, plan):
    settings = RunSettings(time_budget_seconds=480.0)
    with RunFolder.create(tmp_path / "run", plan, settings) as folder:
        session = Session(
            plan=plan,
            settings=settings,
            folder=folder,
            runner=FakeRunner(),
            source=_Narrow(plan),
            on_event=lambda _: None,
        )
        job = job_of(session)
    assert job.memory_limit_bytes == plan.candidates[0].available_bytes
    assert (job.choose_rows, job.test_rows, job.model) == (32, 60, "toy")


class _Narrow:
    """A candidate source of lora alone, with two ranks; one learning rate; rank 64 does not fit."""

    def __init__(self, plan) -> None:
        self.first = next(entry for entry in plan.candidates if entry.candidate.method == "lora")

    def candidate(self, method, values):
        return dataclasses.replace(
            self.first.candidate, r=values["r"], lora_alpha=float(values["r"]), learning_rate=1e-3
        )

    def price(self, candidate):
        if candidate.r == 64:
            return RejectedCandidate(method="lora", variant="r 64", reason="needs too much", required_bytes=2**40)
        return RankedCandidate(
            candidate=candidate,
            estimate=self.first.estimate,
            available_bytes=self.first.available_bytes,
            predicted_seconds=None,
            steps=1,
            score=0.0,
            reasons=(),
        )

    def values_of(self, candidate):
        return {"r": candidate.r}

    def allowed(self, method):
        r = Distribution(type="categorical", default=8, effect="", choices=(8, 16, 64))
        return MethodSpace(method="lora", summary="", parameters={"r": r})


def test_what_does_not_fit_is_not_started_and_an_exhausted_space_ends_the_search(tmp_path, plan):
    settings = RunSettings(trials=30, methods=("lora",))
    verdict, results, events, _ = _search(tmp_path / "run", plan, settings, source=_Narrow(plan))
    # Rank 8 and 16 of the space, and the plain recipe, which differs in its learning rate.
    assert len([result for result in results if result.stage == "search"]) == 3
    assert all(result.candidate.r != 64 for result in results)
    reasons = [event.data.get("reason") for event in events if event.kind == "skipped"]
    assert "duplicate" in reasons
    assert "infeasible" in reasons
    assert reasons[-1] is None
    assert verdict.cut == ()
    infeasible = [trial for trial in _study(tmp_path / "run").trials if trial.constraints]
    assert infeasible
    assert all(trial.params["r"] == 64 for trial in infeasible)


class _CutRunner(FakeRunner):
    """Says that its rows were cut."""

    def prepare(self, job):
        return dataclasses.replace(super().prepare(job), dropped_rows=1, truncated_rows=7, lost_supervised_tokens=50)


def test_cut_rows_are_told_at_once_and_kept_in_the_manifest(tmp_path, two_method_plan):
    events, settings = [], RunSettings(trials=2)
    runner = _CutRunner(FakeWorld())
    with RunFolder.create(tmp_path / "run", two_method_plan, settings) as folder:
        verdict = run_search(two_method_plan, settings, folder, runner, on_event=events.append)
        manifest = folder.load_manifest()
    prepared = next(event for event in events if event.kind == "prepared")
    assert "max_length cut 7 rows" in prepared.message
    assert "1 row without a supervised token left was dropped" in prepared.message
    expected = {"dropped_rows": 1, "truncated_rows": 7, "lost_supervised_tokens": 50}
    assert expected.items() <= prepared.data.items()
    assert manifest["truncation"] == expected
    assert any("max_length cut 7 rows" in caveat for caveat in verdict.caveats)


def test_a_plan_and_its_run_agree_on_the_steps_of_a_full_training(tmp_path, plan_of):
    for rows in (400, 1200, 12_000):
        plan = plan_of(rows)
        world = FakeWorld.of_plan(plan)
        _, results, _, _ = _search(tmp_path / str(rows), plan, RunSettings(trials=2), world)
        final = next(result for result in results if result.stage == "final")
        assert final.steps == plan.candidates[0].steps


def test_optuna_keeps_quiet_and_its_verbosity_is_left_as_it_was(tmp_path, two_method_plan, capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        _search(tmp_path / "run", two_method_plan, RunSettings(trials=3))
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert capfd.readouterr() == ("", "")


def test_a_dry_run_says_so_in_its_verdict(tmp_path, two_method_plan):
    world = FakeWorld.of_plan(two_method_plan)
    verdict, _, _, _ = _search(tmp_path / "run", two_method_plan, RunSettings(trials=2, dry_run=True), world)
    assert verdict.caveats[0].startswith("THE FIGURES ARE SIMULATED")


class StepsDown(FakeRunner):
    """Trains with micro-batches of one row, as after running out of memory; notes what it was asked."""

    def __init__(self, world: FakeWorld) -> None:
        super().__init__(world)
        self.requests = []
        self.more_rungs = []

    def train(self, request, go_on):
        self.requests.append(request)
        outcome = super().train(request, go_on)
        rows = request.candidate.effective_batch_size
        lower = dataclasses.replace(request.candidate, per_device_batch_size=1, gradient_accumulation_steps=rows)
        ladder = [{"lever": "per_device_batch_size", "before": rows, "after": 1, "error": "full"}]
        return dataclasses.replace(outcome, trained=lower, details={"memory_ladder": ladder + self.more_rungs})


def test_a_result_tells_what_was_trained_after_memory_ran_out(tmp_path, two_method_plan):
    runner = StepsDown(FakeWorld())
    settings = RunSettings(trials=2, allow_shorter=True)
    with RunFolder.create(tmp_path / "run", two_method_plan, settings) as folder:
        run_search(two_method_plan, settings, folder, runner, on_event=lambda _: None)
        results = folder.load_results()
    assert all(result.candidate.per_device_batch_size == 1 for result in results)
    assert all(result.candidate.effective_batch_size == 8 for result in results)
    assert all(result.details["memory_ladder"][0]["after"] == 1 for result in results)
    assert all(request.allow_shorter for request in runner.requests if request.name != "calibration")


def test_a_training_on_rows_that_were_cut_for_memory_is_told_beside_its_comparison(tmp_path, two_method_plan):
    runner = StepsDown(FakeWorld())
    runner.more_rungs = [
        {"lever": "max_length", "before": 512, "after": 256, "error": "full"},
        {"lever": "max_length", "before": 256, "after": 128, "error": "full"},
    ]
    settings = RunSettings(trials=2, allow_shorter=True)
    events = []
    with RunFolder.create(tmp_path / "run", two_method_plan, settings) as folder:
        verdict = run_search(two_method_plan, settings, folder, runner, on_event=events.append)
    told = " ".join((*verdict.cut, *verdict.caveats))
    assert "memory ran out in final-winner, so its training rows were cut at 128 tokens instead of 512" in told
    ends = [event.message for event in events if event.kind == "trial-end"]
    assert all("memory ran out, so it trained with per_device_batch_size 8 to 1, max_length" in each for each in ends)


def test_final_trainings_alone_are_checkpointed_and_their_checkpoints_do_not_stay(tmp_path, two_method_plan):
    runner = StepsDown(FakeWorld())
    settings = RunSettings(trials=2)
    with RunFolder.create(tmp_path / "run", two_method_plan, settings) as folder:
        folder.checkpoint_folder("final-winner").mkdir(parents=True)
        run_search(two_method_plan, settings, folder, runner, on_event=lambda _: None)
        assert not folder.checkpoint_folder("final-winner").exists()
    wanted = {request.name for request in runner.requests if request.checkpoint_folder is not None}
    assert wanted == {request.name for request in runner.requests if request.name.startswith("final-")} != set()
