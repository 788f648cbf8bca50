"""Measures a full pass of `autopeft data` over a large JSON Lines file: throughput and peak memory.

    python benchmarks/data_profile.py [--model FOLDER] [--megabytes N] [--workers N] [--keep FILE]

Writes rows of real prose in ever new order, profiles them in a process of their own, and compares with the bare
tokenizer (``encode_batch`` of the tokenizers library on the same texts, nothing else done). Both the wall clock and the
processor time of the whole process tree are compared; where others are busy, only the second means something. Of a
folder with a GGUF file the tokenizer is written out first. Exits with 1 if peak memory exceeds the goal.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

GOAL_BYTES = 10**9
"""Peak resident memory of parent and workers together, for a file of 2 GB."""
BARE_BYTES = 8 * 10**6
"""Of the file's rows that the bare tokenizer is timed on."""
POLL_SECONDS = 0.2
SOURCE = Path(__file__).parents[1] / "data" / "kjv_to_web.jsonl"
_SENTENCES_A_ROW = (1, 12)


class Measured(NamedTuple):
    """What one process tree took."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


class Bare(NamedTuple):
    """What the bare tokenizer took for the first rows, and the tokens that it found."""

    wall_seconds: float
    cpu_seconds: float
    tokens: int


def main() -> int:
    """Measures, prints and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="folder with a tokenizer.json; without it lengths are estimated")
    parser.add_argument("--megabytes", type=int, default=200, help="size of the file, in 10^6 bytes")
    parser.add_argument("--workers", type=int, help="processes; default: one a core")
    parser.add_argument("--keep", help="write the file here and keep it; used if it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(options.keep) if options.keep else Path(folder) / "rows.jsonl"
        if not file.exists():
            write_rows(file, options.megabytes * 10**6)
        model = _with_tokenizer(Path(options.model), Path(folder)) if options.model else None
        return report(file, model, options.workers)


def _with_tokenizer(model: Path, scratch: Path) -> str:
    """Returns a folder with the model's tokenizer.json, which is written out of a GGUF file if need be."""
    gguf = next(iter(sorted(model.glob("*.gguf"))), None)
    if gguf is None or (model / "tokenizer.json").exists():
        return str(model)
    from transformers import AutoConfig, AutoTokenizer

    for part in (AutoConfig, AutoTokenizer):
        part.from_pretrained(model, gguf_file=gguf.name).save_pretrained(scratch / "model")
    return str(scratch / "model")


def report(file: Path, model: str | None, workers: int | None) -> int:
    """Prints the figures of a file; returns the exit code."""
    size = file.stat().st_size
    bare = [measure_bare(file, model)] if model else []
    command = [sys.executable, "-m", "autopeft", "data", str(file), "--json"]
    command += [*(["--model", model] if model else []), *(["--workers", str(workers)] if workers else [])]
    profiled = measure(command)
    profile = json.loads(profiled.output)
    print(
        f"file             {size / 1e6:,.0f} MB, {profile['example_count']:,} rows, {profile['total_tokens']:,} tokens"
    )
    print(f"profile          {profiled.wall_seconds:,.1f} s wall, {profiled.cpu_seconds:,.1f} s processor")
    print(f"                 {size / 1e6 / profiled.wall_seconds:.2f} MB a second by the wall clock")
    print(_per_core("                 ", size, profile["total_tokens"], profiled.cpu_seconds))
    if model:
        bare.append(measure_bare(file, model))
        _compare(size, profiled, bare)
    print(f"peak memory      {profiled.peak_bytes / 1e6:,.0f} MB over all processes (goal: {GOAL_BYTES / 1e6:,.0f})")
    return 0 if profiled.peak_bytes <= GOAL_BYTES else 1


def _per_core(name: str, size: int, tokens: int, cpu_seconds: float) -> str:
    return f"{name}{size / 1e6 / cpu_seconds:.2f} MB and {tokens / cpu_seconds:,.0f} tokens a second of processor time"


def _compare(size: int, profiled: Measured, bare: Sequence[Bare]) -> None:
    wall = sum(each.wall_seconds for each in bare) / len(bare)
    cpu = sum(each.cpu_seconds for each in bare) / len(bare)
    wall_ratio = (size / profiled.wall_seconds) / (BARE_BYTES / wall)
    cpu_ratio = (size / profiled.cpu_seconds) / (BARE_BYTES / cpu)
    print(f"bare tokenizer   {BARE_BYTES / 1e6 / wall:.2f} MB a second by the wall clock (mean of before and after)")
    print(_per_core("                 ", BARE_BYTES, bare[0].tokens, cpu))
    print(f"profile / bare   {wall_ratio:.2f} by the wall clock, {cpu_ratio:.2f} by processor time")


def write_rows(file: Path, size_bytes: int) -> None:
    """Writes prompt and completion rows of shuffled real sentences, all different, until the size is reached."""
    rows = [json.loads(line) for line in SOURCE.read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows]
    completions = [row["completion"] for row in rows]
    generator = random.Random(0)
    written = 0
    with file.open("w", encoding="utf-8") as stream:
        while written < size_bytes:
            count = generator.randint(*_SENTENCES_A_ROW)
            row = {"prompt": _joined(prompts, count, generator), "completion": _joined(completions, count, generator)}
            written += stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _joined(texts: Sequence[str], count: int, generator: random.Random) -> str:
    return " ".join(generator.choices(texts, k=count))


def measure_bare(file: Path, model: str) -> Bare:
    """Times the bare tokenizer on the first rows' texts; without starting up and reading."""
    process = subprocess.run(
        [sys.executable, __file__, "--bare", str(file), model], capture_output=True, text=True, check=True
    )
    wall, cpu, tokens = process.stdout.split()
    return Bare(float(wall), float(cpu), int(tokens))


def run_bare(file: str, model: str) -> None:
    """Encodes the first rows' texts in batches and prints the seconds by wall clock and processor, and the tokens."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    batches = list(_batches(file))
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = 0
    for batch in batches:
        tokens += sum(map(len, tokenizer.encode_batch(batch, add_special_tokens=False)))
    print(time.perf_counter() - wall, time.process_time() - cpu, tokens)


def _batches(file: str) -> Iterator[list[str]]:
    batch: list[str] = []
    read = 0
    with open(file, "rb") as stream:
        for line in stream:
            row = json.loads(line)
            batch.append(row["prompt"] + row["completion"])
            read += len(line)
            if len(batch) == 1000 or read >= BARE_BYTES:
                yield batch
                batch = []
            if read >= BARE_BYTES:
                return


def measure(command: list[str]) -> Measured:
    """Runs a command and watches its process tree."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(command, stdout=output)
        peak, cpu = 0, 0.0
        while process.poll() is None:
            resident, used = _tree(process)
            peak, cpu = max(peak, resident), max(cpu, used)
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
        output.seek(0)
        return Measured(time.perf_counter() - begin, cpu, peak, output.read())


def _tree(process: psutil.Process) -> tuple[int, float]:
    """Returns the resident bytes and the processor seconds of a process and its children, ended ones included."""
    resident, used = 0, 0.0
    try:
        for each in [process, *process.children(recursive=True)]:
            resident += each.memory_info().rss
            times = each.cpu_times()
            used += times.user + times.system
        times = process.cpu_times()
        used += times.children_user + times.children_system
    except psutil.Error:
        return resident, used
    return resident, used


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        run_bare(sys.argv[2], sys.argv[3])
    else:
        sys.exit(main())
