"""The profile of a data set: lengths, truncation, sampling, findings, and the demo data."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import DataError
from autopeft.profiling.dataset import Reading, profile_dataset, read_examples
from autopeft.specs import DatasetProfile, ModelSpec, from_json, to_json

ModelAt = Callable[..., ModelSpec]
DEMO = Path(__file__).parents[3] / "data" / "kjv_to_web.jsonl"


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Writes rows as JSON lines and returns the file."""
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs(*lengths: tuple[int, int]) -> list[dict[str, str]]:
    """Returns pairs of so many words, all different."""
    return [
        {"prompt": f"p{row} " * prompt, "completion": f"c{row} " * completion}
        for row, (prompt, completion) in enumerate(lengths)
    ]


def codes(profile: DatasetProfile) -> dict[str, str]:
    """Returns the profile's findings as code -> severity."""
    return {finding.code: finding.severity for finding in profile.findings}


def test_lengths_and_truncation_are_exact_with_a_tokenizer(tmp_path: Path, word_model: ModelSpec) -> None:
    file = write(tmp_path, pairs((118, 10), (100, 50), (100, 100), (300, 40)))
    profile = profile_dataset(file, model=word_model)
    assert (profile.token_counts_source, profile.example_count, profile.sampled_examples) == ("tokenizer.json", 4, 4)
    assert (profile.total_tokens, profile.mean_tokens, profile.max_tokens) == (818, 204.5, 340)
    # Lengths 128, 150, 200, 340; the nearest rank of 0.5 is the second.
    assert profile.token_quantiles == {"0.5": 150, "0.9": 340, "0.95": 340, "0.99": 340}
    assert profile.supervised_ratio == pytest.approx(200 / 818)
    # 128 tokens keep 10, 28, 28 and 0 of the 200 supervised ones; 256 keep 10, 50, 100 and 0.
    points = [(point.max_length, point.rows_truncated_share) for point in profile.truncation]
    assert points == [(128, 0.75), (256, 0.25), (512, 0.0)]
    lost = [point.supervised_tokens_lost_share for point in profile.truncation]
    assert lost == pytest.approx([134 / 200, 40 / 200, 0.0])


@pytest.mark.parametrize(
    ("context", "expected"),
    [(514, [128, 256, 512, 514]), (64, [64]), (128, [128]), (None, [128, 256])],
)
def test_truncation_is_told_for_powers_of_two_up_to_the_context(
    tmp_path: Path, word_model: ModelSpec, context: int | None, expected: list[int]
) -> None:
    file = write(tmp_path, pairs((100, 50)))
    profile = profile_dataset(file, model=replace(word_model, context_length=context))
    assert [point.max_length for point in profile.truncation] == expected


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=20))
def test_longer_limits_never_lose_more(
    tmp_path_factory: pytest.TempPathFactory, word_model: ModelSpec, lengths: list[tuple[int, int]]
) -> None:
    profile = profile_dataset(write(tmp_path_factory.mktemp("rows"), pairs(*lengths)), model=word_model)
    assert profile.total_tokens == sum(prompt + completion for prompt, completion in lengths)
    for shares in (
        [point.rows_truncated_share for point in profile.truncation],
        [point.supervised_tokens_lost_share for point in profile.truncation],
    ):
        assert shares == sorted(shares, reverse=True)
        assert all(0 <= share <= 1 for share in shares)


def test_a_sample_is_seeded_counts_the_longest_row_and_extrapolates(tmp_path: Path, word_model: ModelSpec) -> None:
    lengths = [(row % 50, 20) for row in range(1000)] + [(400, 20)]
    file = write(tmp_path, pairs(*lengths))
    profile = profile_dataset(file, model=word_model, reading=Reading(sample_rows=200))
    assert (profile.example_count, profile.sampled_examples, profile.max_tokens) == (1001, 200, 420)
    assert profile == profile_dataset(file, model=word_model, reading=Reading(sample_rows=200))
    other = profile_dataset(file, model=word_model, seed=1, reading=Reading(sample_rows=200))
    assert other.total_tokens != profile.total_tokens
    # Words and characters go together here up to the length of the row's number, so the ratio is close.
    assert profile.total_tokens == pytest.approx(sum(map(sum, lengths)), rel=0.02)


