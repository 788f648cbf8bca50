"""The streaming pass: blocks, workers, samples and shuffles change nothing but the speed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import DataError, WorkerError
from autopeft.profiling._files import hash_and_count, hash_files
from autopeft.profiling.dataset import Reading, first_look, profile_dataset
from autopeft.profiling.scan import blocks, pool, survey
from autopeft.profiling.scan.blocks import Block, iter_blocks, sampled_blocks
from autopeft.profiling.scan.copies import find_copies, find_shared
from autopeft.profiling.scan.sampling import rank_of, threshold_for
from autopeft.profiling.scan.scanner import ScanTask
from autopeft.specs import DatasetProfile, ModelSpec, to_json


@pytest.fixture(scope="module")
def folder_model(word_model: ModelSpec) -> ModelSpec:
    """A model with a token for every word and a context of 64 tokens."""
    return replace(word_model, context_length=64)


def write_lines(file: Path, lines: Sequence[str]) -> str:
    """Writes lines and returns the file."""
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(file)


def some_lines(rows: int, seed: int = 0) -> list[str]:
    """Returns rows of all lengths, with copies, blank lines and rows that do not fit among them."""
    generator = random.Random(seed)
    lines = []
    for row in range(rows):
        words = " ".join(generator.choices(["a", "b", "ähm", "1"], k=generator.randint(1, 100)))
        lines.append(json.dumps({"prompt": f"question {row % (rows - 3)}", "completion": words}, ensure_ascii=False))
        lines += [lines[-1]] * (row % 11 == 0) + [""] * (row % 7 == 0) + ['{"prompt": 1}'] * (row % 13 == 0)
    return lines


def profile(file: str, model: ModelSpec, coverage: Any = "all", workers: int = 1, seed: int = 0) -> DatasetProfile:
    """Returns the profile of a file, without its rows that do not fit."""
    reading = Reading(coverage=coverage, workers=workers)
    return profile_dataset(file, model=model, on_bad_row="skip", reading=reading, seed=seed)


def test_one_worker_and_three_give_the_same_profile_byte_for_byte(tmp_path: Path, folder_model: ModelSpec) -> None:
    file = write_lines(tmp_path / "rows.jsonl", some_lines(400))
    with mock.patch.object(blocks, "BLOCK_BYTES", 4000):
        profiles = [to_json(profile(file, folder_model, workers=workers)) for workers in (1, 3)]
    assert profiles[0] == profiles[1]
    assert json.loads(profiles[0])["skipped_rows"] == 31


@settings(max_examples=15)
@given(st.integers(1, 3000), st.integers(0, 3))
def test_blocks_of_any_size_give_the_same_profile(
    tmp_path_factory: pytest.TempPathFactory, folder_model: ModelSpec, size: int, seed: int
) -> None:
    file = write_lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", some_lines(20, seed))
    whole = profile(file, folder_model, seed=seed)
    with mock.patch.object(blocks, "BLOCK_BYTES", size):
        assert profile(file, folder_model, seed=seed) == whole


COUNTS = ("example_count", "total_tokens", "max_tokens", "length_histogram", "truncation", "duplicate_count")


@settings(max_examples=10)
@given(st.randoms(use_true_random=False))
def test_a_shuffled_file_has_the_same_counts(
    tmp_path_factory: pytest.TempPathFactory, folder_model: ModelSpec, shuffler: random.Random
) -> None:
    lines = some_lines(20)
    shuffled = [*lines]
    shuffler.shuffle(shuffled)
    folder = tmp_path_factory.mktemp("rows")
    one, other = (
        profile(write_lines(folder / name, rows), folder_model)
        for name, rows in (("one.jsonl", lines), ("other.jsonl", shuffled))
    )
    for name in (*COUNTS, "skipped_rows", "scripts", "supervised_ratio", "task_kind", "token_quantiles", "padding"):
        assert getattr(one, name) == getattr(other, name)
    assert {(found.code, found.count) for found in one.findings} == {
        (found.code, found.count) for found in other.findings
    }


def test_a_sample_of_everything_counts_what_the_full_pass_counts(tmp_path: Path, folder_model: ModelSpec) -> None:
    file = write_lines(tmp_path / "rows.jsonl", some_lines(100))
    sample, full = (profile(file, folder_model, coverage) for coverage in ("sample", "all"))
    for name in (*COUNTS, "content_hash", "scripts", "supervised_ratio", "split_by", "task_kind", "coverage"):
        assert getattr(sample, name) == getattr(full, name)


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_profile(tmp_path: Path, folder_model: ModelSpec, suffix: str) -> None:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    rows = [json.loads(line) for line in some_lines(50) if line and "completion" in line]
    table = pyarrow.Table.from_pylist(rows)
    other = tmp_path / f"other.{suffix}"
    match suffix:
        case "json":
            other.write_text(json.dumps(rows))
        case "csv":
            pyarrow.csv.write_csv(table, other)
        case _:
            pyarrow.parquet.write_table(table, other)
    lines = profile(write_lines(tmp_path / "rows.jsonl", [json.dumps(row) for row in rows]), folder_model)
    with mock.patch.object(blocks, "BLOCK_ROWS", 7):
        found = profile(str(other), folder_model)
    for name in (*COUNTS, "supervised_ratio", "scripts"):
        assert getattr(found, name) == getattr(lines, name)


def test_places_are_told_in_files_of_many_blocks(tmp_path: Path, folder_model: ModelSpec) -> None:
    rows = [json.dumps({"text": f"text number {row}"}) for row in range(500)]
    rows[300:300] = ["", "", rows[7]]
    with mock.patch.object(blocks, "BLOCK_BYTES", 1000):
        found = profile(write_lines(tmp_path / "rows.jsonl", rows), folder_model)
    (copies,) = [finding for finding in found.findings if finding.code == "exact-duplicates"]
    assert copies.examples == ("rows.jsonl:303 repeats rows.jsonl:8",)


def test_a_large_file_is_sampled_in_places_all_over_it_and_says_so(tmp_path: Path, folder_model: ModelSpec) -> None:
    lines = [json.dumps({"text": f"{'a ' * (1 + row % 9)}{row}"}) for row in range(20_000)]
    file = write_lines(tmp_path / "rows.jsonl", lines)
    with mock.patch.object(survey, "SMALL_BYTES", 1000), mock.patch.object(blocks, "SAMPLED_BLOCK_BYTES", 1000):
        found = profile(file, folder_model, "sample")
        again = profile(file, folder_model, "sample")
        look = first_look(file, model=folder_model)
    assert found == again
    assert (found.coverage, found.sampled_examples) == ("sample", 2000)
    # Every line is a row, and lines are counted.
    assert found.example_count == 20_000
    assert found.mean_tokens == pytest.approx(6.0, rel=0.03)
    assert found.content_hash == hash_files([file])
    assert not look.exact
    assert look.rows == pytest.approx(20_000, rel=0.05)
    assert "text: about" in look.sentence


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 50))
def test_sampled_places_divide_a_file_into_its_lines(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], size: int
) -> None:
    lines = [json.dumps({"text": "x" * length}) for length in lengths]
    file = write_lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", lines)
    with mock.patch.object(blocks, "SAMPLED_BLOCK_BYTES", size), mock.patch.object(blocks, "SAMPLED_BLOCKS", 10**6):
        found = sampled_blocks([file], seed=0)
    assert b"".join(block.lines for block in found) == Path(file).read_bytes()
    offsets = [block.first_number - 1 for block in found]
    digest, before, count = hash_and_count([file], [offsets])
    assert (digest, count) == (hash_files([file]), len(lines))
    whole = Path(file).read_bytes()
    assert all(before[0, offset] == whole[:offset].count(b"\n") for offset in offsets)


def test_a_bad_row_in_a_full_pass_is_an_error_that_counts_all_of_them(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", some_lines(100))
    with pytest.raises(DataError, match=r"rows.jsonl:4: .*; 8 of 118 rows cannot be read or do not fit"):
        profile_dataset(file, model=None, reading=Reading(coverage="all"))


def test_progress_ends_at_the_size_of_the_files(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", some_lines(50))
    told: list[tuple[int, int]] = []
    with mock.patch.object(blocks, "BLOCK_BYTES", 1000):
        reading = Reading(coverage="all", on_progress=lambda done, total: told.append((done, total)))
        profile_dataset(file, model=None, on_bad_row="skip", reading=reading)
    size = os.stat(file).st_size
    assert told == sorted(told)
    assert told[-1] == (size, size)


def children() -> list[psutil.Process]:
    """Returns the worker processes that are alive."""
    found = psutil.Process().children()
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def task_for(file: str) -> ScanTask:
    """Returns the task of counting texts."""
    return ScanTask(data_format="text", columns={"text": "text"}, model=None, seed=0, count_tokens=True)


def test_workers_end_with_the_scan_however_it_ends(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [json.dumps({"text": "a"})] * 1000)
    with mock.patch.object(blocks, "BLOCK_BYTES", 500):
        scan = pool.scan_blocks(iter_blocks([file]), task_for(file), workers=2)
        next(iter(scan))
        assert len(children()) == 2
        scan.close()  # type: ignore[attr-defined]
        assert children() == []


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [json.dumps({"text": "a"})] * 1000)
    with mock.patch.object(blocks, "BLOCK_BYTES", 500):
        scan = pool.scan_blocks(iter_blocks([file]), task_for(file), workers=2)
        next(iter(scan))
        for process in children():
            process.kill()
        with pytest.raises(WorkerError, match="--workers 1"):
            list(scan)
    assert children() == []


def test_an_error_in_a_worker_is_the_error_of_the_scan(tmp_path: Path) -> None:
    broken = [Block("f.jsonl", 0, 1, lines=b"\xff\xfe{}\n")]
    with pytest.raises(DataError, match=r"f.jsonl:1 is UTF-16 text"):
        list(pool.scan_blocks(broken, task_for("f"), workers=2))


def test_interrupting_the_command_ends_its_workers(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [json.dumps({"text": "some words " * 50})] * 20_000)
    command = [sys.executable, "-m", "autopeft", "data", file, "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        family = psutil.Process(process.pid)
        deadline = time.monotonic() + 120
        while len(family.children()) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = family.children()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 4))
def test_copies_are_those_that_a_dictionary_finds(values: list[int], part_rows: int) -> None:
    spread = [rank_of(0, 0, value) for value in values]
    first: dict[int, int] = {}
    pairs = [(order, first[value]) for order, value in enumerate(spread) if first.setdefault(value, order) != order]
    with mock.patch("autopeft.profiling.scan.copies._PART_ROWS", part_rows):
        found = find_copies(array("Q", spread), shown=3)
    assert (found.count, list(found.first)) == (len(pairs), pairs[:3])


@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(0, 9), max_size=20))
def test_shared_rows_are_those_in_both(own: list[int], others: list[int]) -> None:
    found = find_shared(array("Q", own), array("Q", others), shown=2)
    pairs = [(place, others.index(value)) for place, value in enumerate(own) if value in others]
    assert (found.count, list(found.first)) == (len(pairs), pairs[:2])


def test_ranks_are_spread_evenly_and_differ_between_seeds() -> None:
    below = threshold_for(1000, 10_000)
    for seed in range(5):
        chosen = sum(rank_of(seed, 0, number) < below for number in range(10_000))
        # 1,000 expected; the standard deviation is 30.
        assert 880 < chosen < 1120
    assert rank_of(0, 0, 1) != rank_of(1, 0, 1) != rank_of(0, 1, 1)
