"""report.html: self-contained, escaped, complete."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from autopeft.errors import MissingExtraError
from autopeft.report import RunRecord, render_html

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'></td>{{ 1237*7 }}"


class Page(HTMLParser):
    """Collects what a browser would see: tags with attributes, scripts, text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._raw: str | None = None
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self._raw is None:
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


@pytest.fixture
def page(finished: RunRecord) -> Page:
    return Page(render_html(finished))


def test_nothing_in_the_page_points_outside_the_file(page: Page) -> None:
    loaded = page.values("src") + page.values("href") + page.values("srcset") + page.values("action")
    assert loaded, "the page has at least its table of contents"
    assert [target for target in loaded if not target.startswith(("#", "data:,"))] == []
    style = next(attrs for tag, attrs in page.tags if tag == "style")
    assert style == {}


def test_the_policy_forbids_requests_and_allows_exactly_the_scripts_of_the_page(page: Page) -> None:
    policy = next(a["content"] or "" for t, a in page.tags if t == "meta" and "Content-Security-Policy" in a.values())
    assert "default-src 'none'" in policy
    programs = [source for attributes, source in page.scripts if attributes.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in programs]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(programs) == 2


def test_plotly_is_inside_once(finished: RunRecord) -> None:
    source = render_html(finished)
    assert source.count("plotly.js v") == 1
    assert len(source) < 6_000_000


def test_each_section_and_each_link_to_it_is_there(page: Page) -> None:
    anchors = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert anchors == [
        "verdict", "baselines", "ranking", "next", "trials", "curves", "learning-rates", "memory", "ranks",
        "quantization", "costs", "caveats", "rejected", "data", "reproducibility",
    ]  # fmt: skip
    assert {f"#{anchor}" for anchor in anchors} == {target for target in page.values("href") if target[0] == "#"}


def test_each_figure_has_its_data_and_a_description(page: Page) -> None:
    plots = [attrs for tag, attrs in page.tags if attrs.get("class") == "plot"]
    data = [source for attributes, source in page.scripts if attributes.get("type") == "application/json"]
    assert len(plots) == len(data) == 7
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)


def test_what_the_reader_asked_for_is_said(page: Page) -> None:
    for said in (
        "between the methods no significant difference",
        "-0.0310 [-0.0422, -0.0198]",
        "12 of 20 trials",
        "One seed: the noise between seeds is not in the intervals.",
        "it is searched only when asked for",
        "the worker passed its limit of 1.2 GiB",
        "line 812: Blessed are the meek",
        "7e27bd9f95328f0f3b08261d1252705110c806f8",
        "settings.time_budget_seconds",
        "autopeft run runs/demo/plan.json --time-budget 2h --output runs/demo-longer",
        "In trial-0003 the error of the quantized weights falls in 210 of 210 adapted layers.",
    ):
        assert said in page.text


def test_hostile_texts_stay_texts(finished: RunRecord) -> None:
    plan = finished.plan
    trials = tuple(
        replace(
            trial,
            name=HOSTILE,
            error=HOSTILE,
            candidate=replace(trial.candidate, method=HOSTILE),
            rank_pattern={f"layers.0.{HOSTILE}": 3},
            versions={HOSTILE: HOSTILE},
        )
        for trial in finished.trials
    )
    assert finished.verdict is not None
    verdict = replace(finished.verdict, conclusion=HOSTILE, cut=(HOSTILE,), losses={HOSTILE: 1.0, "winner": 0.5})
    plan = replace(plan, data=replace(plan.data, source=HOSTILE, columns={HOSTILE: HOSTILE}), notes=(HOSTILE,))
    hostile = replace(
        finished, plan=plan, trials=trials, verdict=verdict, folder=HOSTILE, manifest={HOSTILE: [HOSTILE]}
    )
    page = Page(render_html(hostile))
    assert [tag for tag, _ in page.tags].count("script") == 2 + 7
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text.count(HOSTILE) > 20
    assert "8659" not in page.text
    figures = [source for attributes, source in page.scripts if attributes.get("type") == "application/json"]
    assert all("<" not in source and "onerror" in source for source in figures[-3:-1])


def test_a_run_in_progress_renders_and_says_how_to_go_on(finished: RunRecord) -> None:
    page = Page(render_html(replace(finished, verdict=None, trials=finished.trials[:6])))
    assert "This run has no verdict yet; trials so far: 5 complete, 1 pruned." in page.text
    assert "autopeft run --resume --output runs/demo" in page.text


def test_a_run_without_any_trial_renders(started: RunRecord) -> None:
    page = Page(render_html(started))
    assert "This run has no verdict yet: no trial has ended." in page.text
    assert [attrs for _, attrs in page.tags if attrs.get("class") == "plot"] == []


def test_a_run_whose_trials_all_failed_says_so(finished: RunRecord) -> None:
    oom = tuple(trial for trial in finished.trials if trial.status == "oom")
    page = Page(render_html(replace(finished, verdict=None, trials=oom)))
    assert "This run has no verdict: none of 1 trial completed (1 oom)." in page.text


def test_missing_figures_are_said_and_never_shown_as_zero(finished: RunRecord) -> None:
    oom = tuple(trial for trial in finished.trials if trial.status == "oom")
    page = Page(render_html(replace(finished, verdict=None, trials=oom)))
    # loss, measured peak, its kind, and the ratio of predicted to measured
    assert page.text.count("not measured") == 4
    assert "0.0000" not in page.text


def test_without_plotly_the_error_names_the_extra(finished: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'autopeft\[train\]'"):
        render_html(finished)
