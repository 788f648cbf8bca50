"""A new method is one module and one YAML file: LoRA-FA, added from a temporary folder, works like those that ship."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autopeft.testing import PeftMethodContract

MODULE = '''
"""LoRA-FA: LoRA whose A stays as it was drawn (arXiv 2308.03303)."""

from autopeft.methods import AdapterSpec, PeftMethod


class LoraFa(PeftMethod):
    """``W + (alpha / r) B A`` with A frozen, so that a step keeps activations of width r only."""

    name = "lorafa"
    title = "LoRA-FA"
    paper = "https://arxiv.org/abs/2308.03303"
    update_rule = "W + (alpha/r) B A, A frozen"

    def adapter_spec(self, candidate, steps):
        return AdapterSpec(peft_type="LORA", settings={"r": candidate.r, "lora_alpha": candidate.lora_alpha})

    def layer_parameters(self, candidate, layer):
        return candidate.r * layer.out_features

    def prepare(self, model, context):
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
        return {}
'''

SPACE = """
method: lorafa
summary: "LoRA with half of its parameters frozen"
parameters:
  r: {type: categorical, choices: [4, 16], default: 16, effect: "capacity"}
  learning_rate: {type: float, low: 1.0e-5, high: 1.0e-2, log: true, default: 3.0e-4, effect: "matters most"}
  target_modules: {type: categorical, choices: [all-linear], default: all-linear, effect: "where it learns"}
sources: ["https://arxiv.org/abs/2308.03303"]
"""

CONTRACT_TEST = """
from autopeft.testing import PeftMethodContract

class TestLoraFa(PeftMethodContract):
    method_name = "lorafa"

class TestMiscounted(PeftMethodContract):
    method_name = "miscounted"
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A plugin folder with one method, which the processes that this file starts find."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "lorafa.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "lorafa.yaml").write_text(SPACE, encoding="utf-8")
    return tmp_path


def autopeft(plugin: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return python(plugin, "-m", "autopeft", *arguments)


def python(plugin: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    # Threads of a tiny model wait for each other where other tests run too.
    environment = dict(os.environ) | {"AUTOPEFT_PLUGINS": str(plugin), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, cwd=plugin, capture_output=True, text=True, timeout=300, check=False
    )


def result_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_registry_lists_it(plugin: Path) -> None:
    (entry,) = [one for one in result_of(autopeft(plugin, "methods", "--json")) if one["name"] == "lorafa"]
    assert entry["title"] == "LoRA-FA"
    assert entry["space"]["parameters"]["r"]["choices"] == [4, 16]
    assert "lorafa" in autopeft(plugin, "methods").stdout


def test_suggest_ranks_it_and_a_dry_run_searches_it(plugin: Path) -> None:
    rows = plugin / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n} + 1", "completion": "{n + 1}"}}\n' for n in range(200)))
    inputs = ("--model", "smollm2-135m-instruct", "--data", rows)
    plan = result_of(autopeft(plugin, "suggest", *inputs, "--hardware", "rtx-4090", "--json"))
    assert "lorafa" in {entry["method"] for entry in plan["candidates"]}
    verdict = result_of(
        autopeft(plugin, "run", *inputs, "--method", "lorafa", "--method", "lora", "--dry-run", "--trials", 4, "--json")
    )
    assert {entry["method"] for entry in verdict["ranking"]} == {"lorafa", "lora"}


def test_estimate_counts_its_parameters(plugin: Path) -> None:
    options = ("--method", "lorafa", "--rank", 8, "--target-modules", "q_proj", "--hardware", "rtx-4090", "--json")
    estimate = result_of(autopeft(plugin, "estimate", "--model", "llama-3-8b", *options))
    assert estimate["trainable_parameters"] == 32 * 8 * 4096  # layers x r x out_features


def test_the_contract_of_methods_holds_for_it_and_bites_where_its_count_is_wrong(plugin: Path) -> None:
    miscounted = MODULE.replace("* layer.out_features", "* layer.in_features").replace('"lorafa"', '"miscounted"')
    (plugin / "methods" / "miscounted.py").write_text(miscounted, encoding="utf-8")
    (plugin / "search_spaces" / "miscounted.yaml").write_text(SPACE.replace("method: lorafa", "method: miscounted"))
    test = plugin / "test_plugins.py"
    test.write_text(CONTRACT_TEST, encoding="utf-8")
    selected = "LoraFa or closed_form_counts"
    done = python(plugin, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", test, "-k", selected)
    passed = {line for line in done.stdout.splitlines() if line.startswith("PASSED test_plugins.py::TestLoraFa::")}
    assert len(passed) == len([name for name in dir(PeftMethodContract) if name.startswith("test_")]), done.stdout
    assert "FAILED test_plugins.py::TestMiscounted::test_closed_form_counts_what_peft_trains" in done.stdout
    assert done.returncode == 1
    assert " skipped" not in done.stdout


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("methods/lorafa.py", ('"lorafa"', '"lora"'), "must define exactly one PeftMethod, with name = 'lorafa'"),
        (
            "methods/lorafa.py",
            ("import AdapterSpec", "import AdaptorSpec"),
            "lorafa.py cannot be imported (ImportError",
        ),
        ("search_spaces/lorafa.yaml", ("default: 16", "default: 5"), "default 5 is not among the choices [4, 16]"),
    ],
)
def test_a_mistake_in_it_is_one_sentence(plugin: Path, file: str, change: tuple[str, str], message: str) -> None:
    path = plugin / file
    path.write_text(path.read_text().replace(*change))
    done = autopeft(plugin, "methods")
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_method_without_a_search_space_is_told(plugin: Path) -> None:
    (plugin / "search_spaces" / "lorafa.yaml").unlink()
    done = autopeft(plugin, "methods")
    assert done.returncode == 1
    assert done.stderr.startswith("autopeft: unknown search space 'lorafa'; known: adalora, dora")
