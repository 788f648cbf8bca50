"""report.md: everything but the plots, escaped."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from autopeft.report import RunRecord, render_markdown
from autopeft.report.markdown import escape_markdown, fenced
from autopeft.report.sections import report_document


def test_every_cell_of_every_table_reads_as_written(finished: RunRecord) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(render_markdown(finished))
    shown, inside = list[str](), False
    for token in tokens:
        inside = token.type in ("td_open", "th_open") or (inside and token.type == "inline")
        if inside and token.type == "inline":
            shown.append("".join(child.content for child in token.children or []))
    tables = [table for section in report_document(finished).sections for table in section.tables]
    written = [
        text for table in tables for text in (*table.columns, *(cell.text for row in table.rows for cell in row))
    ]
    assert shown == written
    assert len(tables) == 17


def test_planned_candidates_that_no_training_had_are_listed_with_the_reason(finished: RunRecord) -> None:
    tried = finished.trials[0].candidate
    entries = [
        {"method": tried.method, "variant": tried.quantization, "reason": "tried after all"},
        {"method": "full", "variant": "none", "reason": "not searched by default: --method full"},
    ]
    text = render_markdown(replace(finished, manifest={"not_tried": entries}))
    assert "Planned but not tried" in text
    assert "not searched by default: --method full" in text
    assert "tried after all" not in text


def test_the_verdict_stands_at_the_top(finished: RunRecord) -> None:
    top = render_markdown(finished).splitlines()[:5]
    assert top[0] == "# autopeft report: runs/demo"
    assert finished.verdict is not None
    assert top[4] == f"**{finished.verdict.conclusion}**"


def test_a_pipe_or_a_tag_in_a_text_changes_nothing_around_it(finished: RunRecord) -> None:
    assert finished.verdict is not None
    text = "a | b <script>x</script> *c* [d](javascript:e) `f`\n# g"
    plan = replace(finished.plan, data=replace(finished.plan.data, source=text))
    tokens = MarkdownIt("commonmark").enable("table").parse(render_markdown(replace(finished, plan=plan)))
    inline = [token for token in tokens if token.type == "inline" and "javascript" in token.content]
    assert inline
    assert {child.type for token in inline for child in token.children or []} <= {"text", "text_special"}
    assert "# g" not in [token.content for token in tokens if token.type == "heading_open"]


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), include_characters="\n"), max_size=60))
def test_an_escaped_text_reads_as_itself(text: str) -> None:
    escaped = escape_markdown(f"x {text}")
    assert isinstance(escaped, str)
    tokens = MarkdownIt("commonmark").enable("table").parse(escaped)
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    shown = "".join(child.content for child in tokens[1].children or [])
    assert shown == " ".join(f"x {text}".split())


@given(st.text("`ab\n", max_size=30))
def test_code_cannot_end_its_own_fence(code: str) -> None:
    tokens = MarkdownIt("commonmark").parse(fenced(code, "sh"))
    assert [token.type for token in tokens] == ["fence"]


def test_a_run_in_progress_has_the_command_that_goes_on(started: RunRecord) -> None:
    assert "```sh\nautopeft run --resume --output runs/demo\n```" in render_markdown(started)


def test_a_folder_with_blanks_is_quoted_in_commands(started: RunRecord) -> None:
    assert "--output 'my runs/a;b'" in render_markdown(replace(started, folder="my runs/a;b"))
