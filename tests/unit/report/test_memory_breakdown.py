"""Memory in the terminal and as a plot: the figures shown are the estimate's, and they fit 80 columns."""

from __future__ import annotations

import io
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from autopeft.errors import InvalidInputError, MissingExtraError
from autopeft.report.memory_breakdown import breakdown_chart, epoch_peaks_table, explain_text
from autopeft.report.memory_plot import phase_bars, plot_memory
from autopeft.specs import Combination, EpochPeaks, Explanation, Lever, MemoryEstimate
from autopeft.units import GIB, MIB

PHASES = {
    "load": {"base_weights": 2 * GIB},
    "forward": {"base_weights": 2 * GIB, "activations": 3 * GIB, "logits": 4 * GIB},
    "backward": {"base_weights": 2 * GIB, "activations": 3 * GIB, "logits": 5 * GIB, "gradients": 0},
    "optimizer": {"base_weights": 2 * GIB, "temporaries": GIB},
}


def estimate(**changes: Any) -> MemoryEstimate:
    fields: dict[str, Any] = {
        "peak_memory_bytes": 10 * GIB,
        "peak_reserved_bytes": 10 * GIB + 512 * MIB,
        "overhead_bytes": GIB,
        "required_bytes": 11 * GIB,
        "components": PHASES["backward"],
        "phases": {name: sum(parts.values()) for name, parts in PHASES.items()},
        "trainable_parameters": 1000,
        "seconds_per_step": 1.0,
        "source": "closed_form",
        "relative_error": 0.05,
        "phase_components": PHASES,
        "peak_operation": "aten::_log_softmax_backward_data in lm_head",
    }
    return MemoryEstimate(**fields | changes)


def lever(name: str, **changes: Any) -> Lever:
    fields: dict[str, Any] = {
        "name": name, "change": f"change of {name}", "settings": {}, "quality_risk": "none", "cost": f"cost of {name}",
        "required_bytes": 9 * GIB, "saved_bytes": 2 * GIB, "seconds_ratio": 1.33, "fits": False,
    }  # fmt: skip
    return Lever(**fields | changes)


def explanation(**changes: Any) -> Explanation:
    fields: dict[str, Any] = {
        "required_bytes": 11 * GIB,
        "available_bytes": 8 * GIB,
        "fits": False,
        "dominant": ("the peak of 10.00 GiB is reached in the backward phase", "logits take 5.00 GiB of it (50%)"),
        "quantization": (),
        "levers": (lever("a"), lever("b", seconds_ratio=None, fits=True)),
        "combination": Combination(
            levers=("change of b",), settings={}, required_bytes=7 * GIB, seconds_ratio=1.5, fits=True
        ),
    }
    return Explanation(**fields | changes)


def printed(part: RenderableType) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(part)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    return text


def flat(part: RenderableType) -> str:
    return " ".join(printed(part).split())


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_components_are_drawn_largest_first_with_size_and_share():
    lines = printed(breakdown_chart(estimate())).splitlines()
    assert lines[0] == "At the peak, in the backward phase (aten::_log_softmax_backward_data in lm_head)"
    assert [re.sub(r"[^\w .%]", "", line).split() for line in lines[1:4]] == [
        ["logits", "5.00", "GiB", "50%"],
        ["activations", "3.00", "GiB", "30%"],
        ["base", "weights", "2.00", "GiB", "20%"],
    ]
    # Nothing is no bar.
    assert lines[4].strip() == ""


def test_a_bar_is_as_long_as_its_share():
    text = printed(breakdown_chart(estimate()))
    # 25 columns are 10 GiB; halves are drawn by another character.
    assert [row(text, name).count("█") for name in ("logits", "activations", "base weights")] == [12, 7, 5]
    assert [row(text, name).count("█") for name in ("load", "forward", "backward", "optimizer")] == [5, 22, 25, 7]
    assert "sets the peak" in row(text, "backward")


def test_the_way_from_the_peak_to_what_is_required_adds_up():
    text = printed(breakdown_chart(estimate(), 24 * GIB))
    sizes = [re.findall(r"[\d.]+ [GM]iB", row(text, name))[0] for name in ("allocated", "held", "context", "required")]
    assert sizes == ["10.00 GiB", "0.50 GiB", "0.50 GiB", "11.00 GiB"]
    assert "24.00 GiB 13.00 GiB to spare" in row(text, "available")
    assert "8.00 GiB 3.00 GiB too little" in row(printed(breakdown_chart(estimate(), 8 * GIB)), "available")


def test_an_explanation_names_levers_with_their_price_and_what_fits():
    text = flat(explain_text(explanation()))
    assert "What would help, the cheapest first" in text
    assert "change of a 2.00 GiB 1.33 x none" in text
    assert "change of b 2.00 GiB unknown none fits" in text
    assert "cost of a" in text
    assert text.endswith(
        "It needs 11.00 GiB and 8.00 GiB are available; "
        "this change alone fits (7.00 GiB, 1.50 x the time): change of b."
    )
    assert "quantizing" not in text


