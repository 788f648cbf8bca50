"""Runs ``accelerate estimate-memory`` on local config folders; started inside the tool's own environment.

Reads a JSON list of ``{"folder": ..., "dtype": ...}`` from stdin and writes a JSON list of sizes in bytes to stdout.
"""

import argparse
import contextlib
import json
import sys
from types import SimpleNamespace
from typing import Any

from accelerate.commands import estimate


def sizes(folder: str, dtype: str) -> dict[str, Any]:
    """Returns the command's own figures: bytes of the weights and of training with Adam."""
    arguments = argparse.Namespace(
        model_name=folder, library_name="transformers", trust_remote_code=False, dtypes=[dtype]
    )
    _, _, weights, training = estimate.gather_data(arguments)[0]
    return {"weights_bytes": int(weights), "training_bytes": int(max(training.values()))}


def main() -> None:
    """Answers every request of stdin."""
    estimate.verify_on_hub = lambda *_, **__: SimpleNamespace(config={})
    requests = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answers = [sizes(request["folder"], request["dtype"]) for request in requests]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
