"""A data set is tokenized once for each tokenizer, and never read from a file that no longer fits it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.profiling.dataset import hash_files, read_examples
from autopeft.profiling.encoding import EncodedRow, encode_examples
from autopeft.specs import Job
from autopeft.training.token_cache import _ROWS_OF_BLOCK, encoded_once, token_key

TOKENS = st.lists(st.integers(0, 300_000), max_size=30).map(tuple)
PARTS = st.lists(st.tuples(st.integers(0, 9), st.integers(10, 20)), max_size=3).map(tuple)


def job_with(data: Path, cache: Path) -> Job:
    return Job(
        model="unused",
        revision=None,
        data_files=(str(data),),
        data_hash=hash_files((str(data),)),
        data_format="prompt_completion",
        columns={"prompt": "prompt", "completion": "completion"},
        max_length=32,
        device="cpu",
        memory_limit_bytes=None,
        cache_folder=str(cache),
        choose_rows=20,
        test_rows=30,
        seed=0,
    )


def counting(rows: list[EncodedRow]) -> tuple[Callable[[], list[EncodedRow]], list[int]]:
    calls: list[int] = []

    def encode() -> list[EncodedRow]:
        calls.append(1)
        return rows

    return encode, calls


def test_real_rows_come_back_as_they_were_and_are_encoded_once(
    tiny_model: Path, number_data: Path, tmp_path: Path
) -> None:
    job = job_with(number_data, tmp_path)
    rows = encode_examples(tiny_model, read_examples(job.data_files, job.data_format, job.columns))
    encode, calls = counting(rows)
    assert list(encoded_once(job, tiny_model, encode)) == rows
    assert list(encoded_once(replace(job, max_length=8, seed=5), tiny_model, encode)) == rows
    assert len(calls) == 1
    assert [file.suffix for file in (tmp_path / "tokens").iterdir()] == [".arrow"]


@given(st.lists(st.builds(EncodedRow, TOKENS, PARTS), min_size=1, max_size=20))
def test_any_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, number_data: Path, rows: list[EncodedRow]
) -> None:
    job = job_with(number_data, tmp_path_factory.mktemp("cache"))
    stored = encoded_once(job, Path("no-tokenizer"), lambda: rows)
    assert list(stored) == rows
    assert stored[-1:] == rows[-1:]


def test_rows_of_several_blocks_keep_their_order(number_data: Path, tmp_path: Path) -> None:
    rows = [EncodedRow((number,), ((0, 1),)) for number in range(_ROWS_OF_BLOCK + 3)]
    stored = encoded_once(job_with(number_data, tmp_path), Path("no-tokenizer"), lambda: rows)
    assert stored[_ROWS_OF_BLOCK + 2] == rows[-1]
    assert len(stored) == len(rows)


def test_another_tokenizer_template_format_or_data_has_another_key(
    tiny_model: Path, number_data: Path, tmp_path: Path
) -> None:
    job = job_with(number_data, tmp_path)
    changed = tmp_path / "changed"
    shutil.copytree(tiny_model, changed)
    same = token_key(job, changed)
    assert same == token_key(job, tiny_model)
    (changed / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    keys = {
        same,
        token_key(job, changed),
        token_key(replace(job, data_hash="0" * 64), tiny_model),
        token_key(replace(job, data_format="text"), tiny_model),
        token_key(replace(job, columns={"prompt": "completion", "completion": "prompt"}), tiny_model),
        token_key(replace(job, on_bad_row="skip"), tiny_model),
    }
    assert len(keys) == 6


def test_a_tokenization_that_fails_leaves_nothing_behind(number_data: Path, tmp_path: Path) -> None:
    broken = [EncodedRow((2**40,), ())]
    with pytest.raises(Exception, match="1099511627776"):
        encoded_once(job_with(number_data, tmp_path), Path("no-tokenizer"), lambda: broken)
    assert list((tmp_path / "tokens").iterdir()) == []