def test_levers_that_fit_together_are_counted():
    two = Combination(levers=("one", "two"), settings={}, required_bytes=7 * GIB, seconds_ratio=None, fits=True)
    assert "these 2 together fit (7.00 GiB): one; two." in flat(explain_text(explanation(combination=two)))
    never = replace(two, fits=False, required_bytes=9 * GIB)
    text = flat(explain_text(explanation(combination=never, quantization=("the weights are 3%",))))
    assert "even all of these together take 9.00 GiB: one; two." in text
    assert "Why quantizing does not help here - the weights are 3%" in text


def test_what_fits_is_said_to_fit_and_levers_are_shown_as_savings():
    text = flat(explain_text(explanation(fits=True, available_bytes=24 * GIB, combination=None)))
    assert "What would save most, the cheapest first" in text
    assert text.endswith("It fits as it is: 11.00 GiB of 24.00 GiB.")
    assert "none fits" not in text
    none = explain_text(explanation(levers=(), combination=None))
    assert "Nothing saves 1 % or more." in flat(none)
    assert flat(none).endswith("no change of this configuration helps.")


def test_the_batches_of_an_epoch_are_a_table_with_the_share_over_the_limit():
    names = ("0.5", "0.9", "0.99", "largest")
    peaks = EpochPeaks(
        sampler="length_grouped",
        batches=1250,
        padded_lengths=dict(zip(names, (100, 200, 400, 2048), strict=True)),
        peak_memory_bytes=dict(zip(names, (GIB, 2 * GIB, 4 * GIB, 20 * GIB), strict=True)),
        required_bytes=dict(zip(names, (2 * GIB, 3 * GIB, 5 * GIB, 21 * GIB), strict=True)),
        available_bytes=16 * GIB,
        longest_fitting_length=1500,
        share_over_limit=0.0024,
        probability_over_limit=1.0,
        assumptions=("a batch is padded to its longest row",),
    )
    text = flat(epoch_peaks_table(peaks))
    assert "The 1,250 batches of an epoch (length grouped)" in text
    assert "99 of 100 batches 400 tokens 4.00 GiB 5.00 GiB" in text
    assert "the largest batch 2,048 tokens 20.00 GiB 21.00 GiB" in text
    assert (
        "0.24% of the batches need more than the 16.00 GiB that are available; an epoch meets one with probability "
        "100%; batches fit up to 1,500 tokens a row."
    ) in text
    assert "No batch needs more than the 16.00 GiB" in flat(epoch_peaks_table(replace(peaks, share_over_limit=0.0)))
    assert "available" not in flat(epoch_peaks_table(replace(peaks, available_bytes=None)))


def test_every_bar_of_the_plot_sums_to_its_phase_and_the_last_to_what_is_required():
    found = {name: sum(bar.values()) for name, bar in phase_bars(estimate()).items()}
    assert found == {**estimate().phases, "required": 11 * GIB}
    unknown = phase_bars(estimate(phase_components={}))
    assert unknown["forward"] == {"not broken down": 9 * GIB}
    assert unknown["backward"] == PHASES["backward"]


def svg_texts(path: Path) -> list[str]:
    texts = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return [(node.text or "").strip() for node in texts]


def test_the_plot_names_phases_parts_sizes_and_limit(tmp_path: Path):
    file = tmp_path / "memory.svg"
    plot_memory(estimate(), file, available_bytes=16 * GIB, title="LoRA on a model")
    texts = svg_texts(file)
    expected = ("load", "forward", "backward (peak)", "optimizer", "required", "base weights", "activations", "logits")
    assert set(expected) <= set(texts)
    assert {"LoRA on a model", "GiB", "available: 16.0 GiB", "10.0", "11.0", "held by allocator"} <= set(texts)
    # What is nowhere is not in the legend.
    assert "gradients" not in texts


def test_a_limit_far_outside_is_told_instead_of_drawn(tmp_path: Path):
    file = tmp_path / "memory.svg"
    plot_memory(estimate(), file, available_bytes=80 * GIB)
    assert "GiB, of 80.0 available" in svg_texts(file)
    assert "available: 80.0 GiB" not in svg_texts(file)


def test_the_same_figures_give_the_same_file(tmp_path: Path):
    files = [tmp_path / f"{number}.svg" for number in range(2)]
    for file in files:
        plot_memory(estimate(), file, available_bytes=16 * GIB)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_plot_is_a_png_where_the_file_says_so(tmp_path: Path):
    file = tmp_path / "memory.PNG"
    plot_memory(estimate(), file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_another_ending_and_a_missing_folder_are_refused(tmp_path: Path):
    with pytest.raises(InvalidInputError, match=r"written as \.svg or \.png, but .*memory\.pdf ends in '\.pdf'"):
        plot_memory(estimate(), tmp_path / "memory.pdf")
    with pytest.raises(InvalidInputError, match=r"cannot write the plot .*nowhere.*: No such file or directory"):
        plot_memory(estimate(), tmp_path / "nowhere" / "memory.svg")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"drawing a plot needs .*pip install 'autopeft\[train\]'"):
        plot_memory(estimate(), tmp_path / "memory.svg")