def test_without_a_model_lengths_are_estimated_and_said_to_be(tmp_path: Path) -> None:
    profile = profile_dataset(write(tmp_path, [{"text": "a" * 35}] * 300), model=None)
    # 35 bytes at 3.5 a token, and one that ends the text.
    assert (profile.token_counts_source, profile.max_tokens, profile.supervised_ratio) == ("characters", 11, 1.0)
    (finding,) = [finding for finding in profile.findings if finding.code == "lengths-estimated"]
    assert finding.severity == "info"
    assert "estimated from the texts at 3.5 UTF-8 bytes a token" in finding.message


def test_a_gguf_file_is_counted_by_characters(tmp_path: Path, model_at: ModelAt) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    model = model_at(None, format="gguf", path=str(gguf), has_chat_template=True)
    assert profile_dataset(write(tmp_path, pairs((5, 5))), model=model).token_counts_source == "characters"


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"text": "T"}, "continued_pretraining"),
        ({"text": "T", "label": "a"}, "classification"),
        ({"question": "Q", "answer": "A"}, "instruction"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "instruction"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}] * 2}, "chat"),
    ],
)
def test_the_task_follows_from_the_rows(tmp_path: Path, row: dict[str, Any], task: str) -> None:
    assert profile_dataset(write(tmp_path, [row]), model=None).task == task


def test_clean_data_has_no_findings(tmp_path: Path, byte_model: ModelSpec) -> None:
    words = ["".join(word) for word in itertools.product("bcdfg", repeat=4)]
    rows = [{"prompt": f"tell me of {word}", "completion": f"it is a {word}"} for word in words[:200]]
    model = replace(byte_model, has_chat_template=True)
    for coverage in ("sample", "all"):
        assert codes(profile_dataset(write(tmp_path, rows), model=model, reading=Reading(coverage=coverage))) == {}


def test_exact_copies_are_counted_and_shown(tmp_path: Path) -> None:
    rows = pairs((1, 1), (2, 2), (3, 3))
    profile = profile_dataset(write(tmp_path, [*rows, rows[1], rows[1]]), model=None)
    (finding,) = [finding for finding in profile.findings if finding.code == "exact-duplicates"]
    assert profile.duplicate_count == finding.count == 2
    assert finding.examples == ("data.jsonl:4 repeats data.jsonl:2", "data.jsonl:5 repeats data.jsonl:2")


def test_empty_completions_are_a_warning_and_an_error_if_there_is_nothing_else(tmp_path: Path) -> None:
    empty = {"prompt": "P", "completion": " \n"}
    some = profile_dataset(write(tmp_path, [*pairs((1, 1)), empty]), model=None)
    assert codes(some)["empty-completions"] == "warning"
    assert [finding.examples for finding in some.findings if finding.code == "empty-completions"] == [
        ("data.jsonl:2: P",)
    ]
    only = profile_dataset(write(tmp_path, [empty]), model=None)
    assert only.findings[0].code == "empty-completions"
    assert only.findings[0].severity == "error"


HELD_OUT = "held-out-files-left-out"


def folder_of(path: Path, names: list[str]) -> str:
    """Writes two different rows into every file and returns the folder."""
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        lines = (json.dumps({"prompt": f"{name} {row}", "completion": "c"}) for row in range(2))
        (path / name).write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("names", "kept", "left_out"),
    [
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"]),
        (
            ["a-train-0.jsonl", "a-train-1.jsonl", "a-valid.csv"],
            ["a-train-0.jsonl", "a-train-1.jsonl"],
            ["a-valid.csv"],
        ),
        (["TRAIN.v2.jsonl", "dev_set.jsonl", "x.eval.jsonl"], ["TRAIN.v2.jsonl"], ["dev_set.jsonl", "x.eval.jsonl"]),
        (["train/0.jsonl", "validation/0.jsonl"], ["train/0.jsonl"], ["validation/0.jsonl"]),
        (["train.jsonl", "more.jsonl"], ["more.jsonl", "train.jsonl"], []),
        (["contest.jsonl", "developers.jsonl"], ["contest.jsonl", "developers.jsonl"], []),
    ],
)
def test_only_the_train_files_of_a_folder_are_used(
    tmp_path: Path, names: list[str], kept: list[str], left_out: list[str]
) -> None:
    profile = profile_dataset(folder_of(tmp_path, names), model=None)
    assert profile.files == tuple(str(tmp_path / name) for name in kept)
    findings = [finding for finding in profile.findings if finding.code == HELD_OUT]
    assert [finding.severity for finding in findings] == ["warning"] * bool(left_out)
    assert [list(finding.examples) for finding in findings] == ([left_out] if left_out else [])


