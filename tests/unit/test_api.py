"""The Python API as a script, a notebook, a thread and a pipeline use it."""

from __future__ import annotations

import ast
import errno
import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft import api
from autopeft.errors import (
    AutoPeftError,
    DataError,
    InterruptedRunError,
    InvalidInputError,
    NothingFitsError,
    RunFolderError,
    UnknownNameError,
)
from autopeft.methods import method_names
from autopeft.search import Event
from autopeft.spaces import suggested_methods
from autopeft.specs import Recommendation, to_dict

Suggest = Callable[..., Recommendation]

IN_THE_TREE: dict[str, Any] = {
    "cwd": Path(autopeft.__file__).parent.parent,
    "capture_output": True,
    "text": True,
    "timeout": 60,
    "check": True,
}
"""Without site-packages (-S), so that nothing but the interpreter and the package can be imported."""


@pytest.fixture
def suggest(config_folder: Path, rows: Path) -> Suggest:
    """Suggests for the tiny model and its rows; options may be changed."""

    def call(**options: Any) -> Recommendation:
        return autopeft.suggest(**{"model": config_folder, "data": rows, "hardware": "a100-80gb"} | options)

    return call


@pytest.fixture
def plan(suggest: Suggest) -> Recommendation:
    """A plan of one method for this machine."""
    return suggest(hardware="auto", methods="lora")


# The surface


def test_the_public_names_are_frozen() -> None:
    assert autopeft.__all__ == [
        "AutoPeftError",
        "Candidate",
        "MemoryEstimate",
        "Recommendation",
        "Report",
        "Verdict",
        "__version__",
        "baseline",
        "calibrate",
        "convert",
        "estimate",
        "explain",
        "explain_plan",
        "export_recipe",
        "merge",
        "run",
        "suggest",
    ]
    assert api.__all__ == [
        "CalibrationResult",
        "baseline",
        "calibrate",
        "convert",
        "describe_data",
        "describe_methods",
        "estimate",
        "explain",
        "explain_plan",
        "export_recipe",
        "merge",
        "read_plan",
        "run",
        "suggest",
        "write_plan",
    ]


def test_every_public_name_is_there_and_no_other() -> None:
    assert dir(autopeft) == sorted(autopeft.__all__)
    assert all(getattr(autopeft, name) is not None for name in autopeft.__all__)
    assert autopeft.suggest is api.suggest
    with pytest.raises(AttributeError, match="module 'autopeft' has no attribute 'sugest'"):
        autopeft.sugest  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = "import sys, autopeft; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-S", "-c", code], **IN_THE_TREE)
    loaded = set(ast.literal_eval(done.stdout)) - sys.stdlib_module_names - {"__main__"}
    assert loaded == {"autopeft"}


