"""Hub models from huggingface_hub's cache, offline and without a network, as its environment variables say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 80,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 16,
    "torch_dtype": "float32",
}
# (80 + 16) * 32 + 32*96+96 + 32*32+32 + 32*128+128 + 128*32+32 + 6*32, by hand
PARAMETERS = 15_840

CODE = """
import json, sys
from autopeft.errors import ModelError
from autopeft.profiling.model import load_model
try:
    spec = load_model(sys.argv[1])
    names = ("id", "format", "path", "revision", "parameter_count", "parameter_count_source", "stored_dtype",
             "has_chat_template", "has_tokenizer_file", "license", "notes")
    print(json.dumps({name: getattr(spec, name) for name in names}))
except ModelError as error:
    print(json.dumps({"error": str(error)}))
"""


def load(model_id: str, home: Path, **environment: str) -> dict[str, object]:
    """Runs load_model in a process of its own: huggingface_hub reads its environment when it is imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    settings = clean | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", **environment}
    command = [sys.executable, "-W", "error", "-c", CODE, model_id]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def cached_snapshot(home: Path) -> Path:
    repository = home / "hub" / "models--tiny--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    (snapshot / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return snapshot


def weights() -> dict[str, np.ndarray]:
    shapes = {"wte.weight": (80, 32), "wpe.weight": (16, 32), "h.0.attn.c_attn.weight": (32, 96)}
    shapes |= {"h.0.attn.c_proj.weight": (32, 32), "h.0.mlp.c_fc.weight": (32, 128), "h.0.mlp.c_proj.weight": (128, 32)}
    vectors = {
        "h.0.attn.c_attn.bias": 96,
        "h.0.mlp.c_fc.bias": 128,
        "h.0.attn.c_proj.bias": 32,
        "h.0.mlp.c_proj.bias": 32,
    }
    vectors |= {f"{norm}.{part}": 32 for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f") for part in ("weight", "bias")}
    return {name: np.zeros(shape, dtype=np.float16) for name, shape in (shapes | vectors).items()}


def test_a_cached_model_is_profiled_offline(tmp_path: Path) -> None:
    snapshot = cached_snapshot(tmp_path)
    (snapshot / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    answer = load("tiny/model", tmp_path, HF_HUB_OFFLINE="1")
    assert answer["id"] == "tiny/model"
    assert (answer["format"], answer["path"], answer["revision"]) == ("hub", None, COMMIT)
    assert (answer["parameter_count"], answer["parameter_count_source"]) == (PARAMETERS, "config")
    assert answer["has_chat_template"] is True
    assert answer["notes"] == [f"the hub is not asked in offline mode; read from the cache at {COMMIT}"]


def test_cached_weights_are_counted_offline(tmp_path: Path) -> None:
    save_file(weights(), cached_snapshot(tmp_path) / "model.safetensors")
    answer = load("tiny/model", tmp_path, HF_HUB_OFFLINE="1")
    assert (answer["parameter_count"], answer["parameter_count_source"]) == (PARAMETERS, "header")
    assert answer["stored_dtype"] == "float16"


def test_a_model_that_is_not_cached_cannot_be_had_offline(tmp_path: Path) -> None:
    answer = load("tiny/other", tmp_path, HF_HUB_OFFLINE="1")
    assert answer["error"] == (
        "hub model tiny/other: the hub is not asked in offline mode, and the cache does not hold it; "
        "give a local folder, a .gguf file or the name of a profile"
    )


def test_without_a_network_the_cache_answers_and_its_lack_is_one_sentence(tmp_path: Path) -> None:
    cached_snapshot(tmp_path)
    unreachable = "http://127.0.0.1:9"  # the discard port, where nothing listens
    cached = load("tiny/model", tmp_path, HF_ENDPOINT=unreachable)
    assert cached["notes"] == [f"the hub cannot be reached (ConnectError); read from the cache at {COMMIT}"]
    other = load("tiny/other", tmp_path, HF_ENDPOINT=unreachable)
    assert str(other["error"]).startswith(
        "hub model tiny/other: the hub cannot be reached (ConnectError), and the cache does not hold it"
    )
