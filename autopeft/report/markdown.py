"""report.md: the report as GitHub-flavoured Markdown, without the plots."""

from __future__ import annotations

import re

import jinja2

from autopeft.report.record import RunRecord
from autopeft.report.sections import report_document


class _Verbatim(str):
    """Text that stands inside a code fence, where Markdown interprets nothing."""

    __slots__ = ()


def render_markdown(record: RunRecord) -> str:
    """Returns report.md."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autopeft.report", "templates"),
        finalize=escape_markdown,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fenced"] = fenced
    text = environment.get_template("report.md.j2").render(report=report_document(record))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def escape_markdown(text: object) -> object:
    """Returns a text that Markdown and HTML inside Markdown show as it is, on one line.

    Every expression of the template passes through here; only fenced code does not need it.
    """
    if isinstance(text, _Verbatim) or not isinstance(text, str):
        return text
    one_line = " ".join(text.split())
    entities = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"([\\`*|~]|\](?=[(\[:]))", r"\\\1", entities)
    # An underscore inside a word (q_proj) is no emphasis; escaping it would only spoil the plain text.
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)
    return re.sub(
        r"^(#{1,6}|[+-]|=+)(?=\s|$)|^(\d+)(?=[.)]\s)", lambda m: f"\\{m[0]}" if m[1] else f"{m[0]}\\", escaped
    )


def fenced(code: str, language: str) -> str:
    """Returns code inside a fence that is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return _Verbatim(f"{fence}{language}\n{code.rstrip()}\n{fence}")