@pytest.mark.parametrize("function", [api.suggest, api.estimate, api.run], ids=lambda function: function.__name__)
def test_every_parameter_is_typed_and_documented(function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    documented = inspect.getdoc(function) or ""
    assert signature.return_annotation is not inspect.Signature.empty
    for name, parameter in signature.parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty, name
        assert f"\n    {name}: " in documented, name


# Suggest and estimate


def test_suggest_prints_nothing_and_writes_nothing(
    suggest: Suggest, rows: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    plan = suggest()
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in rows.parent.iterdir()] == ["rows.jsonl"]
    assert {entry.candidate.method for entry in plan.candidates} | {entry.method for entry in plan.rejected} == set(
        suggested_methods()
    )


def test_a_plan_is_written_and_read_back_the_same(suggest: Suggest, tmp_path: Path) -> None:
    plan = suggest()
    api.write_plan(plan, tmp_path / "plan.json")
    assert api.read_plan(tmp_path / "plan.json") == plan


def test_one_method_may_be_given_as_a_text(suggest: Suggest) -> None:
    assert suggest(methods="lora") == suggest(methods=["lora"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_memory": 0}, "a memory budget must be a positive number of bytes, not 0"),
        ({"budget_memory": "much"}, "'much' is no memory size"),
        ({"budget_memory": 16}, r"'16' is only 16 bytes; did you mean 16GiB\?"),
        ({"budget_memory": "16"}, r"'16' is only 16 bytes; did you mean 16GiB\?"),
        ({"trace": -1}, "trace says how many candidates to trace; it cannot be -1"),
        ({"effective_batch_size": 0}, "the effective batch size must be at least 1, not 0"),
        ({"methods": ["lora", "lroa"]}, "unknown PEFT method 'lroa'"),
        ({"hardware": "rtx-4085"}, "unknown hardware 'rtx-4085'"),
    ],
)
def test_a_wrong_option_is_an_error_that_is_a_value_error_too(
    suggest: Suggest, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        suggest(**options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, autopeft.AutoPeftError)


def test_nothing_fits_is_an_error_of_its_own(suggest: Suggest) -> None:
    with pytest.raises(NothingFitsError, match="What would help"):
        suggest(model="llama-3-8b", budget_memory="1GiB")


def test_estimate_takes_the_arguments_of_the_issue(capfd: pytest.CaptureFixture[str]) -> None:
    estimate = autopeft.estimate(
        model="llama-3-8b",
        method="lora",
        r=16,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj"],
        quantization="nf4",
        dtype="bfloat16",
        batch_size=4,
        sequence_length=4096,
        hardware="a100-80gb",
        trace=False,
    )
    assert estimate.trainable_parameters == 6_815_744  # 32 layers x r 16 x (4096 + 4096 + 4096 + 1024)
    assert capfd.readouterr() == ("", "")


def test_more_rows_and_longer_rows_take_more_memory_and_checkpointing_less() -> None:
    def required(**options: Any) -> int:
        return autopeft.estimate(model="llama-3-8b", hardware="a100-80gb", **options).required_bytes

    assert required(batch_size=2) > required()
    assert required(sequence_length=2048) > required()
    assert required(activation_checkpointing=True) < required()
    assert required(quantization="nf4") < required(quantization="int8") < required()
    assert required(quantization="nf4", double_quantization=False) > required(quantization="nf4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
        ({"double_quantization": True}, "double_quantization belongs to nf4"),
        ({"peft_config": "a.json", "r": 4}, "peft_config takes the place of r; give one or the other"),
        ({"target_modules": "q_prj"}, "Did you mean 'q_proj'"),
        ({"r": -1}, "r must be a whole number of at least 1, not -1"),
    ],
)
def test_estimate_refuses_what_it_cannot_mean(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        autopeft.estimate(model="llama-3-8b", hardware="a100-80gb", **options)


def test_an_unknown_objective_names_the_known_ones(suggest: Suggest) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown objective 'sped'; known: .*Did you mean 'speed'"):
        suggest(objective="sped")


def test_one_target_module_may_be_given_as_a_text() -> None:
    one, several = (
        autopeft.estimate(model="llama-3-8b", hardware="a100-80gb", target_modules=targets)
        for targets in ("q_proj", ["q_proj"])
    )
    assert one == several


# Run


def test_a_run_returns_a_report_and_prints_nothing(
    plan: Recommendation, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    report = autopeft.run(plan, trials=2, dry_run=True, output=tmp_path / "run", on_event=events.append)
    assert capfd.readouterr() == ("", "")
    assert report.verdict.to_dict() == json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert len(report.trials) == len((tmp_path / "run" / "results.jsonl").read_text().splitlines())
    assert all(Path(path).exists() for path in (report.html, report.markdown, report.adapter_folder))
    assert "SIMULATED" in (Path(report.adapter_folder) / "README.md").read_text()
    assert events[0].kind == "stage"
    assert events[-1].kind == "verdict"


def test_a_dry_run_has_the_rows_of_the_data(plan: Recommendation, tmp_path: Path) -> None:
    autopeft.run(plan, trials=1, dry_run=True, output=tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "manifest.json").read_text())["rows"]
    assert sum(rows.values()) == plan.data.example_count == 300


def test_a_run_works_in_a_thread(plan: Recommendation, tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(autopeft.run(plan, trials=1, dry_run=True, output=tmp_path / "run"))
    )
    thread.start()
    thread.join(60)
    assert found[0].verdict.winner.method == "lora"


def test_a_run_works_from_a_bare_script_without_a_terminal(config_folder: Path, rows: Path) -> None:
    script = rows.parent / "script.py"
    script.write_text(
        "import sys, autopeft\n"
        "model, data = sys.argv[1:]\n"
        "report = autopeft.run(model=model, data=data, methods='lora', trials=1, dry_run=True, output='run')\n"
        "sys.exit(0 if report.verdict.conclusion else 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py", str(config_folder), str(rows)],
        cwd=rows.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_plan_or_its_inputs_but_not_both(plan: Recommendation, config_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="the plan already says model, effective_batch_size; leave them out"):
        autopeft.run(plan, model=config_folder, effective_batch_size=4, dry_run=True, output=tmp_path / "run")
    with pytest.raises(InvalidInputError, match="the plan already says objective, serve; leave them out"):
        autopeft.run(plan, objective="speed", serve="vllm", dry_run=True, output=tmp_path / "run")
    with pytest.raises(InvalidInputError, match=r"give a plan\.json, or a model and data"):
        autopeft.run(model=config_folder, dry_run=True, output=tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "at least one trial, not 0"),
        ({"time_budget": "soon"}, "'soon' is no duration"),
        ({"time_budget": -1}, "a time budget must be a positive number of seconds, not -1"),
    ],
)
def test_a_wrong_option_of_a_run_leaves_no_folder(
    plan: Recommendation, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        autopeft.run(plan, dry_run=True, output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_resumed_from_another_folder(
    config_folder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    report = autopeft.run(model=config_folder, data=rows.name, methods="lora", trials=1, dry_run=True, output=folder)
    monkeypatch.chdir(folder.parent)
    assert autopeft.run(resume=True, output="run").verdict.winner == report.verdict.winner


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"trials": 3}, "trials"),
        ({"seed": 0}, "seed"),
        ({"time_budget": "1h"}, "time_budget"),
        ({"dry_run": True}, "dry_run"),
        ({"model": "m", "methods": "lora"}, "model, methods"),
        ({"plan": "plan.json"}, "plan"),
    ],
)
def test_a_resumed_run_takes_nothing_but_its_folder(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=f"leave out {named}, or start another run"):
        autopeft.run(resume=True, output=tmp_path, **options)


