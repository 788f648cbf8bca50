"""recipe.yaml and the lines that load the winner."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from autopeft.errors import RunFolderError
from autopeft.report import RunRecord, recipe_yaml
from autopeft.report.recipe import load_snippet
from autopeft.specs import Candidate, from_dict


def with_winner(record: RunRecord, winner: Candidate) -> RunRecord:
    assert record.verdict is not None
    return replace(record, verdict=replace(record.verdict, winner=winner))


def test_the_recipe_holds_the_winner_the_data_and_the_versions(finished: RunRecord) -> None:
    recipe = yaml.safe_load(recipe_yaml(finished))
    assert recipe["schema_version"] == 1
    assert (recipe["method"], recipe["r"], recipe["learning_rate"]) == ("rslora", 16, 3e-4)
    assert recipe["data"]["content_hash"] == finished.plan.data.content_hash
    assert recipe["base_model"]["revision"] == "7e27bd9f95328f0f3b08261d1252705110c806f8"
    assert recipe["versions"] == {"peft": "0.21.2", "torch": "2.13.0", "transformers": "5.23.0"}
    assert recipe["training"] == {
        "name": "final-winner", "steps": 60, "tokens": 44_352, "seed": 20_261, "seconds": 41.5,
    }  # fmt: skip
    assert recipe["result"]["comparisons"][0]["low"] == -0.0422


def test_the_winner_can_be_read_back_whole(finished: RunRecord) -> None:
    assert finished.verdict is not None
    recipe = yaml.safe_load(recipe_yaml(finished))
    flat = {name: recipe[name] for name in Candidate.__dataclass_fields__}
    assert from_dict(flat, Candidate, "recipe.yaml") == finished.verdict.winner


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "PeftModel.from_pretrained(base, 'runs/demo/adapter')"),
        ({"quantization": "nf4"}, 'load_in_4bit=True, bnb_4bit_quant_type="nf4"'),
        ({"quantization": "int8"}, "load_in_8bit=True"),
        ({"target_modules": (), "r": None}, "AutoModelForCausalLM.from_pretrained('runs/demo/adapter'"),
    ],
)
def test_the_lines_that_load_are_python_and_name_what_they_import(
    changes: dict[str, Any], expected: str, finished: RunRecord, make_candidate: Callable[..., Candidate]
) -> None:
    snippet = load_snippet(with_winner(finished, make_candidate("lora", **changes)))
    tree = ast.parse(snippet)
    assert expected in snippet
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    imported = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }
    assert names - {"base"} <= imported


def test_a_gguf_file_is_dequantized_first_as_it_was_for_the_training(finished: RunRecord) -> None:
    model = replace(finished.plan.model, format="gguf", path="models/smol.gguf")
    snippet = load_snippet(replace(finished, plan=replace(finished.plan, model=model)))
    ast.parse(snippet)
    assert (
        "'models', gguf_file='smol.gguf', dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)"
        in snippet
    )
    assert "base = AutoModelForCausalLM.from_pretrained('runs/demo/base', dtype=torch.bfloat16)" in snippet


def test_a_hub_model_is_loaded_at_its_revision(finished: RunRecord) -> None:
    model = replace(finished.plan.model, format="hub", path=None, id="org/model", revision="abc123")
    snippet = load_snippet(replace(finished, plan=replace(finished.plan, model=model)))
    assert "AutoTokenizer.from_pretrained('org/model', revision='abc123')" in snippet


def test_a_classifier_is_loaded_with_its_labels(finished: RunRecord) -> None:
    plan = finished.plan
    plan = replace(
        plan, model=replace(plan.model, kind="encoder"), data=replace(plan.data, label_counts={"ham": 9, "spam": 3})
    )
    snippet = load_snippet(replace(finished, plan=plan))
    assert "AutoModelForSequenceClassification.from_pretrained(" in snippet
    assert "num_labels=2" in snippet


def test_a_path_cannot_leave_its_comment_or_its_string(finished: RunRecord) -> None:
    model = replace(finished.plan.model, path="x')\nimport os #")
    hostile = replace(finished, plan=replace(finished.plan, model=model), folder="runs/a\nmethod: evil")
    assert yaml.safe_load(recipe_yaml(hostile))["method"] == "rslora"
    tree = ast.parse(load_snippet(hostile))
    imports = [node for node in tree.body if isinstance(node, ast.Import)]
    assert [alias.name for node in imports for alias in node.names] == ["torch"]


def test_without_a_verdict_there_is_no_recipe(started: RunRecord) -> None:
    with pytest.raises(RunFolderError, match=r"no verdict yet.*autopeft run --resume --output runs/demo"):
        recipe_yaml(started)


def test_a_search_trial_stands_in_where_the_final_training_was_cut(finished: RunRecord) -> None:
    searched = tuple(trial for trial in finished.trials if trial.stage == "search")
    assert yaml.safe_load(recipe_yaml(replace(finished, trials=searched)))["training"]["name"] == "trial-0001"


def test_results_without_the_winner_are_an_error(finished: RunRecord) -> None:
    with pytest.raises(RunFolderError, match="names trial 1 as the winner"):
        recipe_yaml(replace(finished, trials=()))
