"""The command line as a user and a pipeline meet it: results, exit codes and one clear sentence for each error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import autopeft
from autopeft.cli import main
from autopeft.methods import method_names
from autopeft.spaces import suggested_methods
from autopeft.specs import Recommendation

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "optuna", "plotly")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command line in this process."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(stop.value.code, captured.out, captured.err)  # type: ignore[arg-type]

    return run


def python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh process without a terminal; it may be slow where other work goes on."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False, **options
    )


CLI = "import sys; from autopeft.cli import main; main(sys.argv[1:])"


def suggest(config_folder: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return ("suggest", "--model", config_folder, "--data", rows, "--hardware", "a100-80gb", *more)


# What is imported


@pytest.mark.parametrize("arguments", [["--help"], ["suggest", "--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    watched = (*HEAVY, "numpy", "pyarrow", "rich", "jinja2")
    loaded = f"sys.stderr.write(repr(sorted(set({watched!r}) & set(sys.modules))))"
    code = f"import sys\nfrom autopeft.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n    {loaded}"
    done = python(code, *arguments)
    assert done.returncode == 0
    assert done.stderr == "[]"


def test_suggest_needs_nothing_of_the_training_stack_nor_optuna(config_folder: Path, rows: Path) -> None:
    code = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY!r}))\n{CLI}"  # None in sys.modules: the import fails
    done = python(code, *suggest(config_folder, rows, "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["candidates"]


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["suggest", "--trace", "1"], ["estimate", "--trace"]],
    ids=["run", "suggest --trace", "estimate --trace"],
)
def test_what_needs_the_training_stack_says_how_to_install_it(
    config_folder: Path, rows: Path, arguments: list[str]
) -> None:
    data = [] if arguments[0] == "estimate" else ["--data", rows]
    code = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY[:-2]!r}))\n{CLI}"
    done = python(code, *arguments, "--model", config_folder, *data, cwd=rows.parent)
    assert done.returncode == 1
    assert "needs the training stack; install it with: pip install 'autopeft[train]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in rows.parent.iterdir()) == ["rows.jsonl"]


# Suggest


def test_suggest_prints_a_plan_with_every_known_method(call: Call, config_folder: Path, rows: Path) -> None:
    outcome = call(*suggest(config_folder, rows, "--json"))
    assert outcome.code == 0
    plan = outcome.json
    assert plan["schema_version"] == 2
    assert {"seed", "inputs", "hardware", "model", "data", "candidates", "rejected", "baselines"} <= set(plan)
    told = {entry["method"] for entry in (*plan["candidates"], *plan["rejected"])}
    assert told == set(suggested_methods())
    assert all(entry["reason"] for entry in plan["rejected"])
    scores = [entry["score"] for entry in plan["candidates"]]
    assert scores == sorted(scores, reverse=True)


def test_json_is_a_plan_and_the_same_each_time(call: Call, config_folder: Path, rows: Path) -> None:
    first, second = (call(*suggest(config_folder, rows, "--json")).out for _ in range(2))
    assert first == second
    assert Recommendation.from_dict(json.loads(first)).inputs.hardware == "a100-80gb"


def test_suggest_writes_a_file_only_where_it_is_told_to(
    call: Call, config_folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    call(*suggest(config_folder, rows))
    assert [path.name for path in rows.parent.iterdir()] == ["rows.jsonl"]
    outcome = call(*suggest(config_folder, rows, "-o", "plan.json", "--json"))
    assert Path("plan.json").read_text(encoding="utf-8") == outcome.out
    assert outcome.err == "wrote plan.json; next: autopeft run plan.json\n"


def test_a_plan_that_no_run_can_follow_is_not_followed_by_the_command_for_it(
    call: Call, rows: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    outcome = call("suggest", "--model", "roberta-base", "--data", rows, "--hardware", "rtx-4090", "-o", plan)
    assert outcome.err == f"wrote {plan}\n"
    assert "this plan cannot be run: autopeft run trains causal language models" in " ".join(outcome.out.split())


def test_the_options_of_suggest_reach_the_plan(call: Call, config_folder: Path, rows: Path) -> None:
    options = ("--method", "dora", "--method", "lora", "--effective-batch-size", 4, "--max-length", 64, "--seed", 3)
    plan = call(*suggest(config_folder, rows, *options, "--budget-memory", "2GiB", "--json")).json
    assert plan["seed"] == 3
    assert {entry["method"] for entry in plan["candidates"]} == {"dora", "lora"}
    assert {entry["effective_batch_size"] for entry in plan["candidates"]} == {4}
    assert {entry["max_length"] for entry in plan["candidates"]} == {64}
    assert {entry["available_bytes"] for entry in plan["candidates"]} == {2 * 2**30}


def test_columns_can_be_mapped(call: Call, config_folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"frage": "1 + 1", "antwort": "2"}\n' * 40, encoding="utf-8")
    options = ("--column", "prompt=frage", "--column", "completion=antwort", "--json")
    assert call(*suggest(config_folder, odd, *options)).json["data"]["columns"] == {
        "prompt": "frage", "completion": "antwort",
    }  # fmt: skip


def test_nothing_fits_is_exit_code_3_with_the_smallest_estimate_and_what_helps(call: Call, rows: Path) -> None:
    outcome = call("suggest", "--model", "llama-3-8b", "--data", rows, "--hardware", "t4", "--budget-memory", "2GiB")
    assert outcome.code == 3
    assert outcome.out == ""
    assert "takes at least" in outcome.err
    assert "available are 2.00 GiB" in outcome.err
    assert "too little. What would help: --budget-memory" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["methods"], ["hardware"], ["hardware", "t4"], ["model", "llama-3-8b"], ["model"], ["--help"]]
)
def test_what_is_printed_into_a_pipe_has_80_columns_and_no_trailing_spaces(call: Call, arguments: list[str]) -> None:
    outcome = call(*arguments)
    lines = outcome.out.splitlines()
    assert outcome.code == 0
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line != line.rstrip()] == []


def test_objective_limits_prices_and_server_reach_the_plan(call: Call, config_folder: Path, rows: Path) -> None:
    options = ["--objective", "speed", "--max-time", "8h", "--max-cost", "20", "--price-per-hour", "2.5"]
    more = ["--price-per-kwh", "0.3", "--max-adapter-parameters", "100000", "--serve", "vllm"]
    plan = call(*suggest(config_folder, rows, *options, *more, "--json")).json
    inputs = plan["inputs"]
    assert (inputs["objective"], inputs["serve"], inputs["max_seconds"]) == ("speed", "vllm", 28_800.0)
    assert (inputs["max_cost"], inputs["price_per_hour"], inputs["price_per_kwh"]) == (20.0, 2.5, 0.3)
    assert inputs["max_adapter_parameters"] == 100_000
    first = plan["candidates"][0]
    hours = first["predicted_seconds"] / 3600
    assert first["predicted_cost"] == pytest.approx(2.5 * hours + 0.3 * first["energy_kwh"])
    assert first["energy_kwh"] == pytest.approx(0.4 * hours)  # an A100 SXM draws 400 W


def test_the_trade_offs_are_printed_with_the_front(call: Call, config_folder: Path, rows: Path) -> None:
    printed = call(*suggest(config_folder, rows)).out
    table = printed.partition("Trade-offs")[2].partition("Why")[0]
    assert "quality" in table
    assert "on front" in table
    assert "yes" in table


def test_explain_says_why_the_first_is_the_first_and_what_would_change_that(
    call: Call, config_folder: Path, rows: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    assert call(*suggest(config_folder, rows, "--method", "lora", "--method", "dora", "-o", plan)).code == 0
    told = call("explain", plan, "--json").json
    assert told["first"].startswith(("lora", "dora"))
    assert {"10 % less memory", "twice the data"} <= {change["change"] for change in told["changes"]}
    assert {"adalora", "full"} <= {entry["method"] for entry in told["rejected"]}
    printed = call("explain", plan).out
    assert max(map(len, printed.splitlines())) <= 80
    for heading in ("Why the first is the first", "What would change the answer", "Rejected"):
        assert heading in printed


def test_explain_refuses_what_is_no_plan(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("{}")
    outcome = call("explain", path)
    assert (outcome.code, outcome.out) == (1, "")
    assert "is no plan of schema version" in outcome.err


def test_the_table_of_suggest_has_80_columns(call: Call, config_folder: Path, rows: Path) -> None:
    lines = call(*suggest(config_folder, rows.rename(rows.parent / "r.jsonl"))).out.splitlines()
    # The path of the data is as long as it is.
    assert max(len(line) for line in lines if not line.startswith("data ")) <= 80
    assert len(lines) < 110  # reasons, trade-offs and notes beside the table


# Estimate


def test_estimate_prints_the_keys_of_the_issue(call: Call) -> None:
    outcome = call(
        "estimate", "--model", "llama-3-8b", "--method", "lora", "--rank", 16, "--alpha", 16,
        "--target-modules", "q_proj,v_proj", "--quantization", "nf4", "--dtype", "bfloat16", "--batch-size", 4,
        "--sequence-length", 4096, "--activation-checkpointing", "--optimizer", "adamw_torch", "--trainer",
        "transformers", "--hardware", "a100-80gb", "--attention", "sdpa", "--adapter-dtype", "bfloat16", "--json",
    )  # fmt: skip
    content = outcome.json
    named = {"peak_memory_bytes", "peak_reserved_bytes", "required_bytes", "components", "trainable_parameters"}
    assert named | {"seconds_per_step", "source", "assumptions"} <= set(content)
    assert content["source"] == "closed_form"
    # 32 layers x r 16 x ((4096 + 4096) + (4096 + 1024)), from the model's config.json
    assert content["trainable_parameters"] == 32 * 16 * (8192 + 5120)
    assert sum(content["components"].values()) == content["peak_memory_bytes"] < content["required_bytes"]


def test_the_table_of_estimate_says_what_is_required(call: Call) -> None:
    outcome = call("estimate", "--model", "llama-3-8b", "--hardware", "a100-80gb")
    assert outcome.code == 0
    assert outcome.out.startswith("required ")
    assert "found by                  closed form" in outcome.out


def test_preparing_for_kbit_training_changes_nothing_on_a_16_bit_base(call: Call) -> None:
    plain, prepared, quantized = (
        call("estimate", "--model", "llama-3-8b", "--hardware", "a100-80gb", "--json", *options).json
        for options in ((), ("--prepare-kbit",), ("--prepare-kbit", "--quantization", "nf4"))
    )
    assert plain == prepared
    assert quantized != plain


def test_full_fine_tuning_takes_no_adapter_options(call: Call) -> None:
    fixed = ("estimate", "--model", "llama-3-8b", "--method", "full", "--hardware", "a100-80gb")
    assert call(*fixed, "--json").json["trainable_parameters"] == 8_030_261_248  # as the model card counts
    outcome = call(*fixed, "--rank", 8, "--alpha", 8)
    assert outcome == Outcome(1, "", "autopeft: method 'full' has no adapter; leave out r, lora_alpha\n")


def test_a_saved_adapter_configuration_takes_the_place_of_the_options(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}))
    fixed = ("estimate", "--model", "llama-3-8b", "--hardware", "a100-80gb", "--peft-config", path)
    # 32 layers x r 4 x (4096 + 4096)
    assert call(*fixed, "--json").json["trainable_parameters"] == 32 * 4 * 8192
    outcome = call(*fixed, "--rank", 8)
    assert outcome == Outcome(1, "", "autopeft: peft_config takes the place of r; give one or the other\n")


@pytest.mark.slow
def test_a_traced_plan_says_which_candidates_were_traced(config_folder: Path, rows: Path) -> None:
    arguments = suggest(config_folder, rows, "--method", "lora", "--method", "dora", "--trace", 1, "--json")
    done = python(CLI, *arguments)
    assert done.returncode == 0, done.stderr
    sources = [entry["estimate"]["source"] for entry in json.loads(done.stdout)["candidates"]]
    assert sorted(sources) == ["closed_form"] * (len(sources) - 1) + ["traced"]


@pytest.mark.slow
def test_a_configuration_that_only_a_trace_can_price_is_traced(config_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}))
    done = python(CLI, "estimate", "--model", config_folder, "--peft-config", path, "--hardware", "t4", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["source"] == "traced"
    assert content["trainable_parameters"] == 2 * 64  # layers x width of q_proj's output
    assert content["assumptions"][0] == "traced, since the closed form does not know the peft type IA3"


# The registry and the profiles


def test_the_registry_and_the_profiles_are_printed_as_json(call: Call, config_folder: Path, rows: Path) -> None:
    methods = call("methods", "--json").json
    assert [entry["name"] for entry in methods] == sorted(method_names())
    assert all(entry["paper"].startswith("https://") and entry["space"]["parameters"] for entry in methods)
    assert call("hardware", "t4", "--json").json["devices"][0]["compute_capability"] == [7, 5]
    assert call("hardware", "--json").json["origin"] == "probed"
    assert call("model", config_folder, "--json").json["layers"] == 2
    assert "llama-3-8b" in call("model", "--json").json
    assert call("data", rows, "--model", config_folder, "--json").json["example_count"] == 300


def test_the_version_is_printed_by_the_command_and_by_the_module(call: Call) -> None:
    assert call("--version").out == f"autopeft, version {autopeft.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"autopeft, version {autopeft.__version__}\n"


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./no/such"], "no such folder or file: ./no/such"),
        (["--model", "{empty}"], "holds no config.json and no .gguf file"),
        (["--model", "llama-3-9b"], "unknown model 'llama-3-9b'"),
        (["--data", "{broken}"], "broken.jsonl:2 is not valid JSON"),
        (["--data", "{blank}"], "the data set is empty"),
        (["--data", "{odd}"], "Map your columns, for example: --column"),
        (["--data", "./gone.jsonl"], "no data file or folder './gone.jsonl'"),
        (["--hardware", "rtx-409"], "Did you mean 'rtx-4090'"),
        (["--hardware", "./gone.yaml"], "gone.yaml"),
        (["--method", "lroa"], "unknown PEFT method 'lroa'"),
        (["--max-length", "100000"], "max_length 100000 is not possible"),
        (["-o", "{empty}/no/plan.json"], "cannot write"),
        (["-o", "/dev/full"], "cannot write /dev/full: No space left on device"),
    ],
)
def test_an_error_is_one_sentence_on_stderr(
    call: Call, config_folder: Path, rows: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {name: tmp_path / f"{name}.jsonl" for name in ("broken", "blank", "odd")} | {"empty": tmp_path / "empty"}
    places["empty"].mkdir()
    places["broken"].write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    places["blank"].write_text("")
    places["odd"].write_text('{"foo": "a", "bar": "b"}\n')
    inputs: dict[str, object] = {"--model": config_folder, "--data": rows, "--hardware": "a100-80gb"}
    inputs |= {arguments[0]: arguments[1].format(**places)}
    outcome = call("suggest", *(part for pair in inputs.items() for part in pair))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("autopeft: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("place", [0, -1], ids=["before the command", "after it"])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(call: Call, rows: Path, place: int) -> None:
    arguments: list[object] = ["suggest", "--model", "llama-3-8b", "--data", rows, "--budget-memory", "1GiB"]
    arguments.insert(place if place == 0 else len(arguments), "--debug")
    outcome = call(*arguments)
    assert outcome.code == 3
    assert "Traceback (most recent call last)" in outcome.err
    assert "autopeft: nothing fits" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["suggest"],
        ["suggest", "--model", "m"],
        ["suggest", "--model", "m", "--data", "d", "--budget-memory", "much"],
        ["suggest", "--model", "m", "--data", "d", "--column", "prompt"],
        ["run", "--time-budget", "soon"],
        ["run", "--trials", "0"],
        ["estimate", "--model", "m", "--rank", "0"],
        ["estimate", "--model", "m", "--optimizer", "adamw"],
        ["estimate", "--model", "m", "--peft-config", "/no/such/file.json"],
    ],
)
def test_a_wrong_call_is_exit_code_2(call: Call, arguments: list[str]) -> None:
    outcome = call(*arguments)
    assert outcome.code == 2
    assert "Usage: autopeft" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_bug_is_called_a_bug_and_no_traceback_is_shown(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("autopeft.profiling.hardware.load_hardware", broken)
    outcome = call("hardware", "t4")
    assert outcome.code == 1
    assert outcome.err.startswith(
        "autopeft: this is a bug in autopeft (KeyError: 't4'); repeat the command with --debug"
    )
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["methods"], ["hardware", "t4", "--json"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "autopeft", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


# Run


@pytest.fixture
def plan(call: Call, config_folder: Path, rows: Path) -> Path:
    """A plan of two methods for this machine."""
    path = rows.parent / "plan.json"
    arguments = ("--model", config_folder, "--data", rows, "--method", "lora", "--method", "dora", "-o", path)
    assert call("suggest", *arguments).code == 0
    return path


def test_a_dry_run_writes_the_whole_run_folder_and_can_be_resumed(call: Call, plan: Path) -> None:
    folder = plan.parent / "run"
    outcome = call("run", plan, "--dry-run", "--trials", 3, "--time-budget", "2h", "-o", folder, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json == json.loads((folder / "verdict.json").read_text())
    assert any("SIMULATED" in caveat for caveat in outcome.json["caveats"])
    assert "trial-0000" in outcome.err
    written = {path.name for path in folder.iterdir()}
    assert written >= {
        "plan.json", "manifest.json", "study.journal", "results.jsonl", "verdict.json", "report.md", "report.html",
        "adapter", "recipe.yaml",
    }  # fmt: skip
    lines = (folder / "results.jsonl").read_bytes()
    again = call("run", "--resume", "--output", folder)
    assert again.code == 0
    assert again.out.startswith("Verdict\n")
    assert f"report   {folder / 'report.html'}" in again.out
    assert (folder / "results.jsonl").read_bytes() == lines


def test_a_folder_with_another_run_is_refused(call: Call, plan: Path) -> None:
    folder = plan.parent / "run"
    arguments = ("run", plan, "--dry-run", "--trials", 1, "--output", folder)
    assert call(*arguments).code == 0
    before = (folder / "results.jsonl").read_bytes()
    outcome = call(*arguments)
    assert outcome.code == 1
    assert f"{folder} holds another run; continue it with: autopeft run --resume --output {folder}" in outcome.err
    assert (folder / "results.jsonl").read_bytes() == before


def test_changed_data_under_an_old_plan_is_refused_before_anything_is_written(
    call: Call, plan: Path, rows: Path
) -> None:
    with rows.open("a") as file:
        file.write('{"prompt": "new", "completion": "row"}\n')
    outcome = call("run", plan, "--dry-run", "--output", plan.parent / "run")
    assert outcome.code == 1
    assert "the data has changed since the plan was made" in outcome.err
    assert "make a new plan: autopeft suggest" in outcome.err
    assert not (plan.parent / "run").exists()


def test_a_plan_for_other_hardware_is_priced_again_with_a_note(call: Call, config_folder: Path, rows: Path) -> None:
    plan, folder = rows.parent / "plan.json", rows.parent / "run"
    assert call(*suggest(config_folder, rows, "--method", "lora", "-o", plan)).code == 0
    outcome = call("run", plan, "--dry-run", "--trials", 1, "--output", folder)
    assert outcome.code == 0, outcome.err
    note = "the plan was made for NVIDIA A100-SXM4-80GB with 80.00 GiB free and was priced again for"
    assert note in outcome.err
    saved = json.loads((folder / "plan.json").read_text())
    assert saved["notes"][0].startswith(note)
    assert saved["hardware"]["origin"] == "probed"
    assert note in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--dry-run"], "give a plan.json, or a model and data to make a plan from (--model and --data)"),
        (["run", "gone.json", "--dry-run"], "cannot read the plan gone.json: No such file or directory; make one"),
        (["run", "{plan}", "--dry-run", "--model", "x"], "the plan already says model; leave them out"),
        (["run", "--resume"], "resume needs the run folder: --output DIR"),
        (["run", "--resume", "--output", "gone"], "holds no run (it has no manifest.json)"),
        (["run", "--resume", "--output", "gone", "--trials", "9", "--dry-run"], "leave out trials, dry_run"),
    ],
)
def test_a_run_that_cannot_start_says_why(call: Call, plan: Path, arguments: list[str], message: str) -> None:
    outcome = call(*(argument.format(plan=plan) for argument in arguments))
    assert (outcome.code, outcome.out) == (1, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


STOPPED_IN_THE_THIRD_TRAINING = """
import os, signal, sys, time
from autopeft.cli import main
from autopeft.training.fake import FakeRunner