class Stop:
    """Raises an error at the first event of a kind."""

    def __init__(self, kind: str, error: BaseException) -> None:
        self.kind = kind
        self.error = error

    def __call__(self, event: Event) -> None:
        if event.kind == self.kind:
            raise self.error


@pytest.mark.parametrize("kind", ["prepared", "schedule", "trial-end", "score", "verdict"])
def test_ctrl_c_at_any_stage_reports_what_there_is_and_resume_goes_on(
    plan: Recommendation, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InterruptedRunError, match=f"go on with: autopeft run --resume --output {folder}"):
        autopeft.run(plan, trials=2, dry_run=True, output=folder, on_event=Stop(kind, KeyboardInterrupt()))
    assert (folder / "report.md").exists()
    assert (folder / "report.html").exists()
    assert autopeft.run(resume=True, output=folder).verdict.winner.method == "lora"


def test_an_error_of_the_report_does_not_hide_the_real_one(
    plan: Recommendation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(record: object) -> str:
        raise RuntimeError("the report is broken")

    monkeypatch.setattr("autopeft.report.render_html", broken)
    with pytest.raises(ZeroDivisionError, match="the real one"):
        autopeft.run(
            plan,
            trials=1,
            dry_run=True,
            output=tmp_path / "run",
            on_event=Stop("trial-end", ZeroDivisionError("the real one")),
        )
    assert (tmp_path / "run" / "report.md").exists()


def test_an_error_of_the_report_alone_is_told(
    plan: Recommendation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(record: object) -> str:
        raise RuntimeError("the report is broken")

    monkeypatch.setattr("autopeft.report.render_html", broken)
    with pytest.raises(RuntimeError, match="the report is broken"):
        autopeft.run(plan, trials=1, dry_run=True, output=tmp_path / "run")
    monkeypatch.undo()
    assert Path(autopeft.run(resume=True, output=tmp_path / "run").html).exists()


def test_a_full_disk_is_said_in_one_sentence(plan: Recommendation, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(
        RunFolderError, match=r"no space left on the disk of .*; free some, then go on with: autopeft run"
    ):
        autopeft.run(plan, trials=1, dry_run=True, output=tmp_path / "run", on_event=Stop("trial-end", full))


def test_a_failed_run_can_be_continued_in_the_same_process(plan: Recommendation, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        autopeft.run(
            plan, trials=1, dry_run=True, output=tmp_path / "run", on_event=Stop("schedule", ZeroDivisionError())
        )
    assert autopeft.run(resume=True, output=tmp_path / "run").verdict.conclusion


@pytest.mark.parametrize("kind", ["stage", "prepared"])
def test_a_run_that_fails_before_its_schedule_leaves_its_folder_free(
    plan: Recommendation, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        autopeft.run(plan, trials=1, dry_run=True, output=folder, on_event=Stop(kind, ZeroDivisionError()))
    assert not folder.exists()
    assert autopeft.run(plan, trials=1, dry_run=True, output=folder).verdict.conclusion


def test_a_resumed_run_that_fails_before_its_schedule_keeps_its_folder(plan: Recommendation, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for resume, error in ((False, KeyboardInterrupt()), (True, ZeroDivisionError())):
        inputs: dict[str, Any] = {"resume": True} if resume else {"plan": plan, "trials": 1, "dry_run": True}
        with pytest.raises((InterruptedRunError, ZeroDivisionError)):
            autopeft.run(**inputs, output=folder, on_event=Stop("prepared", error))
    assert autopeft.run(resume=True, output=folder).verdict.conclusion


def test_a_plan_of_relative_paths_runs_from_another_folder(
    config_folder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    plan = autopeft.suggest(model=config_folder, data=rows.name, methods="lora")
    assert (plan.data.source, plan.data.files) == (rows.name, (str(rows),))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert autopeft.run(plan, trials=1, dry_run=True, output="run").verdict.conclusion


def test_data_that_were_moved_are_named(plan: Recommendation, rows: Path, tmp_path: Path) -> None:
    rows.rename(rows.with_name("moved.jsonl"))
    with pytest.raises(DataError, match=r"the plan names the data .*rows\.jsonl, which is not there; was it moved\?"):
        autopeft.run(plan, trials=1, dry_run=True, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_changed_data_is_refused_on_resume_and_the_folder_is_given_free(
    plan: Recommendation, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    autopeft.run(plan, trials=1, dry_run=True, output=folder)
    content = rows.read_bytes()
    rows.write_bytes(content + b'{"prompt": "new", "completion": "row"}\n')
    with pytest.raises(RunFolderError, match="the data has changed since the plan was made"):
        autopeft.run(resume=True, output=folder)
    rows.write_bytes(content)
    assert autopeft.run(resume=True, output=folder).verdict.conclusion


def test_the_same_seed_gives_the_same_search(plan: Recommendation, tmp_path: Path) -> None:
    def searched(name: str, seed: int) -> list[dict[str, Any]]:
        report = autopeft.run(plan, trials=4, dry_run=True, seed=seed, output=tmp_path / name)
        return [to_dict(trial.candidate) for trial in report.trials]

    assert searched("one", 5) == searched("two", 5)
    assert searched("one again", 5) != searched("three", 6)


def test_a_plan_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("{")
    with pytest.raises(InvalidInputError, match=r"plan\.json is no valid JSON"):
        api.read_plan(path)
    path.write_text("{}")
    with pytest.raises(InvalidInputError, match="is no plan of schema version 2"):
        api.read_plan(path)


def test_the_methods_are_described_as_json_data() -> None:
    described = api.describe_methods()
    assert [entry["name"] for entry in described] == sorted(method_names())
    assert json.loads(json.dumps(described)) == described


def test_errors_form_one_tree() -> None:
    assert issubclass(UnknownNameError, InvalidInputError)
    assert issubclass(InvalidInputError, AutoPeftError)
    assert {NothingFitsError.exit_code, InterruptedRunError.exit_code, AutoPeftError.exit_code} == {3, 130, 1}


def test_an_encoder_is_priced_but_not_trained(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 3, encoding="utf-8")
    plan = autopeft.suggest(model="all-minilm-l6-v2", data=data, hardware="cpu-16gb", methods=["lora"])
    assert plan.candidates
    with pytest.raises(AutoPeftError, match=r"trains causal language models; .* is an encoder"):
        autopeft.run(plan, output=tmp_path / "run", dry_run=True)


def test_labelled_texts_are_refused_with_the_mapping_that_trains_them(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": f"message {n}", "label": "spam" if n % 3 else "ham"} for n in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    inputs = {"model": "smollm2-135m-instruct", "data": data, "output": tmp_path / "run", "dry_run": True}
    with pytest.raises(AutoPeftError, match="--column prompt=TEXT_COLUMN --column completion=LABEL_COLUMN"):
        autopeft.run(**inputs)
    plan = autopeft.suggest(model="smollm2-135m-instruct", data=data, columns={"prompt": "text", "completion": "label"})
    assert plan.data.format == "prompt_completion"
