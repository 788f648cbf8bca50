"""Tracing with the libraries of another environment: here the one that runs the tests, from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import autopeft
from autopeft.errors import InvalidInputError, ModelError
from autopeft.memory import environment as environments
from autopeft.memory.environment import find_environment, trace_in
from autopeft.memory.trace import answer_to
from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.specs import StepStyle

pytest.importorskip("torch")


@pytest.fixture
def request_of(llama, make_candidate):
    def make(**changes) -> TraceRequest:
        return TraceRequest(
            candidate=make_candidate(trainer="transformers"),
            model_type="llama",
            config=llama.config,
            encoder=False,
            kind="cuda",
            sequence_length=32,
            **changes,
        )

    return make


def test_a_trace_in_another_interpreter_says_what_this_one_says(request_of, tmp_path):
    wanted = [request_of(), request_of(style=StepStyle(padded=True, outputs_held=True))]
    there = list(trace_in(find_environment(sys.executable), wanted))
    assert there == [answer_to(request) for request in wanted]


def test_one_failure_does_not_stop_the_requests_after_it(request_of):
    broken = replace(request_of(), model_type="no-such-model")
    first, second = trace_in(find_environment(sys.executable), [broken, request_of()])
    assert isinstance(first, ModelError)
    assert "no-such-model" in str(first)
    assert second == answer_to(request_of())


def test_a_python_that_hangs_is_ended_and_told(request_of, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "TIMEOUT_SECONDS", 1)
    hanging = environments.Environment(_script(tmp_path, "exec sleep 60"), {})
    (answer,) = trace_in(hanging, [request_of()])
    assert isinstance(answer, ModelError)
    assert "no answer within 1 s" in str(answer)


def test_requests_and_answers_survive_the_way_there_and_back(request_of):
    request = request_of(style=StepStyle(mixed_precision=False, cache_emptied=True))
    assert TraceRequest.from_dict(request.to_dict()) == request
    answer = answer_to(request_of())
    assert TraceAnswer.from_dict(answer.to_dict()) == answer


def test_the_core_needs_nothing_but_the_training_stack(request_of, tmp_path):
    """What a foreign environment may lack is refused here; trl and bitsandbytes may be missing too."""
    refuse = (
        "import sys\nfor name in "
        + repr(
            [
                "msgspec",
                "click",
                "rich",
                "jinja2",
                "optuna",
                "pynvml",
                "pyarrow",
                "gguf",
                "plotly",
                "trl",
                "bitsandbytes",
            ]
        )
        + ":\n    sys.modules[name] = None\n"
    )
    package = str(Path(autopeft.__file__).parent)
    request = request_of().to_dict()
    done = subprocess.run(
        [sys.executable, "-I", "-c", refuse + environments._BOOTSTRAP, package],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)["answer"]
    assert answer["parts"] == answer_to(request_of()).parts


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder, "no python in"),
        (lambda folder: _script(folder, "echo hello"), "does not run as a python"),
        (
            lambda folder: _script(folder, """echo '{"python": [3, 9], "versions": {}}'"""),
            "3.10 or newer; torch is not",
        ),
        (
            lambda folder: _script(
                folder,
                """echo '{"python": [3, 11], "versions": {"torch": "2", "transformers": "4.40.0", "peft": "0.9"}}'""",
            ),
            "transformers is 4.40.0, the oldest that can be traced is 4.48; peft is 0.9",
        ),
    ],
)
def test_an_environment_that_cannot_trace_is_refused_with_what_it_lacks(tmp_path, make, says):
    with pytest.raises(InvalidInputError, match=says):
        find_environment(make(tmp_path))


def _script(folder: Path, line: str) -> Path:
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)
    return script
