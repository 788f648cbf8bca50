"""How the base is asked; no model is needed."""

import pytest

from autopeft.profiling.dataset import Example
from autopeft.profiling.encoding import encode_examples, encode_prompts
from autopeft.training.prompts import (
    answer_of,
    as_question,
    choose_shots,
    plain_ends,
    scored_task,
    with_answer,
    with_shots,
)


def pair(prompt: str, completion: str, separator: str = "") -> Example:
    turns = (("user", prompt), ("assistant", completion))
    return Example(file="data.jsonl", line=1, messages=turns, context_turns=1, turn_separator=separator)


@pytest.mark.parametrize(
    ("answers", "task"),
    [
        (["yes", "no"] * 10, "labels"),
        ([f"so 2 + {n} makes it\n#### {n}" for n in range(20)], "numbers"),
        ([str(n) for n in range(20)], "numbers"),
        ([f"in the year {n} of Rome" for n in range(20)], "answers"),
        ([f"The tide comes in twice a day, and {n} times a week it is high." for n in range(20)], "texts"),
        (["always the same"] * 20, "answers"),  # one answer tells no classes apart
    ],
)
def test_the_task_is_read_off_the_answers(answers: list[str], task: str) -> None:
    assert scored_task([pair(f"question {n}", answer) for n, answer in enumerate(answers)]) == task


def test_plain_text_is_scored_by_its_loss_and_labelled_text_by_its_labels() -> None:
    text = Example(file="t.txt", line=1, text="The tide comes in.")
    assert scored_task([text]) == "loss"
    labelled = Example(file="t.jsonl", line=1, text="free money", label="spam")
    assert scored_task([labelled]) == "labels"


def test_a_labelled_text_becomes_a_question_that_names_the_labels() -> None:
    asked = as_question(Example(file="t", line=1, text="free money", label="spam"), ["ham", "spam"], plain=True)
    assert asked.messages[0][1].startswith("Which label fits? Labels: ham, spam.\n\nText: free money")
    assert answer_of(asked) == "spam"
    assert (asked.label, asked.supervised_turns) == (None, (1,))


def test_examples_stand_behind_the_rows_own_system_message_and_are_not_supervised() -> None:
    system = ("system", "Answer briefly.")
    row = Example(file="d", line=1, messages=(system, ("user", "q"), ("assistant", "a")), turn_separator="\n")
    shot = Example(file="d", line=2, messages=(("system", "no"), ("user", "sq"), ("assistant", "sa")))
    shown = with_shots(row, [shot, shot], plain=False)
    assert [content for _, content in shown.messages] == ["Answer briefly.", "sq", "sa", "sq", "sa", "q", "a"]
    assert shown.supervised_turns == (6,)


def test_without_a_chat_template_a_blank_line_ends_each_example() -> None:
    shown = with_shots(pair("1 + 1 = ", "2"), [pair("2 + 2 = ", "4")], plain=True)
    assert "".join(content for _, content in shown.messages) == "2 + 2 = 4\n\n1 + 1 = 2"


def test_another_answer_keeps_the_white_space_before_it() -> None:
    assert with_answer(pair("Spam? ", " yes"), "no").messages[-1] == ("assistant", " no")


def test_examples_are_drawn_with_the_seed_and_fit() -> None:
    pool = [pair(str(n), str(n)) for n in range(50)]
    drawn = {choose_shots(pool, [10] * 50, count=4, room_tokens=1000, seed=seed, balanced=False) for seed in (1, 1, 2)}
    assert len(drawn) == 2
    assert len(choose_shots(pool, [10] * 50, count=4, room_tokens=25, seed=0, balanced=False)) == 2
    assert choose_shots(pool, [10] * 50, count=4, room_tokens=9, seed=0, balanced=False) == ()


def test_each_label_is_shown_before_any_is_shown_twice() -> None:
    pool = [pair(str(n), "spam" if n == 7 else "ham") for n in range(40)]
    chosen = choose_shots(pool, [1] * 40, count=2, room_tokens=99, seed=3, balanced=True)
    assert {answer_of(pool[index]) for index in chosen} == {"ham", "spam"}


def test_a_plain_answer_ends_at_the_break_that_no_reference_holds() -> None:
    assert plain_ends(["one line", "another"]) == ("\n",)
    assert plain_ends(["first\nsecond"]) == ("\n\n",)
    assert plain_ends(["first\n\nsecond"]) == ()


def test_a_prompt_is_the_beginning_of_what_is_trained_on(tiny_model) -> None:  # type: ignore[no-untyped-def]
    examples = [pair("1 + 1 = ", "2"), with_shots(pair("3 + 1 = ", "4"), [pair("2 + 2 = ", "4")], plain=True)]
    for prompt, row in zip(encode_prompts(tiny_model, examples), encode_examples(tiny_model, examples), strict=True):
        assert row.input_ids[: row.supervised[-1][0]] == prompt.input_ids
        assert prompt.reference in ("2", "4")
