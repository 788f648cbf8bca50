from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from autopeft.memory import trace_cache
from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.specs import Candidate, StepStyle

REQUEST = TraceRequest(
    candidate=Candidate(method="lora", r=8, lora_alpha=8.0, target_modules=("q_proj",)),
    model_type="llama",
    config={"hidden_size": 8},
    encoder=False,
    kind="cuda",
    sequence_length=16,
)
ANSWER = TraceAnswer(
    parts={"load": {"base_weights": 1}},
    operations={"load": ""},
    trainable_parameters=1,
    costs=(),
    peak_reserved_bytes=None,
    least_reserved_bytes=None,
    depths=(3, 4),
    versions={"torch": "2.13.0"},
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))


def test_what_is_written_is_read_again():
    trace_cache.write("key", ANSWER)
    assert trace_cache.read("key") == ANSWER
    assert trace_cache.read("another") is None


@pytest.mark.parametrize(
    "changed",
    [
        replace(REQUEST, sequence_length=17),
        replace(REQUEST, kind="cpu"),
        replace(REQUEST, config={"hidden_size": 16}),
        replace(REQUEST, style=StepStyle(padded=True)),
        replace(REQUEST, candidate=replace(REQUEST.candidate, r=9)),
    ],
)
def test_another_question_has_another_key(changed):
    assert trace_cache.cache_key(changed, {}) != trace_cache.cache_key(REQUEST, {})


def test_other_library_versions_have_another_key():
    keys = {trace_cache.cache_key(REQUEST, {"transformers": version}) for version in ("5.23.0", "5.23.1")}
    assert len(keys) == 2


def test_a_damaged_entry_is_made_again_and_told(tmp_path, caplog):
    trace_cache.write("key", ANSWER)
    next((tmp_path / "traces").glob("*.json")).write_text('{"parts": ')
    with caplog.at_level(logging.WARNING):
        assert trace_cache.read("key") is None
    assert "damaged" in caplog.text


def test_a_folder_that_cannot_be_written_only_means_that_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "file"))
    trace_cache.write("key", ANSWER)
    assert trace_cache.read("key") is None
