"""report.html: one file that works offline; everything in it is escaped and it cannot ask for anything outside."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

import jinja2
from markupsafe import Markup

from autopeft.errors import MissingExtraError
from autopeft.report.record import RunRecord
from autopeft.report.sections import report_document


def render_html(record: RunRecord) -> str:
    """Returns report.html, with plotly.js inside.

    Raises:
        MissingExtraError: if plotly is not installed.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autopeft.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is no JSON: the browser would refuse the whole figure.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    scripts = [_plotly_source(), _template_file("report.js.j2")]
    return environment.get_template("report.html.j2").render(
        report=report_document(record),
        scripts=[Markup(source) for source in scripts],
        style=Markup(_template_file("report.css.j2")),
        policy=content_policy(scripts),
    )


def content_policy(scripts: list[str]) -> str:
    """Returns the content security policy that lets exactly these scripts run and forbids every request."""
    hashes = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _template_file(name: str) -> str:
    return files("autopeft.report").joinpath("templates", name).read_text(encoding="utf-8")


def _plotly_source() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("the HTML report") from error
    source: str = get_plotlyjs()
    return source.replace("\r\n", "\n")
