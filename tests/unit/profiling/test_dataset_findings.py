"""What is found in data that is known, and that nothing is found where nothing is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.profiling._padding import BATCH_SIZES, padding_points
from autopeft.profiling.dataset import Reading, profile_dataset, read_examples, split_rows
from autopeft.profiling.scan.neighbours import Resemblance
from autopeft.profiling.scan.templates import template_of
from autopeft.profiling.scan.texts import is_code, is_worked_out, main_script
from autopeft.specs import DatasetProfile, Finding, ModelSpec

EXCERPTS = Path(__file__).parents[2] / "data"


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    """Writes rows as JSON lines and returns the file."""
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read_all(source: str, model: ModelSpec | None = None, **reading: Any) -> DatasetProfile:
    """Returns the profile of a full pass."""
    return profile_dataset(source, model=model, reading=Reading(coverage="all", **reading))


def finding(profile: DatasetProfile, code: str) -> Finding:
    """Returns the one finding of a code."""
    (found,) = [each for each in profile.findings if each.code == code]
    return found


def codes(profile: DatasetProfile) -> set[str]:
    """Returns the codes of the findings."""
    return {each.code for each in profile.findings}


def chat(*roles: str) -> dict[str, Any]:
    """Returns a conversation of these roles."""
    return {"messages": [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]}


def test_problems_of_one_template_are_found_in_real_data_and_kept_together() -> None:
    file = str(EXCERPTS / "gsm_symbolic.jsonl")
    profile = profile_dataset(file, model=None)
    found = finding(profile, "template-rows")
    assert found.count >= profile.example_count / 2
    assert "--column group=" in found.advice
    # Excerpts of 12 templates have larger groups than a twentieth; a column tells them better anyway.
    grouped = profile_dataset(file, model=None, columns={"group": "template"})
    assert grouped.split_by == "prompt"
    examples = read_examples(grouped.files, grouped.format, grouped.columns)
    splits = split_rows(examples, choose_rows=30, test_rows=30, seed=0)
    sides = [{examples[row].group for row in rows} for rows in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 12


def test_a_run_keeps_templates_together_where_there_are_many(tmp_path: Path) -> None:
    words = ["apples", "pears", "plums", "cherries", "figs", "dates", "limes", "kiwis", "grapes", "melons"]
    rows = [
        {"prompt": f"{name} has {count} {fruit} and eats some {other}. how many are left?", "completion": "some"}
        for fruit in words
        for other in words
        for name, count in (("Ann", 3), ("Bob", 5), ("Eve", 17))
    ]
    file = write(tmp_path, rows)
    profile = profile_dataset(file, model=None)
    assert profile.split_by == "template"
    examples = read_examples(profile.files, profile.format, profile.columns)
    splits = split_rows(examples, choose_rows=30, test_rows=30, seed=0, split_by=profile.split_by)
    sides = [{template_of(examples[row].messages[0][1]) for row in rows} for rows in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 100


@pytest.mark.parametrize("name", ["sms_spam.jsonl", "chatterbot.jsonl"])
def test_real_data_without_templates_is_not_taken_for_templates(name: str) -> None:
    profile = profile_dataset(str(EXCERPTS / name), model=None)
    assert profile.split_by == "prompt"
    assert profile.scripts["latin"] > 0.99


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ann has 3 red apples left over.", "Bob has 1,250 red apples left over.", True),
        ("Ann has three red apples left over.", "Mary Ann has twelve red apples left over.", True),
        ("Ann has 3 red apples left over.", "Ann has 3 green apples left over.", False),
    ],
)
def test_texts_that_differ_in_numbers_and_names_alone_have_one_template(one: str, other: str, same: bool) -> None:
    assert (template_of(one) == template_of(other)) is same


def test_too_little_text_is_no_template() -> None:
    assert template_of("Ann has 3") is None
    assert template_of("") is None


LONG = (
    "The quick brown fox jumps over the lazy dog while {} people look on and clap their hands in wonder, since nobody "
    "in this little village by the sea has ever known a fox that would rather play with dogs than run away from them."
)


def test_near_duplicates_are_counted_without_copies(tmp_path: Path) -> None:
    near = [{"text": LONG.format(word)} for word in ("many", "some", "few")]
    others = [{"text": f"{word} " * 30} for word in ("one", "two", "three", "four")]
    profile = read_all(write(tmp_path, [*near, *others, others[0]]))
    found = finding(profile, "near-duplicates")
    assert found.count == 2
    assert found.examples == ("rows.jsonl:2 resembles rows.jsonl:1", "rows.jsonl:3 resembles rows.jsonl:1")
    assert finding(profile, "exact-duplicates").count == 1


def test_a_share_of_a_sample_has_wilsons_interval() -> None:
    # Newcombe 1998, table I, method 3, example 81 of 263: 0.2553 to 0.3662.
    low, high = Resemblance(81, 263, ()).interval()
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_leakage_into_held_out_files_is_found_exact_near_and_by_template(tmp_path: Path) -> None:
    problem = "If {} buys {} boxes of pencils for school, how many boxes does the shop have to order again?"
    train = [{"text": LONG.format("many")}, {"text": "a b c d e f g h"}, {"text": problem.format("Ann", 3)}]
    test = [
        {"text": "a b c d e f g h"},
        {"text": LONG.format("some")},
        {"text": problem.format("Alexander Bartholomew", "twenty thousand")},
        {"text": "something else altogether that nobody has seen"},
    ]
    write(tmp_path / "folder", train, "train.jsonl")
    write(tmp_path / "folder", test, "test.jsonl")
    profile = read_all(str(tmp_path / "folder"))
    assert profile.example_count == 3
    assert finding(profile, "exact-leakage").examples == ("test.jsonl:1 repeats train.jsonl:2",)
    assert finding(profile, "near-leakage").examples == ("test.jsonl:2 is like train.jsonl:1",)
    assert finding(profile, "template-leakage").examples == ("test.jsonl:3 is like train.jsonl:3",)
    assert finding(profile, "exact-leakage").message.startswith("1 of 4 held-out rows")


def test_a_held_out_file_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path, [{"text": "one"}, {"text": "both"}], "a.jsonl")
    held_out = write(tmp_path, [{"text": "both"}, {"text": "other"}], "b.jsonl")
    assert finding(read_all(file, held_out=held_out), "exact-leakage").count == 1
    assert "exact-leakage" not in codes(read_all(file))


def test_a_held_out_file_can_be_named_for_a_folder_of_files_named_like_held_out_ones(tmp_path: Path) -> None:
    write(tmp_path / "folder", [{"text": "both"}], "test.jsonl")
    held_out = write(tmp_path, [{"text": "both"}], "b.jsonl")
    profile = read_all(str(tmp_path / "folder"), held_out=held_out)
    assert finding(profile, "exact-leakage").count == 1
    assert finding(profile, "held-out-files-kept").examples == ("test.jsonl",)


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("user", "assistant"), set()),
        (("system", "user", "assistant", "user", "assistant"), set()),
        (("user", "assistant", "tool", "assistant"), set()),
        (("user", "user", "assistant"), {"roles-out-of-order"}),
        (("assistant", "user", "assistant"), {"roles-out-of-order"}),
        (("user", "system", "assistant"), {"roles-out-of-order"}),
        (("user", "assistant", "user"), {"unanswered-questions"}),
        (("user",), {"no-assistant-turn", "empty-completions"}),
    ],
)
def test_roles_that_spoil_a_training_are_found(tmp_path: Path, roles: tuple[str, ...], expected: set[str]) -> None:
    profile = profile_dataset(write(tmp_path, [chat("user", "assistant"), chat(*roles)]), model=None)
    of_roles = {"roles-out-of-order", "unanswered-questions", "no-assistant-turn", "empty-completions"}
    assert codes(profile) & of_roles == expected
    assert all(finding(profile, code).examples[0].startswith("rows.jsonl:2: ") for code in expected)


def test_rows_whose_labels_the_context_cuts_off_are_found(tmp_path: Path, word_model: ModelSpec) -> None:
    rows = [{"prompt": "p " * prompt, "completion": "c " * 10} for prompt in (100, 250, 300)]
    profile = profile_dataset(write(tmp_path, rows), model=replace(word_model, context_length=256))
    shares = {point.max_length: point.rows_without_labels_share for point in profile.truncation}
    # At 128 the second and third prompts fill the row; at 256 the third alone does.
    assert shares == pytest.approx({128: 2 / 3, 256: 1 / 3})
    found = finding(profile, "labels-cut-off")
    assert (found.severity, found.count) == ("warning", 1)
    # 4 of the second row's and all of the third row's ten.
    assert "46.7% of all supervised tokens" in found.message


def test_what_the_tokenizer_does_not_know_is_found(
    tmp_path: Path, word_model: ModelSpec, byte_model: ModelSpec
) -> None:
    file = write(tmp_path, [{"text": "\u4e2d\u6587"}, {"text": "\u4e2d"}])
    # Every word is unknown to the one; the other writes each of the characters as three bytes.
    assert finding(profile_dataset(file, model=word_model), "unknown-tokens").count == 2
    spelled = finding(profile_dataset(file, model=byte_model), "spelled-out-in-bytes")
    assert spelled.message.startswith("100% of the tokens are single bytes")
    plain = profile_dataset(write(tmp_path, [{"text": "plain"}]), model=byte_model)
    assert not {"unknown-tokens", "spelled-out-in-bytes"} & codes(plain)


def test_mixed_scripts_are_found(tmp_path: Path) -> None:
    rows = [{"text": f"some words {row}"} for row in range(8)] + [{"text": "\u0441\u043b\u043e\u0432\u0430"}] * 2
    profile = profile_dataset(write(tmp_path, rows), model=None)
    assert profile.scripts == {"latin": 0.8, "cyrillic": 0.2}
    assert "latin 80%, cyrillic 20%" in finding(profile, "mixed-scripts").message


ENGLISH = "In the beginning God created the heavens and the earth, and the earth was without form."
GERMAN = "Am Anfang schuf Gott Himmel und Erde, und die Erde war w\u00fcst und leer."


def test_a_full_pass_tells_languages_of_one_script_apart(tmp_path: Path) -> None:
    rows = [{"text": f"{ENGLISH} {row}"} for row in range(6)] + [{"text": f"{GERMAN} {row}"} for row in range(3)]
    source = write(tmp_path, [*rows, {"text": "x = 3"}])
    profile = profile_dataset(source, model=None, reading=Reading(coverage="all"))
    assert profile.languages == {"en": 0.6, "de": 0.3, "unsure": 0.1}
    assert "en 60%, de 30%" in finding(profile, "mixed-languages").message
    assert profile_dataset(source, model=None).languages == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("words", ("latin", False)),
        ("123 !", ("none", False)),
        ("\u3053\u308c\u306f\u30c6", ("kana", False)),
        ("abc \u05d0\u05d1\u05d2\u05d3", ("hebrew", True)),
    ],
)
def test_the_script_of_a_text_is_that_of_most_letters(text: str, expected: tuple[str, bool]) -> None:
    assert main_script(text) == expected


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "code": ({"prompt": "Add", "completion": "def add(a, b):\n    return a + b;\n\nimport os\n"}, "code"),
    "reasoning": ({"prompt": "Q", "completion": "3*4 = 12\n12 + 1 = 13\n#### 13"}, "reasoning"),
    "chat": (chat("user", "assistant", "user", "assistant"), "chat"),
    "instruction": ({"prompt": "Q", "completion": "A fine answer in plain words."}, "instruction"),
    "text": ({"text": "Once upon a time."}, "continued_pretraining"),
    "labels": ({"text": "T", "label": "a"}, "classification"),
    "pairs": ({"premise": "T", "hypothesis": "U", "label": 0}, "classification"),
    "preference": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "preference"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_task_is_told_with_its_evidence(tmp_path: Path, name: str) -> None:
    row, kind = KINDS[name]
    profile = profile_dataset(write(tmp_path, [row]), model=None)
    assert profile.task_kind == kind
    assert profile.task_evidence


def test_prose_is_neither_code_nor_reasoning() -> None:
    prose = "She said: I have 3 cats; he has none.\nThey left (at noon), and that was it."
    assert not is_code(prose)
    assert not is_worked_out(prose)


def test_real_problems_are_reasoning() -> None:
    assert profile_dataset(str(EXCERPTS / "gsm_symbolic.jsonl"), model=None).task_kind == "reasoning"


def test_equal_preferences_are_found(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "A", "rejected": "A "}, {"prompt": "Q", "chosen": "A", "rejected": "B"}]
    assert finding(profile_dataset(write(tmp_path, rows), model=None), "equal-preferences").count == 1


@given(st.dictionaries(st.integers(0, 3000), st.integers(1, 50), min_size=1, max_size=30))
def test_grouping_never_pads_more_than_one_length_and_random_padding_grows_with_the_batch(
    lengths: dict[int, int],
) -> None:
    points = padding_points(lengths)
    assert len(points) == (0 if set(lengths) == {0} else len(BATCH_SIZES))
    random = [point.random_padding_share for point in points]
    assert random == sorted(random)
    assert all(0 <= point.grouped_padding_share < 1 and 0 <= point.random_padding_share < 1 for point in points)
    if len(set(lengths) - {0}) == 1:
        assert all(point.grouped_padding_share == point.random_padding_share == 0 for point in points)


def test_padding_of_two_lengths_is_what_is_computed_by_hand() -> None:
    # Half the rows have 100 tokens and half 300: two at random have 300 with 3/4, so 250 on average, for 200.
    (pair, *_) = padding_points({100: 500, 300: 500})
    assert pair.random_padding_share == pytest.approx(1 - 200 / 250)
    assert pair.grouped_padding_share < 0.02


def test_much_padding_is_found_with_what_grouping_and_packing_save(tmp_path: Path, word_model: ModelSpec) -> None:
    rows = [{"text": "w " * (10 if row % 2 else 300)} for row in range(400)]
    found = finding(profile_dataset(write(tmp_path, rows), model=word_model), "padding-waste")
    assert found.severity == "info"
    # The longest of eight is 300 in 255 of 256 batches; the mean is 155.
    assert "48% of the positions are padding" in found.message


def test_every_finding_of_the_tests_is_on_the_page() -> None:
    import re

    root = Path(__file__).parents[3]
    sources = [*(root / "autopeft/profiling").glob("_*findings.py"), root / "autopeft/profiling/scan/scanner.py"]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    found = set(re.findall(r'(?:code=|^    |_leaked\()"([a-z]+(?:-[a-z]+)+)"[,:]', text, re.MULTILINE))
    page = (root / "docs" / "data.md").read_text(encoding="utf-8")
    assert len(found) > 20
    assert {code for code in found if f"`{code}`" not in page} == set()
