"""`--baseline` from end to end: a real worker on a tiny model, and what needs none."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from autopeft import api
from autopeft.cli import cli
from autopeft.errors import InvalidInputError, ModelError, NothingFitsError
from autopeft.profiling.model import load_model
from autopeft.specs import Device
from autopeft.units import GIB


@pytest.fixture
def parity(tmp_path: Path) -> Path:
    path = tmp_path / "parity.jsonl"
    rows = [{"text": f"number {n}", "label": "odd" if n % 3 else "even"} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_command_scores_the_model_in_a_worker_and_puts_the_advice_on_top(tiny_model: Path, parity: Path) -> None:
    options = ["--model", str(tiny_model), "--baseline", "--baseline-rows", "8", "--baseline-shots", "1"]
    plan = CliRunner().invoke(cli, ["suggest", "--data", str(parity), *options, "--json"], catch_exceptions=False)
    content = json.loads(plan.stdout)
    scores = content["data"]["base_scores"]
    assert content["notes"][0] == scores["advice"]["sentence"]
    assert scores["task"] == "labels"
    assert [each["shots"] for each in scores["shots"]] == [0, 1]
    lines = parity.read_text(encoding="utf-8").splitlines()
    assert all(0 <= row < len(lines) for row in scores["rows"])
    assert len(scores["rows"]) == 8
    assert any(finding["code"] == "distance-from-the-base" for finding in content["data"]["findings"])
    table = api.read_plan(_written(content, parity.parent / "plan.json"))
    assert table.data.base_scores is not None


def _written(content: object, path: Path) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_an_encoders_baseline_is_the_most_frequent_label_and_needs_no_weights(tmp_path: Path, parity: Path) -> None:
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 64,
    }
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shown = CliRunner().invoke(
        cli, ["data", str(parity), "--model", str(tmp_path / "bert"), "--baseline"], catch_exceptions=False
    )
    assert "advice" in shown.stdout.splitlines()[0]
    assert "0.67" in shown.stdout  # 40 of 60 rows are odd
    assert "most frequent label" in shown.stdout


def test_an_encoder_has_no_baseline_on_data_without_labels(tmp_path: Path, rows: Path) -> None:
    config = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "vocab_size": 100, "max_position_embeddings": 64}
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"is an encoder .* has no labels"):
        api.baseline(model=tmp_path / "bert", data=rows)


def test_a_baseline_without_a_model_is_refused(rows: Path) -> None:
    with pytest.raises(InvalidInputError, match="--model"):
        api.describe_data(rows, baseline=True)


def test_a_base_that_does_not_fit_in_16_bits_is_scored_in_4() -> None:
    from autopeft.api._baseline import _base_candidate

    model = load_model("llama-3.1-8b")
    device = Device(name="GPU", kind="cuda", total_memory_bytes=12 * GIB, free_memory_bytes=12 * GIB,
                    supports_bfloat16=True, supports_nf4=True)  # fmt: skip
    assert _base_candidate(model, device, 24 * GIB).quantization == "none"
    assert _base_candidate(model, device, 12 * GIB).quantization == "nf4"
    with pytest.raises(NothingFitsError, match="GiB in bfloat16"):
        _base_candidate(model, device, 2 * GIB)


def test_the_sample_is_seeded_shuffled_and_without_the_rows_that_were_skipped(tmp_path: Path) -> None:
    from autopeft.api._baseline import _write_sample

    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{n}", "completion": f"{n}"}) for n in range(30)]
    lines.insert(3, "broken")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = api.describe_data(path, on_bad_row="skip")
    numbers = _write_sample(data, tmp_path / "one.jsonl", 10, 0)
    assert numbers == _write_sample(data, tmp_path / "two.jsonl", 10, 0)
    assert sorted(numbers) == list(range(30)) != list(numbers)
    written = [json.loads(line)["prompt"] for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert written == [str(number) for number in numbers]
