"""Runs the command ``hf-vram-calc`` once for every list of arguments; started inside the tool's own environment.

Its imports take ten seconds, so one process answers all. Reads a JSON list of argument lists from stdin and writes a
JSON list of the tool's own JSON reports to stdout.
"""

import contextlib
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def report(arguments: list[str]) -> Any:
    """Returns the JSON that the command writes for these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        sys.argv = ["hf-vram-calc", *arguments, "--output_json", str(path)]
        importlib.import_module("hf_vram_calc.cli").main()
        return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Answers every request of stdin."""
    requests = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answers = [report(arguments) for arguments in requests]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
