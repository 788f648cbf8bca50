"""Asks the estimators about every row, keeps their answers in results.json and writes docs/estimators.md.

    PYTHONPATH=benchmarks python -m estimators.run [--table-only]

``--table-only`` installs and asks nothing: it writes the table from the answers that are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from accuracy.environments import ROOT
from accuracy.records import AccuracyRow, load_models, load_rows

from autopeft.errors import AutoPeftError
from estimators.table import RESULTS, load_answers, render
from estimators.tools import Answer, Question, ask, load_tools

TABLE = ROOT / "docs" / "estimators.md"


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table-only", action="store_true")
    if not parser.parse_args().table_only:
        keep(ask_all())
    TABLE.write_text(render(load_answers(), load_rows()), encoding="utf-8")
    print(f"wrote {TABLE}")
    return 0


def ask_all() -> list[Answer]:
    """Returns what every tool says of every row."""
    answers: list[Answer] = []
    with questions(load_rows()) as asked:
        for name, tool in load_tools().used.items():
            print(f"asking {name} about {len(asked)} rows", flush=True)
            answers += ask(name, tool, asked)
    return answers


def keep(answers: list[Answer]) -> None:
    """Writes the answers to results.json, without what is at its default."""
    lines = [
        json.dumps({key: value for key, value in asdict(answer).items() if value not in ("", None)})
        for answer in answers
    ]
    RESULTS.write_text('{"answers": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


@contextmanager
def questions(rows: list[AccuracyRow]) -> Iterator[list[Question]]:
    """Gives the rows with folders that hold their models' config.json, for as long as the block lasts."""
    models = load_models()
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root) / name.replace("/", "--") for name in models}
        for name, folder in folders.items():
            folder.mkdir()
            config = {**models[name].config, "torch_dtype": "bfloat16"}
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            (folder / "override.json").write_text(json.dumps(_override(config)), encoding="utf-8")
        yield [Question(row=row, model=models[row.model], folder=folders[row.model]) for row in rows]


def _override(config: dict[str, object]) -> dict[str, object]:
    """Returns a config under the names that canifinetune's --override-json knows."""
    gpt_names = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
    }
    renamed = {name: config[other] for name, other in gpt_names.items() if other in config}
    heads = {"num_key_value_heads": 1} if config.get("multi_query") else {}
    return {**config, **renamed, **heads}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AutoPeftError as error:
        sys.exit(str(error))
