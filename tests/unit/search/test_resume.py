"""Killed anywhere and resumed, a search ends as one that was never killed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.search import RunFolder, RunSettings, run_search
from autopeft.search.durable import append_line
from autopeft.training.fake import FakeRunner, FakeWorld

SETTINGS = RunSettings(trials=5, seed=11)
WORLD = FakeWorld(row_noise=0.02)


class Killed(BaseException):
    """Stands for kill -9: nothing in the package catches it."""


class Countdown:
    """Kills at the k-th moment; counts moments without end when k is None."""

    def __init__(self, k: int | None = None) -> None:
        self.k = k
        self.moments = 0

    def tick(self) -> None:
        self.moments += 1
        if self.moments == self.k:
            raise Killed


class KillableRunner(FakeRunner):
    """The fake, killed within a training, after one and after a scoring."""

    def __init__(self, countdown: Countdown) -> None:
        super().__init__(WORLD)
        self._countdown = countdown

    def train(self, request, go_on):
        def ticking(report):
            self._countdown.tick()
            return go_on(report)

        outcome = super().train(request, ticking)
        self._countdown.tick()
        return outcome

    def score(self, request):
        scores = super().score(request)
        self._countdown.tick()
        return scores


def _sit(path, plan, countdown, run_settings=SETTINGS):
    """One sitting with new objects throughout; a folder that has no manifest yet is begun again."""
    begun = (path / "manifest.json").exists()
    folder = RunFolder.open(path) if begun else RunFolder.create(path, plan, run_settings)
    with folder:
        loaded_plan, loaded_settings = folder.load_plan(), folder.load_settings()
        runner = KillableRunner(countdown)
        return run_search(loaded_plan, loaded_settings, folder, runner, on_event=lambda _: countdown.tick())


def _sit_killed(path, plan, countdown) -> bool:
    """Returns whether the sitting was killed; every wait for the disk is a moment too, before what follows it."""
    real = os.fsync

    def fsync(descriptor):
        countdown.tick()

    os.fsync = fsync
    try:
        _sit(path, plan, countdown)
    except Killed:
        return True
    finally:
        os.fsync = real
    return False


def _outcome(path):
    """What must not depend on kills: trials without their Optuna numbers, and the verdict without numbers and time."""
    folder = RunFolder(path)
    names = {result.name: position for position, result in enumerate(folder.load_results())}
    trials = [
        dataclasses.replace(result, trial=None, name="", adapter_folder=None, scores_file=None, seconds=0.0)
        for result in folder.load_results()
    ]
    verdict = folder.load_verdict()
    ranking = tuple(dataclasses.replace(ranked, trial=0, seconds=0.0) for ranked in verdict.ranking)
    verdict = dataclasses.replace(verdict, winner_trial=0, ranking=ranking, seconds=0.0, phases=())
    assert len(names) == len(trials), "every training has one line"
    return trials, verdict


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, two_method_plan):
    """The outcome without a kill, and how many moments there are."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    countdown = Countdown()
    assert not _sit_killed(path, two_method_plan, countdown)
    return _outcome(path), countdown.moments


def test_a_kill_at_any_moment_changes_nothing_but_the_time(tmp_path, two_method_plan, undisturbed):
    expected, moments = undisturbed
    assert moments > 100
    for k in range(1, moments + 1):
        path = tmp_path / f"run-{k}"
        assert _sit_killed(path, two_method_plan, Countdown(k)), k
        before = len(RunFolder(path).load_results())
        assert not _sit_killed(path, two_method_plan, Countdown())
        assert _outcome(path) == expected, k
        assert before <= len(expected[0])
        shutil.rmtree(path)


@settings(max_examples=8, deadline=None)
@given(kills=st.lists(st.integers(1, 60), min_size=2, max_size=5))
def test_several_kills_change_nothing_either(tmp_path_factory, two_method_plan, undisturbed, kills):
    path = tmp_path_factory.mktemp("kills") / "run"
    for k in kills:
        if not _sit_killed(path, two_method_plan, Countdown(k)):
            break
    assert not _sit_killed(path, two_method_plan, Countdown())
    assert _outcome(path) == undisturbed[0]


def test_finished_lines_are_never_rewritten(tmp_path, two_method_plan, undisturbed):
    path = tmp_path / "run"
    seen = b""
    for k in range(40, undisturbed[1], 60):
        _sit_killed(path, two_method_plan, Countdown(k))
        content = (path / "results.jsonl").read_bytes() if (path / "results.jsonl").exists() else b""
        assert content.startswith(seen)
        seen = content
    assert seen


def test_a_journal_and_lines_cut_in_the_middle_are_continued(tmp_path, two_method_plan, undisturbed):
    path = tmp_path / "run"
    assert _sit_killed(path, two_method_plan, Countdown(undisturbed[1] // 2))
    for name in ("study.journal", "events.jsonl", "results.jsonl"):
        with open(path / name, "ab") as file:
            file.write(b'{"op_code": 5, "tri')
    (path / "study.journal.lock").touch()
    assert not _sit_killed(path, two_method_plan, Countdown())
    assert _outcome(path) == undisturbed[0]


def test_a_finished_run_that_is_resumed_gives_its_verdict_again_and_trains_nothing(tmp_path, two_method_plan):
    path = tmp_path / "run"
    first = _sit(path, two_method_plan, Countdown())
    lines = (path / "results.jsonl").read_bytes()
    again = _sit(path, two_method_plan, Countdown())
    assert (path / "results.jsonl").read_bytes() == lines
    assert dataclasses.replace(again, seconds=0.0, phases=()) == dataclasses.replace(first, seconds=0.0, phases=())


def test_time_of_earlier_sittings_counts_and_a_spent_budget_still_ends_with_a_verdict(tmp_path, plan):
    path, limited = tmp_path / "run", RunSettings(time_budget_seconds=400.0)
    with pytest.raises(Killed):
        _sit(path, plan, Countdown(14), limited)
    spent = RunFolder(path).load_events()[-1]
    # The clock of the run is set to the end of the budget, as if the first sitting had lasted so long.
    with RunFolder.open(path) as folder:
        append_line(folder.events, spent | {"elapsed_seconds": 500.0})
    before = len(folder.load_results())
    verdict = _sit(path, plan, Countdown())
    searched = [result for result in folder.load_results() if result.stage == "search"]
    assert len(searched) == max(1, before)
    assert verdict.seconds > 500
    assert any("methods tried; not tried" in sentence for sentence in verdict.cut) or len(searched) == 5
    assert {"winner", "untouched-base"} <= set(verdict.losses)


CHILD = """
import sys, time
from autopeft.search import RunFolder, run_search
from autopeft.training.fake import FakeRunner, FakeWorld
def say(event):
    print(event.kind, flush=True)
    time.sleep(0.02)
with RunFolder.open(sys.argv[1]) as folder:
    world = FakeWorld(row_noise=0.02)
    run_search(folder.load_plan(), folder.load_settings(), folder, FakeRunner(world), on_event=say)
"""


def test_a_process_killed_for_good_leaves_a_folder_that_another_goes_on_with(tmp_path, two_method_plan, undisturbed):
    path = tmp_path / "run"
    RunFolder.create(path, two_method_plan, SETTINGS).close()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    with child:
        events = [child.stdout.readline().strip() for _ in range(16)]
        child.kill()
    assert "trial-end" in events
    assert child.returncode == -9
    _sit(path, two_method_plan, Countdown())
    assert _outcome(path) == undisturbed[0]
