"""Known answers: written out by hand, or the libraries' own published examples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.training.metrics import (
    LABEL_METRICS,
    TEXT_METRICS,
    accuracy,
    chrf,
    exact_match,
    final_number,
    macro_f1,
    matthews_correlation,
    numeric_match,
    rouge_l,
    token_f1,
)

WORDS = st.lists(st.sampled_from(["tide", "comes", "in", "twice", "7", "Zürich"]), min_size=1).map(" ".join)


def test_an_exact_match_forgives_case_punctuation_articles_and_white_space() -> None:
    assert exact_match(" The  Eiffel tower. ", "eiffel Tower") == 1.0
    assert exact_match("Eiffel tower, Paris", "Eiffel tower") == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("In all 3 + 4 = 7 apples.\n#### 7", 7.0),
        ("#### 1,234", 1234.0),
        ("#### $18\nQuestion: how many are 2?", 18.0),
        ("She has 12 left, so the answer is -5.", -5.0),
        ("It costs $1,050.50.", 1050.5),
        ("no number at all", None),
        ("#### 1.2.3", None),
        ("", None),
    ],
)
def test_the_final_number_is_the_marked_one_or_the_last(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_a_number_matches_whatever_stands_before_it_but_never_where_there_is_none() -> None:
    assert numeric_match("so 3 * 350 is 1,050 pieces", "300 and 750\n#### 1050") == 1.0
    assert numeric_match("3.0", "3") == 1.0
    assert numeric_match("so it is 1051", "#### 1050") == 0.0
    assert numeric_match("nothing", "nothing") == 0.0


def test_token_f1_counts_common_words_as_often_as_they_occur() -> None:
    # Common: cat, sat, 2 of 3 and of 4 words: 2 * 2 / 7.
    assert token_f1("cat cat sat", "the cat sat on mat") == pytest.approx(4 / 7)
    assert token_f1("", "") == 1.0
    assert token_f1("", "word") == 0.0


def test_rouge_l_is_that_of_the_longest_common_subsequence() -> None:
    # 5 common words in order (the quick brown jumps the) of 8 and of 9: P 0.625, R 0.5556, F 0.5882.
    found = rouge_l("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog")
    assert found == pytest.approx(10 / 17)


def test_rouge_l_reads_other_scripts() -> None:
    assert rouge_l("это простой тест", "Это тест") == pytest.approx(2 * 2 / (3 + 2))


def test_chrf_agrees_with_its_definition_on_a_text_of_one_letter_pair() -> None:
    # "ab" against "ac": 1-grams P = R = 1/2, 2-grams 0; the effective order is 2, so P = R = 1/4 and F = 1/4.
    assert chrf("ab", "ac") == pytest.approx(0.25)


def test_label_scores_of_a_constant_prediction_show_that_it_learnt_nothing() -> None:
    references, constant = ["ham"] * 9 + ["spam"], ["ham"] * 10
    assert accuracy(constant, references) == 0.9
    # F1 of ham: 2 * 9 / (10 + 9); of spam: 0.
    assert macro_f1(constant, references) == pytest.approx((18 / 19) / 2)
    assert matthews_correlation(constant, references) == 0.0


def test_the_matthews_correlation_agrees_with_its_formula() -> None:
    predictions, references = list("aaabbbbb"), list("aabbbbba")
    # a: 2 true and 1 false positives, 4 true and 1 false negatives: (2*4 - 1*1) / sqrt(3 * 3 * 5 * 5).
    assert matthews_correlation(predictions, references) == pytest.approx(7 / 15)


@pytest.mark.parametrize("name", sorted(TEXT_METRICS))
@settings(max_examples=25)
@given(text=WORDS, other=WORDS)
def test_a_text_metric_lies_between_0_and_1_and_is_1_for_the_reference_itself(name: str, text: str, other: str) -> None:
    metric = TEXT_METRICS[name]
    assert 0.0 <= metric(other, text) <= 1.0
    if name != "numeric_match" or "7" in text:
        assert metric(text, text) == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(LABEL_METRICS))
@settings(max_examples=10)
@given(labels=st.lists(st.sampled_from("abc"), min_size=2, max_size=20).filter(lambda labels: len(set(labels)) > 1))
def test_a_label_metric_is_1_for_the_labels_themselves(name: str, labels: list[str]) -> None:
    assert LABEL_METRICS[name](labels, labels) == pytest.approx(1.0)


def test_unequal_numbers_of_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions cannot be scored against 1 references"):
        accuracy(["a", "b"], ["a"])
