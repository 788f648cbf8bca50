"""A plan that no run can follow says so."""

from autopeft.profiling.model import load_model
from autopeft.recommend.runnable import run_notes, why_no_run


def test_a_plan_for_an_encoder_says_that_no_run_trains_it(make_data):
    data = make_data(format="classification", task="classification")
    assert [note.partition(":")[0] for note in run_notes(load_model("roberta-base"), data)] == [
        "this plan cannot be run"
    ]


def test_an_encoder_and_data_without_labels_do_not_belong_together(make_data):
    notes = run_notes(load_model("roberta-base"), make_data())
    assert "priced with a head for labels, and the data (messages) has none" in notes[0]


def test_rows_that_no_training_reads_are_named_for_any_model(make_data, small_model):
    assert "prefers one answer to another" in (why_no_run(small_model, make_data(format="preference")) or "")


def test_a_language_model_and_conversations_can_be_run(make_data, small_model):
    assert why_no_run(small_model, make_data()) is None
    assert run_notes(small_model, make_data()) == []
