"""Prints the README's table of methods from the registry and the search spaces.

Run: python docs/generate_method_table.py
"""

from __future__ import annotations

import sys

from autopeft.methods import registry
from autopeft.spaces import all_spaces

HEADER = "| method | changed weight | what it does | searched by default | published |\n|---|---|---|---|---|"


def method_table() -> str:
    """Returns the table as Markdown, one line a registered method."""
    spaces = all_spaces()
    lines = [HEADER]
    for name, method in registry().items():
        searched = "yes" if spaces[name].searched_by_default else f"no: `--method {name}`"
        rule = method.update_rule.replace("|", "\\|")
        paper = f"[{method.paper.rpartition('/')[2]}]({method.paper})"
        lines.append(f"| `{name}` | {rule} | {spaces[name].summary} | {searched} | {paper} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(method_table() + "\n")
