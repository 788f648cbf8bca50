"""Rows and their line numbers out of every kind of file, and one clear error for every broken one."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import DataError
from autopeft.profiling import _json_rows
from autopeft.profiling._files import COMPRESSIBLE, COMPRESSIONS, data_suffixes
from autopeft.profiling._hub import train_files
from autopeft.profiling._readers import read_rows
from autopeft.profiling._rows import Row
from autopeft.profiling.dataset import hash_files, iter_rows, list_files, read_examples

ROWS = [{"prompt": "a\u00e4\u4e2d", "completion": "1"}, {"prompt": 'b, "c"\nd', "completion": "2"}]


def write_rows(file: Path, rows: list[dict[str, str]]) -> Path:
    """Writes rows in the format that the name's ending says."""
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    names = list(rows[0])
    match file.suffix:
        case ".jsonl" | ".ndjson":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".json":
            file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        case ".csv" | ".tsv":
            import csv

            with file.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
                writer.writerows([names, *([row[name] for name in names] for row in rows)])
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        case ".feather":
            pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), str(file))
        case ".arrow":
            table = pyarrow.Table.from_pylist(rows)
            with pyarrow.OSFile(str(file), "wb") as stream, pyarrow.ipc.new_stream(stream, table.schema) as writer:
                writer.write_table(table)
        case _:
            raise AssertionError(f"no writer for {file}")
    return file


@pytest.mark.parametrize("suffix", [suffix for suffix in data_suffixes() if suffix != ".txt"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    file = write_rows(tmp_path / f"data{suffix}", ROWS)
    assert [row.values for row in iter_rows([str(file)])] == ROWS


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))), min_size=1))
def test_written_pairs_are_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    file = tmp_path_factory.mktemp("pairs") / "data.jsonl"
    lines = [
        json.dumps({"prompt": prompt, "completion": answer}, ensure_ascii=False) + "\n" for prompt, answer in pairs
    ]
    file.write_bytes("".join(lines).encode())
    examples = read_examples([str(file)], "prompt_completion", {})
    assert [example.messages for example in examples] == [(("user", p), ("assistant", a)) for p, a in pairs]
    assert [example.line for example in examples] == list(range(1, len(pairs) + 1))


