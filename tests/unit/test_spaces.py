"""Search spaces: what ships is whole, and a mistake in a file is said with the file and all that is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.methods import method_names
from autopeft.spaces import all_spaces, is_candidate_field, load_space, spaces_for, suggested_methods
from autopeft.specs import MethodSpace

VALID: dict[str, Any] = {
    "method": "mine",
    "summary": "a space for tests",
    "parameters": {
        "r": {"type": "categorical", "choices": [4, 8], "default": 8, "effect": "capacity"},
        "learning_rate": {
            "type": "float", "low": 1.0e-5, "high": 1.0e-2, "log": True, "default": 1.0e-4, "effect": "matters most",
        },
    },
}  # fmt: skip


def load(folder: Path, content: dict[str, Any]) -> MethodSpace:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_space(path)


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_a_space_that_says_what_each_knob_does(name: str) -> None:
    space = all_spaces()[name]
    assert space.method == name
    assert space.summary
    assert space.sources
    assert space.parameters["learning_rate"].log
    assert all(knob.effect for knob in space.parameters.values())


def test_every_space_belongs_to_a_method() -> None:
    assert set(all_spaces()) == set(method_names())


def test_five_methods_are_searched_and_six_suggested_unless_others_are_asked_for() -> None:
    searched = {name for name, space in all_spaces().items() if space.searched_by_default}
    assert searched == {"adalora", "dora", "loftq", "lora", "rslora"}
    assert set(suggested_methods()) == searched | {"full"}


@pytest.mark.parametrize("name", method_names())
def test_optuna_accepts_the_numeric_knobs_as_they_stand(name: str) -> None:
    for knob in all_spaces()[name].parameters.values():
        if knob.type == "categorical":
            assert knob.default in knob.choices
            continue
        assert knob.low is not None
        assert knob.high is not None
        kind = FloatDistribution if knob.type == "float" else IntDistribution
        assert kind(knob.low, knob.high, log=knob.log)._contains(knob.default)  # type: ignore[arg-type]


def test_a_valid_file_is_read(tmp_path: Path) -> None:
    space = load(tmp_path, VALID)
    assert (space.method, set(space.parameters)) == ("mine", set(VALID["parameters"]))


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ((), {"method": "other"}, "method is 'other', but the file is mine.yaml"),
        ((), {"fixed": {"r": 8}}, "r is both searched and fixed"),
        ((), {"suggested_by_default": False}, "searched_by_default: true needs suggested_by_default: true"),
        (("parameters", "r"), {"default": 5}, r"parameter r: default 5 is not among the choices \[4, 8\]"),
        (("parameters", "r"), {"low": 1}, "parameter r: type categorical takes choices, and neither low nor high"),
        (("parameters", "learning_rate"), {"default": 1.0}, "default 1.0 lies outside 1e-05 to 0.01"),
        (("parameters", "learning_rate"), {"default": "1e-4"}, "write 1.0e-4"),
        (("parameters", "learning_rate"), {"low": 0.0}, "log needs low above zero"),
        (("parameters", "learning_rate"), {"low": 0.1}, "low 0.1 is above high 0.01"),
        (("parameters", "learning_rate"), {"choices": [1]}, "takes low and high, and no choices"),
        (("parameters", "learning_rate"), {"type": "real"}, "Invalid enum value 'real'"),
        ((), {"paramaters": {}}, "unknown keys paramaters"),
    ],
)
def test_a_mistake_is_said(tmp_path: Path, where: tuple[str, ...], change: dict[str, Any], message: str) -> None:
    content = copy.deepcopy(VALID)
    part = content
    for key in where:
        part = part[key]
    part |= change
    with pytest.raises(InvalidInputError, match=message) as caught:
        load(tmp_path, content)
    assert "mine.yaml" in str(caught.value)


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    content = copy.deepcopy(VALID)
    content["method"] = "other"
    content["parameters"]["r"]["default"] = 5
    content["parameters"]["learning_rate"]["default"] = 1.0
    with pytest.raises(InvalidInputError, match=r"method is 'other'.*parameter r: .*parameter learning_rate: "):
        load(tmp_path, content)


@settings(deadline=None)
@given(low=st.floats(1e-6, 1.0), high=st.floats(1e-6, 1.0), default=st.floats(1e-6, 1.0))
def test_a_numeric_knob_is_accepted_exactly_where_its_default_lies_in_its_range(
    tmp_path_factory: pytest.TempPathFactory, low: float, high: float, default: float
) -> None:
    content = copy.deepcopy(VALID)
    content["parameters"]["learning_rate"] |= {"low": low, "high": high, "default": default}
    folder = tmp_path_factory.mktemp("space")
    if low <= default <= high:
        load(folder, content)
    else:
        with pytest.raises(InvalidInputError, match="learning_rate"):
            load(folder, content)


def test_spaces_are_picked_by_name() -> None:
    assert list(spaces_for(["lora", "dora"]).methods) == ["lora", "dora"]
    with pytest.raises(UnknownNameError, match=r"unknown search space 'lroa'.*Did you mean 'lora'"):
        spaces_for(["lroa"])


def test_a_knob_is_a_field_of_the_candidate_or_an_option_of_the_method() -> None:
    assert is_candidate_field("r")
    assert not is_candidate_field("init_r")
