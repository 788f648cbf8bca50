"""The hub client against a server that speaks the hub's routes: what is asked, what is kept, what is said."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import close_session, constants
from safetensors.numpy import save

from autopeft.errors import ModelError
from autopeft.profiling import _hub_client
from autopeft.profiling.model import load_model
from tests.unit.profiling.hub_server import COMMIT, MODEL, Hub, running

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123456789"
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
# 2 * 80*32 embeddings and head, 4 * 32*32 attention, 3 * 32*48 MLP, 3 * 32 norms, by hand
PARAMETERS = 13_920


def tensors() -> dict[str, Any]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (80, 32), "lm_head.weight": (80, 32)}
    shapes |= {f"model.layers.0.self_attn.{name}_proj.weight": (32, 32) for name in "qkvo"}
    shapes |= {f"model.layers.0.mlp.{name}_proj.weight": (48, 32) for name in ("gate", "up")}
    shapes["model.layers.0.mlp.down_proj.weight"] = (32, 48)
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    shapes |= {f"{name}.weight": (32,) for name in norms}
    return {name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}


def sharded(total: dict[str, int]) -> dict[str, bytes]:
    weights = list(tensors().items())
    parts = {"model-00001-of-00002.safetensors": weights[:5], "model-00002-of-00002.safetensors": weights[5:]}
    index = {"metadata": total, "weight_map": {name: file for file, part in parts.items() for name, _ in part}}
    files = {file: save(dict(part)) for file, part in parts.items()}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    small = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        "README.md": b"---\nlicense: mit\n---",
    }
    with running(Hub(files=small | {"model.safetensors": save(tensors())}, on_cdn=("model.safetensors",))) as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(_hub_client, "FIRST_WAIT_SECONDS", 0.01)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "*")
        close_session()
        yield server
        close_session()


def test_of_a_model_only_small_files_and_the_header_of_the_weights_are_fetched(hub: Hub) -> None:
    hub.files["model.safetensors"] += bytes(2_000_000)
    spec = load_model(MODEL)
    assert (spec.parameter_count, spec.parameter_count_source) == (PARAMETERS, "header")
    assert (spec.id, spec.format, spec.path, spec.revision) == (MODEL, "hub", None, COMMIT)
    assert (spec.stored_dtype, spec.license) == ("float16", "mit")
    assert (spec.has_tokenizer_file, spec.has_chat_template, spec.notes) == (True, False, ())
    assert [request.range for request in hub.gets("model.safetensors")] == ["bytes=0-131071"] * 2
    assert not hub.gets("tokenizer.json")
    assert hub.sent_bytes < 200_000


def test_the_token_goes_to_the_hub_and_not_where_it_redirects(hub: Hub) -> None:
    load_model(MODEL)
    assert {request.authorization for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in hub.cdn_requests} == {None}
    assert hub.cdn_requests


def test_a_second_profile_downloads_no_small_file_again(hub: Hub) -> None:
    first = load_model(MODEL)
    hub.requests.clear()
    assert load_model(MODEL) == first
    asked = {request.path.rpartition("/")[2] for request in hub.requests}
    assert asked == {"config.json", "tokenizer.json", "model.safetensors"}
    assert not hub.gets("config.json")


@pytest.mark.parametrize("header_bytes", [131_063, 131_064, 131_065, 400_000])
def test_a_header_longer_than_the_first_range_is_read_whole(hub: Hub, header_bytes: int) -> None:
    entry = {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "model.norm.weight": entry}).encode().ljust(header_bytes)
    hub.files["model.safetensors"] = len(header).to_bytes(8, "little") + header + bytes(2)
    spec = load_model(MODEL)
    assert (spec.parameter_count, spec.parameter_count_source) == (1, "header")


def test_a_server_that_ignores_ranges_is_left_when_the_header_is_there(hub: Hub) -> None:
    hub.ignores_range = True
    hub.files["model.safetensors"] += bytes(64_000_000)
    assert load_model(MODEL).parameter_count == PARAMETERS
    assert hub.sent_bytes < 32_000_000  # what was on its way in the sockets' buffers


def test_an_index_that_agrees_with_the_configuration_spares_the_headers(hub: Hub) -> None:
    hub.files |= sharded({"total_size": 2 * PARAMETERS})
    del hub.files["model.safetensors"]
    spec = load_model(MODEL)
    assert (spec.parameter_count, spec.parameter_count_source, spec.notes) == (PARAMETERS, "index", ())
    assert not hub.gets("model-0000")


def test_where_the_index_disagrees_the_headers_of_all_files_decide(hub: Hub) -> None:
    hub.files |= sharded({"total_size": 5})
    del hub.files["model.safetensors"]
    spec = load_model(MODEL)
    assert (spec.parameter_count, spec.parameter_count_source) == (PARAMETERS, "header")
    assert len(hub.gets("model-0000")) == 2


def test_a_file_that_the_index_names_and_the_hub_lacks_is_an_error(hub: Hub) -> None:
    hub.files |= sharded({})
    del hub.files["model-00002-of-00002.safetensors"]
    with pytest.raises(ModelError, match=r"lacks files that its model.safetensors.index.json names"):
        load_model(MODEL)


@pytest.mark.parametrize("kept_bytes", [4, 60, -1])
def test_weights_that_are_cut_off_on_the_hub_are_an_error_as_in_a_folder(hub: Hub, kept_bytes: int) -> None:
    hub.files["model.safetensors"] = hub.files["model.safetensors"][:kept_bytes]
    with pytest.raises(ModelError, match=r"^model.safetensors of hub model tiny/model is (cut|no safe)"):
        load_model(MODEL)


def test_weights_of_another_kind_leave_the_configuration(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    spec = load_model(MODEL)
    assert (spec.parameter_count, spec.parameter_count_source) == (PARAMETERS, "config")
    assert spec.notes == ("the weights are no safetensors files; parameters are counted from config.json",)


def test_a_small_file_that_cannot_be_had_is_told_and_not_taken_as_missing(hub: Hub) -> None:
    hub.denied = ("tokenizer_config.json",)
    spec = load_model(MODEL)
    assert spec.parameter_count_source == "header"
    (note,) = spec.notes
    assert note.startswith("tokenizer_config.json could not be read (the hub denies it (status 403)")


def test_a_tokenizer_that_the_hub_does_not_tell_of_is_noted(hub: Hub) -> None:
    hub.denied = ("tokenizer.json",)
    spec = load_model(MODEL)
    assert not spec.has_tokenizer_file
    (note,) = spec.notes
    assert note.startswith("whether there is a tokenizer.json is not known (the hub denies it (status 403)")


def test_the_source_of_the_count_is_the_same_without_the_hub(hub: Hub) -> None:
    hub.files |= sharded({"total_size": 2 * PARAMETERS})
    del hub.files["model.safetensors"]
    online = load_model(MODEL)
    hub.problem = (503, {"Retry-After": "0"})
    cached = load_model(MODEL)
    assert (cached.parameter_count, cached.parameter_count_source) == (PARAMETERS, online.parameter_count_source)
    assert "read from the cache" in cached.notes[0]


def test_an_index_that_cannot_be_had_is_not_told_as_weights_of_another_kind(hub: Hub) -> None:
    hub.files |= sharded({})
    del hub.files["model.safetensors"]
    hub.denied = ("model.safetensors.index.json",)
    spec = load_model(MODEL)
    assert (spec.parameter_count, spec.parameter_count_source) == (PARAMETERS, "config")
    (note,) = spec.notes
    assert note.startswith("model.safetensors.index.json could not be read")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_hub_is_asked_again(hub: Hub, status: int) -> None:
    hub.failure, hub.failures = (status, {"Retry-After": "0"}), 2
    spec = load_model(MODEL)
    assert (spec.parameter_count_source, spec.notes) == ("header", ())


def test_a_hub_that_stays_busy_is_given_up_after_three_times(hub: Hub) -> None:
    hub.problem = (503, {"Retry-After": "0"})
    with pytest.raises(ModelError, match=r"the hub is busy or broken \(status 503, asked 3 times\), and"):
        load_model(MODEL)
    assert len(hub.requests) == 3


GATED = "it is gated: accept its terms on its page and set HF_TOKEN"
INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}
PROBLEMS: dict[str, tuple[tuple[int, dict[str, str]], str]] = {
    "gated, no token": ((401, {"X-Error-Code": "GatedRepo"}), GATED),
    "gated, token": ((403, {"X-Error-Code": "GatedRepo"}), GATED),
    "unknown": ((401, {"X-Error-Code": "RepoNotFound"}), "the hub has no such model, or it is private (set HF_TOKEN)"),
    "no repository": ((404, {"X-Error-Code": "RepoNotFound"}), "the hub has no such model, or it is private"),
    "bad token": ((401, INVALID), "the hub denies it (status 401)"),
    "forbidden": ((403, {}), "the hub denies it (status 403): check HF_TOKEN and its permissions"),
    "no file": ((404, {"X-Error-Code": "EntryNotFound"}), "it has no config.json, so that its layers are unknown"),
    "no revision": ((404, {"X-Error-Code": "RevisionNotFound"}), "it has no such revision"),
    "teapot": ((418, {}), "the hub answers with status 418"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_the_hub_refuses_is_one_sentence_without_the_token(
    hub: Hub, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.problem, expected = PROBLEMS[name]
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ModelError, match=rf"^hub model tiny/model: {re.escape(expected)}.*, and the cache") as caught:
        load_model(MODEL)
    told = f"{caught.value}{caught.value.__cause__}{caught.value.__context__}{caplog.text}"
    assert "\n" not in str(caught.value)
    assert TOKEN not in told
    assert len(hub.requests) == 1


def test_neither_token_nor_signature_is_told_where_the_redirected_download_fails(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub.cdn_url = "http://127.0.0.1:9"  # the discard port, where nothing listens
    spec = load_model(MODEL)
    assert spec.parameter_count_source == "config"
    assert spec.notes == (
        "the weights' headers could not be read (the hub cannot be reached (ConnectError)); parameters are counted "
        "from config.json",
    )
    assert "secret-signature" not in f"{spec.notes}{caplog.text}"
    assert TOKEN not in caplog.text


REFUSALS = [PROBLEMS["gated, token"][0], (503, {}), PROBLEMS["no repository"][0]]


@pytest.mark.parametrize("problem", REFUSALS)
def test_what_is_cached_is_read_where_the_hub_refuses_and_the_note_says_why(hub: Hub, problem: Any) -> None:
    load_model(MODEL)
    hub.problem = problem
    spec = load_model(MODEL)
    assert spec.parameter_count == PARAMETERS
    assert spec.notes[0].endswith(f"; read from the cache at {COMMIT}")


def test_a_hub_that_does_not_answer_in_time_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model(MODEL)
    hub.delay_seconds = 1.0
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    spec = load_model(MODEL)
    assert spec.notes[0] == f"the hub cannot be reached (ReadTimeout); read from the cache at {COMMIT}"
    assert len(hub.requests) == 1


def test_a_revision_is_asked_for_and_its_commit_is_kept(hub: Hub) -> None:
    hub.revisions = ("v1.0", "refs%2Fpr%2F3", COMMIT)
    spec = load_model(f"{MODEL}@v1.0")
    assert (spec.id, spec.revision) == (MODEL, COMMIT)
    assert hub.requests[0].path == f"/{MODEL}/resolve/v1.0/config.json"
    assert load_model(f"{MODEL}@refs/pr/3").revision == COMMIT
    with pytest.raises(ModelError, match=r"hub model tiny/model@v2: it has no such revision"):
        load_model(f"{MODEL}@v2")


def test_what_answers_without_a_commit_is_no_hub(hub: Hub) -> None:
    hub.problem = (200, {"ETag": '"x"'})
    with pytest.raises(ModelError, match=r"what answers at HF_ENDPOINT is no hub \(it names no commit\)"):
        load_model(MODEL)


def test_a_broken_config_of_the_hub_is_named(hub: Hub) -> None:
    hub.files["config.json"] = b'{"model_type": "llama", "hidden_size": NaN}'
    with pytest.raises(ModelError, match=r"config.json holds NaN, which is no number"):
        load_model(MODEL)


CODE = """
import sys
import autopeft
plan = autopeft.suggest(model="tiny/model", data=sys.argv[1], hardware="a100-80gb", methods=["lora"])
heavy = [name for name in ("torch", "transformers", "peft", "datasets", "optuna") if name in sys.modules]
print(plan.model.parameter_count, plan.model.parameter_count_source, heavy)
"""


def test_a_suggestion_for_a_hub_id_stays_light(hub: Hub, tmp_path: Path, rows: Path) -> None:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-W", "error", "-c", CODE, str(rows)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{PARAMETERS} header []"
    assert TOKEN not in done.stderr
