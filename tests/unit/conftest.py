"""A model folder without weights and a small data set: all that needs neither torch nor a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that holds a config.json and nothing else."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data file of 300 additions, which a test may change."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{n} + 1 = ", "completion": str(n + 1)}) for n in range(300)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
