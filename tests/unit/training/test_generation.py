"""Batches and shared beginnings change nothing: real but tiny models in float32."""

from pathlib import Path
from typing import Any

import pytest

from autopeft.engine.loss import prepare_loss
from autopeft.profiling.encoding import EncodedRow
from autopeft.specs import Candidate
from autopeft.training.data import Collator, TokenRow
from autopeft.training.generation import generate_greedily, stop_tokens
from autopeft.training.prefix import PrefixCollator, common_prefix, read_prefix, supervised_prefix
from autopeft.training.scoring import score_rows


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def prompts(beginning: int) -> list[list[int]]:
    shared = [(7 * n) % 250 for n in range(beginning)]
    return [[*shared, *[(11 * n + size) % 250 for n in range(size)]] for size in (3, 17, 1, 9)]


@pytest.mark.parametrize("beginning", [0, 60])
def test_a_batch_answers_as_each_prompt_does_alone(model: Any, beginning: int) -> None:
    told: list[int] = []
    asked = prompts(beginning)
    together = generate_greedily(model, asked, stop_ids=[5], max_new_tokens=12, batch_rows=3, on_rows=told.append)
    alone = [
        generate_greedily(model, [prompt], stop_ids=[5], max_new_tokens=12, batch_rows=1, on_rows=told.append)[0]
        for prompt in asked
    ]
    assert together == alone
    assert told[:2] == [3, 4]


def test_an_answer_ends_before_its_stop_token(model: Any) -> None:
    asked = prompts(0)[:1]
    whole = generate_greedily(model, asked, stop_ids=[], max_new_tokens=12, batch_rows=1, on_rows=lambda _: None)[0]
    stop = whole[5]
    cut = generate_greedily(model, asked, stop_ids=[stop], max_new_tokens=12, batch_rows=1, on_rows=lambda _: None)[0]
    assert cut == whole[: whole.index(stop)]


def test_the_end_of_a_turn_is_found_in_the_row_itself(model: Any) -> None:
    class Tokenizer:
        eos_token_id = 1
        all_special_ids = (1, 2, 3)

    row = EncodedRow((3, 10, 11, 12, 2, 13), ((2, 6),))
    assert {1, 2} <= set(stop_tokens(model, Tokenizer(), row))
    assert 3 not in stop_tokens(model, Tokenizer(), row)


@pytest.mark.parametrize("trainer", ["transformers", "trl"])
def test_the_loss_behind_a_shared_beginning_is_that_of_the_whole_row(tiny_model: Path, trainer: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prepare_loss(model, trainer)
    rows = [TokenRow(n, ids, [*[-100] * (len(ids) - 1), ids[-1]]) for n, ids in enumerate(prompts(60))]
    candidate = Candidate(method="lora", r=None, lora_alpha=None, per_device_batch_size=3, trainer=trainer)
    collator = Collator(0, keeps_logits=True)
    prefix = read_prefix(model, supervised_prefix(rows))
    assert prefix is not None
    shortening = PrefixCollator(collator, prefix)
    whole = score_rows(model, rows, collator, candidate, "cpu")
    short = score_rows(model, [shortening.shortened(row) for row in rows], shortening, candidate, "cpu")
    assert short.losses == pytest.approx(whole.losses, rel=1e-5)
    assert short.supervised_tokens == whole.supervised_tokens


def test_a_common_beginning_leaves_every_row_a_token() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == (1, 2)
    assert common_prefix([[1, 2], [2, 2]]) == ()


def test_a_short_beginning_is_not_read_ahead(model: Any) -> None:
    assert read_prefix(model, [1, 2, 3]) is None