def test_held_out_files_without_a_train_file_are_kept_with_a_warning(tmp_path: Path) -> None:
    profile = profile_dataset(folder_of(tmp_path, ["test.jsonl", "rows.jsonl"]), model=None)
    (finding,) = [finding for finding in profile.findings if finding.code == "held-out-files-kept"]
    assert profile.example_count == 4
    assert (finding.severity, finding.count, finding.examples) == ("warning", 2, ("test.jsonl",))


def test_a_held_out_file_named_by_itself_is_what_was_asked_for(tmp_path: Path) -> None:
    folder_of(tmp_path, ["train.jsonl", "test.jsonl"])
    profile = profile_dataset(str(tmp_path / "test.jsonl"), model=None)
    assert not {code for code in codes(profile) if code.startswith("held-out")}


@pytest.mark.parametrize(("same", "found"), [(9, True), (8, False)])
def test_nearly_constant_completions_are_found(tmp_path: Path, same: int, found: bool) -> None:
    rows = pairs(*[(1, 1)] * 10)
    rows[:same] = [row | {"completion": "yes"} for row in rows[:same]]
    assert ("constant-completion" in codes(profile_dataset(write(tmp_path, rows), model=None))) is found


def test_rows_longer_than_the_context_are_found(tmp_path: Path, word_model: ModelSpec) -> None:
    profile = profile_dataset(write(tmp_path, pairs((1, 1), (500, 12), (500, 13))), model=word_model)
    (finding,) = [finding for finding in profile.findings if finding.code == "longer-than-context"]
    assert (finding.count, finding.examples) == (1, ("data.jsonl:3: 513 tokens",))


@pytest.mark.parametrize(("rows", "found"), [(199, True), (200, False)])
def test_very_small_data_is_found(tmp_path: Path, rows: int, found: bool) -> None:
    assert ("few-rows" in codes(profile_dataset(write(tmp_path, pairs(*[(1, 1)] * rows)), model=None))) is found


@pytest.mark.parametrize(
    ("labels", "severity"), [("hhhhs", "warning"), ("hhhhhh", "error"), ("hhhss", None)], ids=["most", "only", "fair"]
)
def test_label_imbalance_is_found(tmp_path: Path, labels: str, severity: str | None) -> None:
    rows = [{"text": f"T{row}", "label": label} for row, label in enumerate(labels)]
    profile = profile_dataset(write(tmp_path, rows), model=None)
    assert codes(profile).get("label-imbalance") == severity
    assert profile.label_counts == {label: labels.count(label) for label in dict.fromkeys(labels)}


def test_labels_that_differ_in_case_or_white_space_alone_are_found(tmp_path: Path) -> None:
    labels = ["spam", "spam", "Spam", "spam ", "ham", "0", 0]
    rows = [{"text": f"T{row}", "label": label} for row, label in enumerate(labels)]
    profile = profile_dataset(write(tmp_path, rows), model=None)
    (finding,) = [finding for finding in profile.findings if finding.code == "label-variants"]
    assert (finding.count, finding.examples) == (2, ("'spam' and 'Spam' and 'spam '",))


def test_json_lines_named_as_text_are_found(tmp_path: Path) -> None:
    file = tmp_path / "data.txt"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    assert codes(profile_dataset(str(file), model=None))["json-as-text"] == "warning"
    file.write_text("{braces} are no JSON}\nplain\n")
    assert "json-as-text" not in codes(profile_dataset(str(file), model=None))


def test_grouping_by_length_is_not_advised_where_it_saves_nothing(tmp_path: Path) -> None:
    profile = profile_dataset(write(tmp_path, pairs((1, 1), (500, 12))), model=None)
    (finding,) = [finding for finding in profile.findings if finding.code == "padding-waste"]
    assert finding.advice.startswith("there are too few rows to group by length; pack them (")


def test_a_missing_chat_template_is_found_for_conversations_only(tmp_path: Path, word_model: ModelSpec) -> None:
    assert codes(profile_dataset(write(tmp_path, pairs((1, 1))), model=word_model))["no-chat-template"] == "info"
    assert "no-chat-template" not in codes(profile_dataset(write(tmp_path, [{"text": "T"}]), model=word_model))


def test_findings_stand_worst_first(tmp_path: Path) -> None:
    severities = list(codes(profile_dataset(write(tmp_path, [{"text": "T", "label": "a"}] * 2), model=None)).values())
    assert severities == ["error", "warning", "warning", "warning", "info"]


def test_a_profile_survives_json(tmp_path: Path, word_model: ModelSpec) -> None:
    profile = profile_dataset(write(tmp_path, pairs((1, 1), (2, 2))), model=word_model)
    assert from_json(to_json(profile), DatasetProfile, "profile") == profile


