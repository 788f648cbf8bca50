"""The dataclasses become plain JSON data and come back checked."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import InvalidInputError
from autopeft.specs import Candidate, Scores, TrialResult, from_dict, from_json, to_dict, to_json

LORA = Candidate(method="lora", r=16, lora_alpha=16.0, target_modules=("q_proj", "v_proj"))


def result(**changes: object) -> TrialResult:
    fields: dict[str, object] = {
        "trial": 3,
        "name": "trial-0003",
        "stage": "search",
        "candidate": LORA,
        "status": "complete",
        "eval_loss": 1.25,
        "steps": 40,
        "tokens": 4000,
        "seconds": 12.5,
        "train_seconds": 10.0,
        "seed": 7,
        "predicted_required_bytes": 2**30,
        "predicted_peak_bytes": 2**29,
        "measured_peak_bytes": None,
        "measured_peak_kind": None,
        "trainable_parameters": 1000,
        "adapter_folder": "trials/trial-0003/adapter",
        **changes,
    }
    return TrialResult(**fields)  # type: ignore[arg-type]


def test_a_line_of_results_jsonl_is_flat_and_has_the_fields_of_the_issue() -> None:
    content = result().to_dict()
    named = {"method", "r", "status", "eval_loss", "tokens", "seconds", "predicted_peak_bytes", "measured_peak_bytes"}
    assert named | {"rank_pattern", "quantization_error_before", "quantization_error_after"} <= set(content)
    assert {"seed", "versions", "schema_version"} <= set(content)
    assert content["method"] == "lora"
    assert content["target_modules"] == ["q_proj", "v_proj"]
    assert "candidate" not in content


def test_a_record_is_frozen() -> None:
    with pytest.raises(AttributeError):
        LORA.r = 8  # type: ignore[misc]


def test_the_effective_batch_is_forwards_times_rows() -> None:
    candidate = Candidate(method="lora", r=8, lora_alpha=8.0, per_device_batch_size=4, gradient_accumulation_steps=8)
    assert candidate.effective_batch_size == 32


@settings(deadline=None)
@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=20), st.floats(0, 100))
def test_every_float_comes_back_to_the_last_bit(losses: list[float], loss: float) -> None:
    scores = Scores(eval_loss=loss, losses=tuple(losses), supervised_tokens=(1,) * len(losses), seconds=0.1)
    assert from_json(to_json(scores), Scores, "scores") == scores


def test_a_loss_that_is_no_number_is_written_as_null_since_json_knows_no_nan() -> None:
    assert to_dict(result(eval_loss=math.nan))["eval_loss"] is None
    assert "NaN" not in to_json(result(eval_loss=math.nan).to_dict())


def test_the_text_is_indented_and_ends_in_a_line_end() -> None:
    assert to_json({"a": [1, 2]}) == '{\n  "a": [\n    1,\n    2\n  ]\n}\n'
    assert json.loads(to_json(LORA)) == to_dict(LORA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization": "int3"}, r"here: Invalid enum value 'int3' - at `\$\.quantization`"),
        ({"r": 1.5}, r"here: Expected `int \| null`, got `float` - at `\$\.r`"),
        ({"learning_rate": "2e-4"}, r"here: Expected `float`, got `str` - at `\$\.learning_rate`"),
    ],
)
def test_a_wrong_value_is_said_with_its_place(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        from_dict(to_dict(LORA) | change, Candidate, "here")


def test_a_missing_field_and_broken_text_are_said() -> None:
    with pytest.raises(InvalidInputError, match="here: Object missing required field `method`"):
        from_dict({}, Candidate, "here")
    with pytest.raises(InvalidInputError, match=r"my\.json is not valid JSON: .*truncated"):
        from_json('{"method": ', Candidate, "my.json")
