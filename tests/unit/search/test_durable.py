"""What a kill may leave behind, and what is made of it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import RunFolderError
from autopeft.search.durable import append_line, drop_half_line, lock_file, read_json, read_lines, write_json

RECORDS = st.lists(
    st.dictionaries(
        st.text(max_size=5), st.integers() | st.text() | st.dictionaries(st.text(), st.booleans()), max_size=3
    ),
    min_size=1,
    max_size=4,
)


@given(records=RECORDS, data=st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_takes_new_ones(tmp_path_factory, records, data):
    path = tmp_path_factory.mktemp("lines") / "results.jsonl"
    for record in records:
        append_line(path, record)
    content = path.read_bytes()
    length = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:length])
    # A line without its line end is whole: nothing of the record is lost.
    whole = sum(len(b"\n".join(content.split(b"\n")[: count + 1])) <= length for count in range(len(records)))

    assert read_lines(path) == records[:whole]
    append_line(path, {"after": "the kill"})
    assert read_lines(path) == [*records[:whole], {"after": "the kill"}]
    assert path.read_bytes().startswith(content[:length])


def test_a_line_that_is_no_record_is_an_error_with_file_and_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(RunFolderError, match=r"results\.jsonl, line 2 is no JSON object"):
        read_lines(path)


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "results.jsonl") == []


def test_dropping_a_half_line_keeps_everything_before_it(tmp_path):
    path = tmp_path / "study.journal"
    path.write_bytes(b'{"a":1}\n{"b":')
    drop_half_line(path)
    assert path.read_bytes() == b'{"a":1}\n'
    drop_half_line(path)
    assert path.read_bytes() == b'{"a":1}\n'


def test_a_json_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "verdict.json"
    write_json(path, {"old": True})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"new": True})
    assert read_json(path) == {"old": True}


def test_unreadable_json_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"plan\.json is not valid JSON"):
        read_json(tmp_path / "plan.json")
    with pytest.raises(RunFolderError, match=r"cannot read .*none\.json"):
        read_json(tmp_path / "none.json")


def _try_lock(path: Path, answers: multiprocessing.Queue) -> None:
    try:
        lock_file(path, "runs/demo")
        answers.put("locked")
    except RunFolderError as error:
        answers.put(str(error))


def test_a_lock_keeps_another_process_out_until_it_is_closed(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    handle = lock_file(tmp_path / ".lock", "runs/demo")
    for close_first, expected in ((False, "in use by another autopeft process"), (True, "locked")):
        if close_first:
            handle.close()
        process = context.Process(target=_try_lock, args=(tmp_path / ".lock", answers))
        process.start()
        assert expected in answers.get(timeout=20)
        process.join()
