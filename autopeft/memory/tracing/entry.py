"""What a subprocess in another environment runs: a request a line from stdin, an answer a line to stdout, all JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from autopeft.errors import AutoPeftError
from autopeft.memory.quiet import quiet_libraries
from autopeft.memory.tracing.request import TraceRequest


def main() -> None:
    """Answers requests until stdin ends. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(line)) + "\n")
        answers.flush()


def _answer(line: str) -> dict[str, Any]:
    try:
        request = TraceRequest.from_dict(json.loads(line))
        with quiet_libraries():
            from autopeft.memory.tracing.core import trace

            return {"answer": trace(request).to_dict()}
    except AutoPeftError as error:
        return {"error": str(error)}
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        return {"error": f"{type(error).__name__}: {first}"}