def test_a_profile_holds_what_reads_the_same_rows_again(tmp_path: Path) -> None:
    file = write(tmp_path, [{"query": "Q", "reply": "A"}])
    profile = profile_dataset(file, model=None, columns={"prompt": "query", "completion": "reply"})
    assert profile.columns == {"prompt": "query", "completion": "reply"}
    (example,) = read_examples(profile.files, profile.format, profile.columns)
    assert example.messages == (("user", "Q"), ("assistant", "A"))


BAD_LINES = ['{"prompt": "P"', '{"prompt": "P"}', "[1]"]


def with_bad_lines(folder: Path) -> str:
    """Writes three good rows among three bad ones, on the lines 2, 4 and 5, and returns the file."""
    good = [json.dumps(row) for row in pairs((1, 1), (2, 2), (3, 3))]
    file = folder / "data.jsonl"
    file.write_text("\n".join([good[0], BAD_LINES[0], good[1], *BAD_LINES[1:], good[2]]) + "\n")
    return str(file)


def test_bad_rows_of_every_kind_are_one_error_by_default(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        profile_dataset(with_bad_lines(tmp_path), model=None)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/data.jsonl:2 is not valid JSON")
    assert "3 of 6 rows cannot be read or do not fit the format 'prompt_completion'" in text
    for line, problem in ((4, ": the row has no field 'completion'"), (5, " holds a list")):
        assert f"data.jsonl:{line}{problem}" in text
    assert text.endswith("--on-bad-row skip")


def test_skipped_rows_are_counted_listed_and_left_out_by_the_training_too(tmp_path: Path) -> None:
    profile = profile_dataset(with_bad_lines(tmp_path), model=None, on_bad_row="skip")
    assert (profile.example_count, profile.skipped_rows, profile.on_bad_row) == (3, 3, "skip")
    (finding,) = [finding for finding in profile.findings if finding.code == "bad-rows-skipped"]
    assert (finding.severity, finding.count) == ("warning", 3)
    assert [shown.partition(" ")[0] for shown in finding.examples] == ["data.jsonl:2", "data.jsonl:4:", "data.jsonl:5"]
    examples = read_examples(profile.files, profile.format, profile.columns, profile.on_bad_row)
    assert [example.line for example in examples] == [1, 3, 6]


def test_nothing_but_bad_rows_is_an_error_even_if_they_are_skipped(tmp_path: Path) -> None:
    file = write(tmp_path, [{"text": 1}, {"text": 2}])
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be read .* no row is left without them"):
        profile_dataset(file, model=None, on_bad_row="skip")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "P", "chosen": "A", "rejected": "B"}, "trl's DPOTrainer"),
        ({"premise": "A", "hypothesis": "B", "label": 1}, "write both texts into one column"),
        ({"text": "T", "label": "a"}, "let the label be the answer"),
    ],
)
def test_data_that_no_training_reads_as_it_is_is_found_with_what_to_do(
    tmp_path: Path, row: dict[str, Any], what: str
) -> None:
    profile = profile_dataset(write(tmp_path, [row]), model=None)
    (finding,) = [finding for finding in profile.findings if finding.code == "not-trained"]
    assert what in finding.message + finding.advice


def test_empty_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        profile_dataset(write(tmp_path, []), model=None)


def test_a_sample_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample_rows must be at least 1, but is 0"):
        profile_dataset(write(tmp_path, pairs((1, 1))), model=None, reading=Reading(sample_rows=0))


def test_the_demo_data_is_what_its_licence_note_says(model_at: ModelAt) -> None:
    profile = profile_dataset(str(DEMO), model=None)
    assert (profile.example_count, profile.format, profile.duplicate_count) == (1496, "prompt_completion", 0)
    assert profile.content_hash == hashlib.sha256(DEMO.read_bytes()).hexdigest()
    assert f"SHA-256: `{profile.content_hash}`" in (DEMO.parent / "LICENSE-kjv_to_web.md").read_text(encoding="utf-8")
    # Lengths in SmolLM2's own tokens, template included, measured with its tokenizer.json: mean 105.8, longest 197.
    model = model_at(None, has_chat_template=True)
    assert profile_dataset(str(DEMO), model=model).mean_tokens == pytest.approx(105.8, rel=0.18)


def test_importing_the_profiler_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets", "pyarrow", "tokenizers", "huggingface_hub", "jinja2", "numpy")
    code = f"import sys, autopeft.profiling.dataset; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
