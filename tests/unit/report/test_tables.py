"""Terminal tables: everything fits 80 columns and means what it says."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from autopeft.methods import registry
from autopeft.report import RunRecord, data_table, hardware_table, methods_table, model_table, suggest_table
from autopeft.spaces import all_spaces
from autopeft.specs import Candidate, Recommendation
from autopeft.units import GIB


def printed(table: RenderableType, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(text: str, method: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if f" {method} " in line and line[:1].isdigit())


@pytest.fixture
def plan(finished: RunRecord) -> Recommendation:
    return finished.plan


def test_a_candidate_is_one_line_with_all_that_one_acts_on(plan: Recommendation) -> None:
    assert row_of(printed(suggest_table(plan)), "rslora") == [
        "2", "rslora", "16", "16", "all-linear", "bf16", "4x2", "3e-4", "1.37/14.00", "8m", "12s",
    ]  # fmt: skip


def test_an_unknown_time_is_not_shown_as_zero(plan: Recommendation) -> None:
    assert row_of(printed(suggest_table(plan)), "adalora")[-1] == "unknown"


def test_every_table_fits_80_columns_without_losing_text(plan: Recommendation) -> None:
    for table in (
        suggest_table(plan),
        methods_table(registry().values(), all_spaces()),
        hardware_table(plan.hardware),
        model_table(plan.model),
        data_table(plan.data),
    ):
        text = printed(table)
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text


def test_large_figures_still_fit_one_line(plan: Recommendation, make_candidate: Callable[..., Candidate]) -> None:
    entry = plan.candidates[0]
    large = replace(
        entry,
        candidate=make_candidate(
            "adalora", r=128, lora_alpha=192.0, learning_rate=3.16e-4, gradient_accumulation_steps=64
        ),
        estimate=replace(entry.estimate, required_bytes=int(118.3 * GIB)),
        available_bytes=int(179.1 * GIB),
        predicted_seconds=200_000.0,
    )
    assert row_of(printed(suggest_table(replace(plan, candidates=(large,)))), "adalora") == [
        "1", "adalora", "128", "192", "all-linear", "bf16", "4x64", "3.16e-4", "118.3/179.1", "2d", "07h",
    ]  # fmt: skip


def test_a_reason_shared_by_all_is_printed_once_and_the_others_beside_their_candidate(plan: Recommendation) -> None:
    text = printed(suggest_table(plan))
    assert text.count("an effective batch of 8 suits 1,500 rows [judgement]") == 1
    assert all(f"is place {place} [measured: a paper]" in text for place, _ in enumerate(plan.candidates[:3], 1))


def test_reasons_beyond_the_third_candidate_are_left_to_the_plan(plan: Recommendation) -> None:
    text = printed(suggest_table(plan))
    assert len(plan.candidates) > 3
    assert not any(f"{entry.candidate.method} is place" in text for entry in plan.candidates[3:])
    assert f"The reasons for the other {len(plan.candidates) - 3} are in the plan" in text
    assert "The reasons for" not in printed(suggest_table(replace(plan, candidates=plan.candidates[:3])))


def test_the_rejected_methods_and_their_reasons_are_printed(plan: Recommendation) -> None:
    assert "full (all weights): it is searched only when asked for" in printed(suggest_table(plan))


def test_a_full_fine_tuning_has_no_rank(plan: Recommendation, make_candidate: Callable[..., Candidate]) -> None:
    full = make_candidate("full", r=None, lora_alpha=None, target_modules=())
    entry = replace(plan.candidates[0], candidate=full)
    assert row_of(printed(suggest_table(replace(plan, candidates=(entry,)))), "full")[:6] == [
        "1", "full", "-", "-", "all", "weights",
    ]  # fmt: skip


def test_every_registered_method_is_in_the_table() -> None:
    text = printed(methods_table(registry().values(), all_spaces()))
    assert registry()
    assert all(f"\n{name} " in text for name in registry())


def test_markup_and_control_characters_of_foreign_texts_mean_nothing(plan: Recommendation) -> None:
    data = replace(plan.data, source="[red]x[/nonsense]\x1b[2J\x9b31m")
    text = printed(data_table(data))
    assert "[red]x[/nonsense]" in text
    assert "\x1b" not in text
    assert "\x9b" not in text


def test_the_data_table_holds_findings_with_advice(plan: Recommendation) -> None:
    text = printed(data_table(plan.data))
    assert "warning  2 rows are exact copies of an earlier one" in text
    assert "what to do: remove them, or they count twice" in text


def test_what_the_hardware_probe_does_not_know_is_said(plan: Recommendation) -> None:
    text = printed(hardware_table(plan.hardware))
    assert "memory bandwidth" in text
    assert "not known" in text
