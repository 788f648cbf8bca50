"""Times a cold `autopeft suggest` for Llama-3-8B and 10,000 rows: a fresh process each time, from start to exit.

    python benchmarks/suggest_latency.py [--repetitions N]

The input is made here: a folder with Llama-3-8B's config.json and no weights, the same as a hub id on a small server
of this machine (its cache is warm after the first run), and a JSONL file of 10,000 chat rows. "model part" is the
processor time of `load_model` alone, its imports included. The time of `python -c pass` stands beside it, so that the
ratio can be compared between machines. Exits with 1 if the median exceeds the goal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GOAL_SECONDS = 1.5
ROWS = 10_000

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""The shape in the config.json of meta-llama/Meta-Llama-3-8B; the same as in profiles/models/llama-3-8b.yaml."""

_WORDS = ("a", "word", "of", "the", "kind", "that", "people", "write", "when", "asking", "something", "and", "so", "on")


class Run(NamedTuple):
    """What one process took; where others are busy, wall-clock time says less than processor time."""

    wall_seconds: float
    cpu_seconds: float


def main() -> int:
    """Measures, prints and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    with tempfile.TemporaryDirectory() as folder:
        model, data = _write_inputs(Path(folder))
        runs = {
            "python -c pass": _runs([sys.executable, "-c", "pass"], repetitions),
            "autopeft --help": _runs([sys.executable, "-m", "autopeft", "--help"], repetitions),
            "autopeft suggest": _runs(_suggest(str(model), data), repetitions),
        }
        parts = {"model part, folder": _model_part(str(model), repetitions)}
        with _hub(model, Path(folder)) as hub_id:
            runs["suggest, hub id"] = _runs(_suggest(hub_id, data), repetitions)
            parts["model part, hub id"] = _model_part(hub_id, repetitions)
    base = statistics.median(run.wall_seconds for run in runs["python -c pass"])
    print(f"{'command':18}  {'median':>8}  {'min':>8}  {'max':>8}  {'CPU':>8}  of python -c pass")
    for name, measured in runs.items():
        wall = [run.wall_seconds for run in measured]
        cpu = statistics.median(run.cpu_seconds for run in measured)
        columns = "  ".join(f"{value:7.3f}s" for value in (statistics.median(wall), min(wall), max(wall), cpu))
        print(f"{name:18}  {columns}  {statistics.median(wall) / base:5.1f} x")
    for name, cpu_seconds in parts.items():
        print(f"{name:18}  {'':31}{cpu_seconds:7.3f}s")
    reached = statistics.median(run.wall_seconds for run in runs["autopeft suggest"]) < GOAL_SECONDS
    print(f"goal: suggest under {GOAL_SECONDS} s: {'reached' if reached else 'MISSED'} ({repetitions} repetitions)")
    return 0 if reached else 1


def _write_inputs(folder: Path) -> tuple[Path, Path]:
    model, data = folder / "llama-3-8b", folder / "rows.jsonl"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA_3_8B), encoding="utf-8")
    generator = random.Random(0)
    with data.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            file.write(json.dumps(_row(number, generator)) + "\n")
    return model, data


def _suggest(model: str, data: Path) -> list[str]:
    inputs = ["--model", model, "--data", str(data), "--hardware", "a100-80gb"]
    return [sys.executable, "-m", "autopeft", "suggest", *inputs]


_MODEL_PART = """
import sys, time
begin = time.process_time()
from autopeft.profiling.model import load_model
load_model(sys.argv[1])
print(time.process_time() - begin)
"""


def _model_part(model: str, repetitions: int) -> float:
    """Returns the median processor time of ``load_model`` in a fresh process."""
    command = [sys.executable, "-c", _MODEL_PART, model]
    outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(repetitions)]
    return statistics.median(map(float, outputs))


@contextlib.contextmanager
def _hub(model: Path, scratch: Path) -> Iterator[str]:
    """Serves the model's folder as the hub does, and yields its id; the environment leads there meanwhile."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.unit.profiling.hub_server import MODEL, Hub, running

    with running(Hub(files={path.name: path.read_bytes() for path in model.iterdir()})) as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(scratch / "hub"), "NO_PROXY": "*"}
        yield MODEL


def _row(number: int, generator: random.Random) -> dict[str, object]:
    """Returns a chat of two turns, some 200 words in all, unlike every other."""
    question, answer = (" ".join(generator.choices(_WORDS, k=generator.randint(20, 180))) for _ in range(2))
    turns = [{"role": "user", "content": f"{number}: {question}"}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def _runs(command: list[str], repetitions: int) -> list[Run]:
    """Returns what each run took; the first, which fills the caches of the disk, is not counted."""
    return [_run(command) for _ in range(repetitions + 1)][1:]


def _run(command: list[str]) -> Run:
    before, begin = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Run(wall, cpu)


if __name__ == "__main__":
    sys.exit(main())