kind, trained, count = sys.argv[1], FakeRunner.train, 0
if kind == "SIGTERM":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job of a shell

def train(self, request, go_on):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), getattr(signal, kind))
        time.sleep(30)
    return trained(self, request, go_on)

FakeRunner.train = train
main(sys.argv[2:])
"""


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_an_interrupted_run_ends_with_130_reports_what_it_has_and_goes_on(call: Call, plan: Path, kind: str) -> None:
    folder = plan.parent / "run"
    arguments = ("run", plan, "--dry-run", "--trials", 3, "--output", folder)
    done = python(STOPPED_IN_THE_THIRD_TRAINING, kind, *arguments, env=dict(os.environ))
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == (
        f"autopeft: interrupted; what is finished is kept; go on with: autopeft run --resume --output {folder}"
    )
    kept = (folder / "results.jsonl").read_bytes()
    assert kept.count(b"\n") == 1  # the calibration is no trial
    assert "This run has no verdict yet" in (folder / "report.md").read_text()
    assert (folder / "report.html").exists()
    assert call("run", "--resume", "--output", folder).code == 0
    assert (folder / "results.jsonl").read_bytes().startswith(kept)
    assert (folder / "verdict.json").exists()


def test_two_processes_print_the_same_plan_byte_for_byte(config_folder: Path, rows: Path) -> None:
    """Hashes of texts differ between processes, and so does the order of sets."""
    code = "import sys; from autopeft.cli import main; main(sys.argv[1:])"
    arguments = suggest(config_folder, rows, "--serve", "vllm", "--price-per-hour", "2", "--json")
    first, second = (python(code, *arguments).stdout for _ in range(2))
    assert first
    assert first == second