def test_byte_order_mark_windows_line_ends_and_blank_lines_do_not_disturb_line_numbers(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n   \n{"text": "two"}')
    assert [(row.number, row.values["text"]) for row in iter_rows([str(file)])] == [(1, "one"), (4, "two")]


def test_csv_line_numbers_count_lines_inside_quotes(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_bytes(b'\xef\xbb\xbftext,label\r\n"two\r\nlines",a\r\n\r\nlast,b\r\n')
    rows = [(row.number, row.values) for row in iter_rows([str(file)])]
    assert rows == [(2, {"text": "two\r\nlines", "label": "a"}), (5, {"text": "last", "label": "b"})]


def test_a_long_csv_field_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text(f"text\n{'x' * 200_000}\n")
    assert [len(row.values["text"]) for row in iter_rows([str(file)])] == [200_000]


def test_text_with_blank_lines_gives_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("one\nstill one\n\n\ntwo\n")
    assert [(row.number, row.values["text"]) for row in iter_rows([str(file)])] == [(1, "one\nstill one"), (5, "two")]


def test_text_without_blank_lines_gives_lines(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("one\ntwo\u2028still two\n\n")
    assert [row.values["text"] for row in iter_rows([str(file)])] == ["one", "two\u2028still two"]


@pytest.mark.parametrize("suffix", COMPRESSIBLE)
@pytest.mark.parametrize(("ending", "compression"), COMPRESSIONS.items())
def test_compressed_files_give_the_same_rows(tmp_path: Path, suffix: str, ending: str, compression: str) -> None:
    import pyarrow

    plain = tmp_path / f"data.{suffix}"
    if suffix == "txt":
        plain.write_text("one\n\ntwo\n")
    else:
        write_rows(plain, ROWS)
    packed = tmp_path / f"data.{suffix}{ending}"
    # Two parts, one after the other, as tools that compress on all cores write them.
    content = plain.read_bytes()
    for part in (content[:9], content[9:]):
        with packed.open("ab") as stream:
            stream.write(pyarrow.compress(part, compression, asbytes=True))
    assert [row.values for row in iter_rows([str(packed)])] == [row.values for row in iter_rows([str(plain)])]


def test_a_cut_compressed_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    import gzip

    file = tmp_path / "data.jsonl.gz"
    file.write_bytes(gzip.compress(GOOD * 100)[:-12])
    with pytest.raises(DataError, match=r"cannot read .*data.jsonl.gz: Truncated.*damaged or cut off: copy"):
        list(iter_rows([str(file)]))


def test_behind_a_broken_row_reading_goes_on(tmp_path: Path) -> None:
    csv_file, json_file = tmp_path / "d.csv", tmp_path / "d.jsonl"
    csv_file.write_text('text,label\none,a\ntwo\n"x"y,b\nthree,c\n')
    json_file.write_bytes(GOOD + b"{\n" + GOOD)
    assert [type(row).__name__ for row in read_rows([str(csv_file)])] == ["Row", "BadRow", "BadRow", "Row"]
    assert [(type(row).__name__, row.number) for row in read_rows([str(json_file)])] == [
        ("Row", 1),
        ("BadRow", 2),
        ("Row", 3),
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(
    st.lists(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), json_values, max_size=4), max_size=6),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
def test_a_json_list_read_in_pieces_of_any_size_is_the_list(
    rows: list[dict[str, Any]], piece: int, indent: int | None
) -> None:
    with mock.patch.object(_json_rows, "_PIECE_BYTES", piece):
        stream = io.BytesIO(json.dumps(rows, indent=indent).encode())
        read = list(_json_rows.json_list_rows(stream, "f"))
    assert [row.values for row in read if isinstance(row, Row)] == rows


def test_half_a_surrogate_pair_is_refused_in_lines_and_lists(tmp_path: Path) -> None:
    for name, content in (("d.jsonl", rb'{"text": "\ud800"}'), ("d.json", rb'[{"text": "\ud800"}]')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}:1 is not valid JSON"):
            list(iter_rows([str(tmp_path / name)]))


def test_an_object_with_a_data_list_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('{"version": 1, "data": [{"text": "one"}]}')
    assert [(row.where, row.values) for row in iter_rows([str(file)])] == [(f"{file}, row 1", {"text": "one"})]


GOOD = b'{"text": "one"}\n'
BROKEN = {
    "unfinished object": ("d.jsonl", GOOD + b'{"text": \n', "d.jsonl:2 is not valid JSON: Input data was truncated"),
    "not a number": (
        "d.jsonl",
        GOOD + b'\n{"text": NaN}',
        "invalid character (byte 9); JSON has no NaN and no Infinity: write null",
    ),
    "deep nesting": (
        "d.jsonl",
        GOOD + b'{"text": ' + b"[" * 100_000,
        "d.jsonl:2 is not valid JSON: it is nested too deep",
    ),
    "latin-1 JSON": ("d.jsonl", GOOD + b'{"text": "\xe4"}', "d.jsonl:2 is not valid JSON: it is not UTF-8 text"),
    "list in a row": ("d.jsonl", GOOD + b"[1]", "d.jsonl:2 holds a list; a row must be a JSON object"),
    "null as a row": ("d.jsonl", GOOD + b"null", "d.jsonl:2 holds null; a row must be a JSON object"),
    "a list named jsonl": (
        "d.jsonl",
        b'[\n{"text": "one"}]',
        "d.jsonl:1 is not valid JSON: Input data was truncated; the file",
    ),
    "UTF-16": ("d.jsonl", '{"text": "one"}'.encode("utf-16"), "d.jsonl:1 is UTF-16 text; save the file as UTF-8"),
    "broken JSON": ("d.json", b'[{"text": "one"},\n{"text": }]', "d.json:2 is not valid JSON: expecting value"),
    "JSON lines named json": ("d.json", GOOD + GOOD, "one object a line? Name it .jsonl"),
    "no list": ("d.json", b'{"text": ["one"]}', "d.json must hold a JSON list of objects"),
    "text in a JSON list": ("d.json", b'[{"text": "one"}, "two"]', "d.json, row 2 holds a text"),
    "too few fields": ("d.csv", b"text,label\none,a\ntwo\n", "d.csv:3 has 1 fields, but the header names 2"),
    "unclosed quote": ("d.csv", b'text\none\n"two\n', "d.csv:3 is not valid CSV: unexpected end of data"),
    "quote that takes the rest of the file": (
        "d.csv",
        b'text\none\n"two\nthree\nfour\n',
        "d.csv:3 opens a quote that is never closed, so that the 2 lines behind it would be lost",
    ),
    "gzip named as plain": (
        "d.jsonl",
        bytes.fromhex("1f8b0800"),
        "d.jsonl is compressed with gzip: let its name end in .gz",
    ),
    "plain named gzip": ("d.csv.gz", b"text\none\n", "d.csv.gz is not compressed with gzip, as its ending says: leave"),
    "plain named zstd": ("d.jsonl.zst", GOOD, "d.jsonl.zst is not compressed with zstd, as its ending says"),
    "repeated column": ("d.csv", b"text,text\none,a\n", "d.csv:1: the header names 'text' twice"),
    "unnamed column": ("d.tsv", b"text\t\none\ta\n", "d.tsv:1: the header has a column without a name"),
    "latin-1 CSV": ("d.csv", b"text\none\n\xe4\n", "d.csv:3 is not UTF-8 text"),
    "latin-1 text": ("d.txt", b"one\n\xe4\n", "d.txt:2 is not UTF-8 text"),
    "no Parquet": ("d.parquet", b"hello, hello, hello", "d.parquet is no readable Parquet file"),
    "no Arrow": ("d.arrow", b"hello, hello, hello", "d.arrow is no readable Arrow or Feather"),
    "no Feather": ("d.feather", b"ARROW1hello", "d.feather is no readable Arrow or Feather"),
    "cut string": ("d.json", b'[{"text": "one', "d.json:1 is not valid JSON: unterminated string"),
    "no ending": ("data", b"x", "its name has no ending to tell its kind by; readable are .jsonl"),
    "unknown ending": ("d.docx", b"x", "its ending '.docx' is not known; readable are .jsonl"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_one_error_that_names_the_place(tmp_path: Path, case: str) -> None:
    name, content, expected = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(iter_rows([str(tmp_path / name)]))
    assert expected in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.csv", "empty.txt"])
def test_an_empty_data_set_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n")
    with pytest.raises(DataError, match=r"the data set is empty: no row in .*empty"):
        read_examples([str(tmp_path / name)], "text", {})


def test_a_folder_gives_its_files_sorted_and_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "more/c.jsonl", ".cache/d.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    expected = tuple(str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "more/c.jsonl"))
    assert list_files(str(tmp_path)) == expected


def test_a_folder_of_two_kinds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.csv").write_bytes(b"text\none\n")
    with pytest.raises(DataError, match=r"mixes kinds of data files: csv \(b.csv\), jsonl \(a.jsonl\)"):
        list_files(str(tmp_path))


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no data file; readable are \.jsonl"):
        list_files(str(tmp_path))


def test_a_pattern_is_told_from_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Patterns are not expanded: give the folder"):
        list_files(str(tmp_path / "*.jsonl"))


def test_skipping_bad_rows_never_skips_what_an_open_quote_swallows(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text('text\none\n"two\n' + "more\n" * 1000)
    with pytest.raises(DataError, match=r"d\.csv:3 opens a quote .* the 1000 lines behind it"):
        read_examples([str(file)], "text", {}, "skip")


@pytest.mark.parametrize("source", ["./nothing/here", "data/missing.jsonl", "nothing", "/nowhere/at/all"])
def test_a_missing_path_is_not_taken_for_a_hub_id(source: str) -> None:
    with pytest.raises(DataError, match=r"no data file or folder .* hub data set id of the form 'organisation/name'"):
        list_files(source)


def test_the_hash_is_that_of_the_bytes_and_ignores_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab")
    (tmp_path / "b.txt").write_bytes(b"c")
    # FIPS 180-2, appendix B.1: SHA-256 of "abc"
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_files([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]) == expected


def run_offline(code: str, cache: Path) -> str:
    """Runs code in a process of its own, because huggingface_hub reads its environment once, when it is imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


LIST = """
from autopeft.errors import DataError
from autopeft.profiling.dataset import iter_rows, list_files
try:
    print([row.values for row in iter_rows(list_files("someone/something"))])
except DataError as error:
    print(error)
"""


def test_an_unreachable_hub_data_set_is_an_error_that_explains_both_readings(tmp_path: Path) -> None:
    printed = run_offline(LIST, tmp_path)
    assert "'someone/something' is no file or folder here" in printed
    assert "as a hub data set id it cannot be fetched: LocalEntryNotFoundError" in printed
    assert printed.count("\n") == 1


def test_an_offline_run_reads_a_hub_data_set_from_the_cache(tmp_path: Path) -> None:
    commit = "0123456789012345678901234567890123456789"
    repository = tmp_path / "hub" / "datasets--someone--something"
    snapshot = repository / "snapshots" / commit
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").write_bytes(GOOD)
    (snapshot / "test.jsonl").write_bytes(b'{"text": "held out"}\n')
    assert run_offline(LIST, tmp_path) == "[{'text': 'one'}]\n"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            [
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002.parquet",
                "data/test-0.parquet",
                "README.md",
            ],
            2,
        ),
        (["train.jsonl", "train.csv", "validation.jsonl"], 1),
        (["alpaca_data.json", "eval.json"], 1),
        (["latest.jsonl"], 1),
    ],
)
def test_the_train_split_of_a_hub_data_set_is_found(names: list[str], expected: int) -> None:
    assert train_files(names, "x/y") == tuple(names[:expected])


def test_several_configurations_of_a_hub_data_set_are_an_error() -> None:
    with pytest.raises(DataError, match="several configurations: main, socratic; download the one you mean"):
        train_files(["main/train-0.parquet", "socratic/train-0.parquet"], "x/y")


def test_a_hub_data_set_without_train_files_is_an_error() -> None:
    with pytest.raises(DataError, match="has no readable train file"):
        train_files(["test.jsonl", "README.md"], "x/y")
