"""The run folder refuses what is not its own, and gives back what was put in."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest

from autopeft.errors import InvalidInputError, RunFolderError
from autopeft.search import RunFolder, RunSettings
from autopeft.search.run_folder import phase_times
from autopeft.search.settings import Event
from autopeft.specs import Scores, TrialResult

SETTINGS = RunSettings(trials=3, time_budget_seconds=480.0, seed=7, methods=("lora",), dry_run=True)


def _result(plan, name: str = "trial-0000") -> TrialResult:
    return TrialResult(
        trial=0,
        name=name,
        stage="search",
        candidate=plan.candidates[0].candidate,
        status="complete",
        eval_loss=1.25,
        steps=10,
        tokens=4800,
        seconds=12.5,
        train_seconds=10.0,
        seed=1,
        predicted_required_bytes=100,
        predicted_peak_bytes=90,
        measured_peak_bytes=None,
        measured_peak_kind=None,
        trainable_parameters=5,
        adapter_folder="trials/trial-0000/adapter",
        curve=((5, 2400, 1.5),),
        rank_pattern={"q_proj": 3},
    )


def test_a_new_folder_gives_back_plan_and_settings(tmp_path, plan):
    with RunFolder.create(tmp_path / "runs" / "demo", plan, SETTINGS):
        pass
    with RunFolder.open(tmp_path / "runs" / "demo") as folder:
        assert folder.load_plan() == plan
        assert folder.load_settings() == SETTINGS
        assert folder.load_verdict() is None


def test_results_come_back_as_they_were_added_and_are_flat_on_disk(tmp_path, plan):
    with RunFolder.create(tmp_path / "run", plan, SETTINGS) as folder:
        results = (_result(plan), _result(plan, "trial-0001"))
        for result in results:
            folder.add_result(result)
        assert folder.load_results() == results
        assert '"method":"lora"' in folder.results.read_text().splitlines()[0]


def test_another_run_is_refused_with_the_way_on(tmp_path, plan):
    RunFolder.create(tmp_path / "run", plan, SETTINGS).close()
    with pytest.raises(RunFolderError, match=r"holds another run; continue it with: autopeft run --resume --output"):
        RunFolder.create(tmp_path / "run", plan, SETTINGS)


def test_foreign_files_are_named_and_left_alone(tmp_path, plan):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(RunFolderError, match=r"is not empty \(it holds thesis\.tex\)"):
        RunFolder.create(tmp_path, plan, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, plan):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        RunFolder.create(tmp_path / "run", plan, SETTINGS)


def test_a_creation_that_was_killed_can_be_repeated(tmp_path, plan):
    RunFolder.create(tmp_path / "run", plan, SETTINGS).close()
    (tmp_path / "run" / "manifest.json").unlink()
    with RunFolder.create(tmp_path / "run", plan, SETTINGS) as folder:
        assert folder.load_settings() == SETTINGS


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no run \(it has no manifest\.json\)"):
        RunFolder.open(tmp_path)


def test_a_folder_in_use_cannot_be_opened_twice(tmp_path, plan):
    with (
        RunFolder.create(tmp_path / "run", plan, SETTINGS),
        pytest.raises(RunFolderError, match="in use by another autopeft process"),
    ):
        RunFolder.open(tmp_path / "run")


def test_a_withdrawn_run_leaves_nothing_but_a_log_with_content(tmp_path, plan):
    for log in ("", "Traceback"):
        folder = RunFolder.create(tmp_path / "run", plan, SETTINGS)
        folder.add_event(Event(kind="stage", message="begun"), "prepare", 0.0)
        folder.trial_folder("calibration")
        folder.worker_log.write_text(log)
        folder.withdraw()
        left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
        assert left == (["worker.log"] if log else [])
    RunFolder.create(tmp_path / "run", plan, SETTINGS).close()


def test_withdrawing_a_run_leaves_foreign_files_and_an_older_folder_alone(tmp_path, plan):
    folder = RunFolder.create(tmp_path, plan, SETTINGS)
    (tmp_path / "thesis.tex").write_text("text")
    folder.withdraw()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    RunFolder.create(tmp_path, plan, SETTINGS).withdraw()
    assert tmp_path.is_dir()


def test_a_run_with_a_schedule_or_from_an_earlier_sitting_is_not_withdrawn(tmp_path, plan):
    RunFolder.create(tmp_path / "old", plan, SETTINGS).close()
    with RunFolder.open(tmp_path / "old") as folder:
        assert not folder.may_be_withdrawn()
    with RunFolder.create(tmp_path / "new", plan, SETTINGS) as folder:
        assert folder.may_be_withdrawn()
        folder.schedule.write_text("{}")
        assert not folder.may_be_withdrawn()


def test_the_manifest_names_the_planned_candidates_that_are_not_searched(tmp_path, plan):
    first = plan.candidates[0]
    other = replace(first, candidate=replace(first.candidate, quantization="nf4"))
    full = replace(first, candidate=replace(first.candidate, method="full"))
    with RunFolder.create(tmp_path / "run", replace(plan, candidates=(first, other, full)), SETTINGS) as folder:
        assert folder.load_manifest()["not_tried"] == [
            {
                "method": first.candidate.method,
                "variant": "nf4",
                "reason": "another storage of the base was recommended first; the search may propose it",
            },
            {"method": "full", "variant": "none", "reason": "not searched by default: --method full"},
        ]


def test_a_full_disk_is_told_before_the_run_starts(tmp_path, plan, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1024))
    with pytest.raises(RunFolderError, match=r"has 0 MiB free, but the run may need 6\d MiB"):
        RunFolder.create(tmp_path / "run", plan, SETTINGS)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_an_adapter_is_exported_whole_and_replaces_an_older_one(tmp_path, plan):
    with RunFolder.create(tmp_path / "run", plan, SETTINGS) as folder:
        source = folder.fresh_adapter_folder("final-winner")
        for content in ("first", "second"):
            (source / "adapter_config.json").write_text(content)
            folder.export_adapter(source)
            assert (folder.adapter / "adapter_config.json").read_text() == content


def test_scores_come_back_as_they_were_written(tmp_path, plan):
    scores = Scores(eval_loss=1.5, losses=(1.0, 2.0), supervised_tokens=(1, 1), seconds=0.5)
    with RunFolder.create(tmp_path / "run", plan, SETTINGS) as folder:
        assert folder.write_scores("trial-0000", "choose", scores) == "trials/trial-0000/scores-choose.json"
        assert folder.load_scores("trial-0000", "choose") == scores
        assert folder.load_scores("trial-0000", "test") is None


def test_phases_add_up_over_sittings(tmp_path, plan):
    with RunFolder.create(tmp_path / "run", plan, SETTINGS) as folder:
        for stage, seconds in (("prepare", 0.0), ("search", 4.0), ("search", 9.0), ("prepare", 9.0), ("search", 10.0)):
            folder.add_event(Event(kind="stage", message=stage), stage, seconds)
        phases = {phase.phase: phase.seconds for phase in phase_times(folder.load_events())}
    # 4 before the search, 5 of search, 1 of preparing again; nothing is known after the last event.
    assert phases == {"prepare": 5.0, "search": 5.0}


@pytest.mark.parametrize(
    ("wrong", "said"), [({"trials": 0}, "at least one trial"), ({"time_budget_seconds": -1.0}, "time budget")]
)
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(InvalidInputError, match=said):
        RunSettings(**wrong)
