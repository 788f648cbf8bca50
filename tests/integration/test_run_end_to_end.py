"""A whole real run on a tiny model: search, verdict, files, adapter, kill and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import autopeft
from autopeft.profiling.dataset import read_examples
from autopeft.profiling.encoding import encode_examples
from autopeft.specs import Report

METHODS = ("lora", "rslora", "dora", "loftq", "adalora")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def report(tiny_model: Path, number_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return autopeft.run(
        model=tiny_model,
        data=number_data,
        methods=METHODS,
        effective_batch_size=4,
        trials=6,
        output=tmp_path_factory.mktemp("runs") / "whole",
    )


def test_every_method_completes_a_trial(report: Report) -> None:
    complete = {line["method"] for line in lines_of(Path(report.folder)) if line["status"] == "complete"}
    assert complete == set(METHODS)


def test_the_run_folder_holds_all_that_the_docs_name(report: Report) -> None:
    folder = Path(report.folder)
    names = "plan.json manifest.json study.journal results.jsonl verdict.json report.md report.html recipe.yaml adapter"
    assert [name for name in names.split() if not (folder / name).exists()] == []


def test_a_results_line_says_what_was_tried_and_what_came_out(report: Report) -> None:
    keys = {"method", "r", "status", "eval_loss", "tokens", "seconds", "predicted_peak_bytes", "measured_peak_bytes",
            "rank_pattern", "quantization_error_before", "quantization_error_after", "seed", "versions"}  # fmt: skip
    lines = lines_of(Path(report.folder))
    assert all(keys <= set(line) for line in lines)
    assert all(line["measured_peak_bytes"] > 0 for line in lines if line["status"] == "complete")
    assert all(line["versions"]["peft"] for line in lines)


def test_methods_are_compared_at_equal_tokens(report: Report) -> None:
    tokens = {line["tokens"] for line in lines_of(Path(report.folder)) if line["stage"] == "search"
              and line["status"] == "complete"}  # fmt: skip
    assert len(tokens) == 1


def test_adalora_ends_with_its_rank_budget(report: Report) -> None:
    line = next(line for line in lines_of(Path(report.folder)) if line["method"] == "adalora")
    pattern = line["rank_pattern"]
    assert len(pattern) == 14  # seven linear modules in each of two layers
    assert sum(pattern.values()) == line["r"] * len(pattern)


def test_loftq_lowers_the_quantization_error_of_every_layer(report: Report) -> None:
    line = next(line for line in lines_of(Path(report.folder)) if line["method"] == "loftq")
    before, after = line["quantization_error_before"], line["quantization_error_after"]
    assert set(before) == set(after)
    assert len(before) == 14
    assert all(after[layer] < before[layer] for layer in before)


def test_the_verdict_compares_with_the_base_and_plain_lora_on_the_test_split(report: Report) -> None:
    losses = report.verdict.losses
    assert losses["winner"] < losses["untouched-base"]
    assert {comparison.right for comparison in report.verdict.comparisons} >= {"untouched-base", "plain-lora"}
    for comparison in report.verdict.comparisons:
        assert comparison.low <= comparison.difference <= comparison.high


def test_the_splits_are_disjoint_and_written_down(report: Report) -> None:
    numbers = json.loads((Path(report.folder) / "splits.json").read_text(encoding="utf-8"))["facts"]["row_numbers"]
    rows = [row for split in ("train", "choose", "test") for row in numbers[split]]
    assert sorted(rows) == list(range(200))


def test_the_adapter_scores_elsewhere_as_it_was_reported(
    report: Report, tiny_model: Path, number_data: Path, tmp_path: Path
) -> None:
    """A fresh process with transformers and peft alone recomputes the loss of the test split."""
    splits = json.loads((Path(report.folder) / "splits.json").read_text(encoding="utf-8"))
    examples = read_examples([str(number_data)], "prompt_completion", {"prompt": "prompt", "completion": "completion"})
    encoded = encode_examples(tiny_model, examples)
    rows = [encoded[number] for number in splits["facts"]["row_numbers"]["test"]]
    winner = report.verdict.winner
    task = {
        "base": str(tiny_model),
        "adapter": report.adapter_folder,
        "dtype": winner.dtype,
        "nf4": winner.quantization == "nf4",
        "rows": [[list(row.input_ids), list(row.supervised)] for row in rows],
    }
    (tmp_path / "task.json").write_text(json.dumps(task), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", RECOMPUTE, str(tmp_path / "task.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(report.verdict.losses["winner"], abs=1e-3)


RECOMPUTE = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
task = json.load(open(sys.argv[1]))
dtype = getattr(torch, task["dtype"])
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                         bnb_4bit_compute_dtype=dtype) if task["nf4"] else None
base = AutoModelForCausalLM.from_pretrained(task["base"], dtype=dtype, quantization_config=nf4)
model = PeftModel.from_pretrained(base, task["adapter"]).eval()
loss = count = 0.0
for tokens, supervised in task["rows"]:
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    for begin, end in supervised:
        begin = max(begin, 1)
        loss += float(losses[begin - 1:end - 1].sum())
        count += end - begin
print(loss / count)
"""


def start(tiny_model: Path, number_data: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autopeft", "run", "--model", str(tiny_model), "--data", str(number_data),
               "--method", "lora", "--method", "adalora", "--effective-batch-size", "4", "--trials", "3",
               "--output", str(output), *more]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_line(output: Path, count: int) -> None:
    deadline = time.monotonic() + 240
    while not (output / "results.jsonl").exists() or len(lines_of(output)) < count:
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.05)


def outcome_by_candidate(output: Path) -> dict[str, Any]:
    return {
        json.dumps([line["method"], line["r"], line["learning_rate"], line["stage"]]): (
            line["eval_loss"],
            line["rank_pattern"],
        )
        for line in lines_of(output)
        if line["status"] == "complete"
    }


def test_kill_9_and_resume_ends_as_an_uninterrupted_run(tiny_model: Path, number_data: Path, tmp_path: Path) -> None:
    whole = start(tiny_model, number_data, tmp_path / "whole")
    text, _ = whole.communicate(timeout=400)
    assert whole.returncode == 0, text

    killed = start(tiny_model, number_data, tmp_path / "killed")
    wait_for_line(tmp_path / "killed", 1)
    workers = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "a worker outlived its parent"
    finished = [line["name"] for line in lines_of(tmp_path / "killed")]

    resumed = subprocess.run(
        [sys.executable, "-m", "autopeft", "run", "--resume", "--output", str(tmp_path / "killed")],
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert [line["name"] for line in lines_of(tmp_path / "killed")][: len(finished)] == finished
    assert outcome_by_candidate(tmp_path / "killed") == outcome_by_candidate(tmp_path / "whole")


def test_ctrl_c_stops_with_130_and_says_how_to_go_on(tiny_model: Path, number_data: Path, tmp_path: Path) -> None:
    run = start(tiny_model, number_data, tmp_path / "run")
    wait_for_line(tmp_path / "run", 1)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    text, _ = run.communicate(timeout=60)
    assert run.returncode == 130, text
    assert "autopeft run --resume --output" in text
    assert "Traceback" not in text
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert (tmp_path / "run" / "report.html").exists()
