"""report.html in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from autopeft.report import RunRecord, render_html

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=8000", "--dump-dom",
)  # fmt: skip


def opened(page: str, folder: Path) -> tuple[str, str]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def test_every_plot_is_drawn_and_the_console_stays_silent(finished: RunRecord, tmp_path: Path) -> None:
    dom, log = opened(render_html(finished), tmp_path)
    # Plotly draws each figure as a group with this class.
    assert dom.count('class="cartesianlayer"') == 7
    assert "CONSOLE" not in log


def test_the_console_shows_a_refused_script_so_that_its_silence_means_something(
    finished: RunRecord, tmp_path: Path
) -> None:
    page = render_html(finished).replace("</main>", "<script>document.title = 'injected'</script></main>")
    dom, log = opened(page, tmp_path)
    assert "<title>injected" not in dom
    assert "CONSOLE" in log
