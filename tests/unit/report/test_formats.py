"""Figures as texts."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.report import RunRecord
from autopeft.report.context import flat_facts
from autopeft.report.formats import format_loss, format_rate, format_seconds, format_size, target_alias, target_label
from autopeft.specs import Candidate


@pytest.mark.parametrize(("rate", "text"), [(2e-4, "2e-4"), (3.162e-4, "3.16e-4"), (1e-3, "1e-3"), (0.1, "1e-1")])
def test_a_learning_rate_reads_as_people_write_it(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@given(st.floats(1e-8, 1.0))
def test_a_printed_learning_rate_is_the_learning_rate(rate: float) -> None:
    assert float(format_rate(rate)) == pytest.approx(rate, rel=0.006)


def test_a_missing_figure_is_said() -> None:
    assert format_loss(None) == format_size(None) == format_seconds(None) == "not measured"
    assert format_loss(math.nan) == format_loss(math.inf) == "not finite"


@pytest.mark.parametrize(
    ("targets", "label", "alias"),
    [
        (("k_proj", "o_proj", "q_proj", "v_proj"), "attention", "attention"),
        (("down_proj", "gate_proj", "up_proj"), "mlp", "mlp"),
        (("q_proj", "v_proj"), "q,v", None),
    ],
)
def test_target_modules_read_as_their_alias_where_there_is_one(
    targets: tuple[str, ...],
    label: str,
    alias: str | None,
    finished: RunRecord,
    make_candidate: Callable[..., Candidate],
) -> None:
    candidate = make_candidate("lora", target_modules=targets)
    assert target_label(candidate, finished.plan.model) == label
    assert target_alias(candidate, finished.plan.model) == alias


def test_a_manifest_is_flattened_and_long_parts_are_counted() -> None:
    manifest = {"seed": 7, "settings": {"trials": None, "methods": ["lora", "dora"]}, "rejected": [{"a": 1}, {"a": 2}]}
    assert list(flat_facts(manifest)) == [
        ("seed", "7"),
        ("settings.trials", "none"),
        ("settings.methods", "lora, dora"),
        ("rejected", "2 entries, see manifest.json"),
    ]


def test_importing_the_report_layer_imports_neither_the_training_stack_nor_plotly() -> None:
    heavy = ("torch", "transformers", "peft", "optuna", "datasets", "plotly")
    code = f"import sys, autopeft.report; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
