"""Runs the commands that README.md shows and puts their present output and the table of methods into it.

Run: python docs/refresh_readme.py

A fenced ``console`` block that starts with ``$ autopeft`` holds one command and its output; the table stands between
its two markers. A test asserts that this script would change nothing.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from generate_method_table import method_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONSOLE = re.compile(r"^```console\n\$ (autopeft [^\n]*)\n.*?^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(<!-- methods: begin -->\n).*?(<!-- methods: end -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """Returns the README's text with present outputs and the present table."""
    text = CONSOLE.sub(lambda found: f"```console\n$ {found[1]}\n{output_of(found[1])}```", text)
    return TABLE.sub(lambda found: found[1] + method_table() + "\n" + found[2], text)


def output_of(command: str) -> str:
    """Returns what a command prints, in the repository's folder, without blanks at the ends of lines.

    ``| head -n N`` is done here: a real one may close the pipe on the command.
    """
    command, _, lines = command.partition(" | head -n ")
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise SystemExit(f"{command!r} in README.md ends with {done.returncode}: {done.stderr.strip()}")
    shown = done.stdout.splitlines()[: int(lines) if lines else None]
    return "".join(f"{line.rstrip()}\n" for line in shown)


if __name__ == "__main__":
    README.write_text(refreshed(README.read_text(encoding="utf-8")), encoding="utf-8")
