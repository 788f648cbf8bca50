"""The ledger's autograd against hand-worked cases of what torch's engine keeps and frees."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from autopeft.memory._families import plan_of
from autopeft.memory._structure import adapters_of, mode_of
from autopeft.memory.ledger import ops
from autopeft.memory.ledger.autograd import Graph, Leaf, Tensor
from autopeft.memory.ledger.record import Recorded, _Run, record_step
from autopeft.memory.ledger.rows import phase_rows
from autopeft.memory.ledger.tape import GRADIENTS, ONE, TOKENS, Repeat, Tape
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Candidate

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
SHAPES = {
    "gpt2": {"vocab_size": 128, "n_embd": 64, "n_layer": 6, "n_head": 4, "n_positions": 512},
    "deberta-v2": SHAPE | {"relative_attention": True, "position_buckets": 16, "pos_att_type": "c2p|p2c"},
}


def live_bytes(tape: Tape) -> float:
    """Bytes that came and did not go, a token being one."""
    return sum(tape.widths[event] if event >= 0 else -tape.widths[~event] for event in tape.events)


def trained(width: int) -> Tensor:
    return Tensor((ONE, width, 4), None, Leaf())


def states(g: Graph, width: int = 8) -> Tensor:
    """Tokens that need a gradient."""
    x = g.tensor((TOKENS, width, 4))
    x.node = Leaf()
    return x


def test_a_storage_ends_with_its_last_view():
    tape = Tape()
    g = Graph(tape)
    x = states(g)
    first, second = ops.split(g, x, (4, 4))
    del x, first
    assert live_bytes(tape) == 32
    del second
    assert live_bytes(tape) == 0


def test_a_frozen_product_keeps_nothing_and_a_trained_one_its_input():
    for weight, kept in ((Tensor((ONE, 64, 4), None), 0), (trained(64), 32)):
        tape = Tape()
        g = Graph(tape)
        out = ops.product(g, g.tensor((TOKENS, 8, 4)), weight, 8)
        assert live_bytes(tape) == 32 + kept
        del out


def test_an_input_is_kept_once_for_two_trained_products():
    tape = Tape()
    g = Graph(tape)
    x = states(g)
    outs = [ops.product(g, x, trained(64), 8) for _ in range(2)]
    del x
    assert live_bytes(tape) == 3 * 32
    del outs


def test_the_backward_leaves_gradients_and_nothing_else():
    tape = Tape()
    g = Graph(tape)
    weight = trained(64)
    loss = ops.product(g, ops.unary(g, states(g)), weight, 8)
    g.backward(loss)
    del loss
    gc.collect()
    left = [tape.parts[index] for index in range(len(tape.parts)) if tape.events.count(~index) == 0]
    assert left == [GRADIENTS]  # the weight's: the tokens' leaf went with its tensor


def test_a_checkpointed_call_keeps_its_argument_only_and_computes_the_rest_again():
    def chain(g: Graph, x: Tensor) -> Tensor:
        for _ in range(5):
            x = ops.unary(g, x)
        return x

    kept = {}
    for checkpointed in (False, True):
        tape = Tape()
        g = Graph(tape)
        x = states(g)
        out = g.checkpoint(lambda y, g=g: chain(g, y), x) if checkpointed else chain(g, x)
        kept[checkpointed] = live_bytes(tape)
        g.backward(out)
        assert tape.units.count(TOKENS) > 11
    assert kept == {False: 6 * 32, True: 2 * 32}


def test_two_uses_of_a_tensor_sum_their_gradients_in_a_third():
    """torch adds in place where it holds the only reference; a tensor subclass, as a trace's are, gets a new sum."""
    tape = Tape()
    g = Graph(tape)
    x = ops.unary(g, states(g))
    out = ops.add(g, ops.same(g, x), ops.same(g, x))
    del x
    before = len(tape.units)
    g.backward(out)
    # Of the loss, of both uses, their sum, and of what x was made from.
    assert len(tape.units) - before == 5


def test_a_repeated_block_adds_what_it_left_as_often_as_it_stands_for_others():
    tape = Tape()
    g = Graph(tape)
    before = len(tape.events)
    kept = g.tensor((TOKENS, 1, 4))
    passing = g.tensor((TOKENS, 10, 4))
    del passing
    now = len(tape.events)
    tape.repeats.append(Repeat(now, before, now, 3))
    end = len(tape.events)
    forward, _ = phase_rows(Recorded(tape, end))
    assert np.max(forward.coefficients[:, TOKENS]) == 4 * 4 + 40
    del kept


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral", "gpt2", "bert", "deberta-v2"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "full"])
def test_recording_one_block_for_many_equals_recording_each(model_type, checkpointing, method):
    """At the widest moment of forward and backward, for few tokens and for many."""
    model = spec_from_config({"model_type": model_type} | SHAPES.get(model_type, SHAPE), id="tiny")
    candidate = Candidate(
        method=method,
        r=None if method == "full" else 8,
        lora_alpha=None if method == "full" else 8.0,
        adapter_dtype=None if method == "full" else "float32",
        target_modules=() if method == "full" else resolve_target_modules(model, ("all-linear",)),
        activation_checkpointing=checkpointing,
        attention="eager",
        trainer="transformers",
    )
    plan = plan_of(model, mode_of(candidate, model, "cuda", 64), dict(adapters_of(candidate, model)[1]))
    each = _Run(plan)
    each.indices, each.left_out = list(range(model.layers)), 0
    one, all_ = phase_rows(record_step(plan)), phase_rows(each.run())
    for tokens in (64.0, 4096.0):
        mixture = np.array([1.0, tokens, 64 * tokens, 8.0, 8 * tokens, 64.0, 4096.0, tokens, tokens / 64])
        for shared, separate in zip(one, all_, strict=True):
            found, expected = (float((rows.coefficients @ mixture).max()) for rows in (shared, separate))
            assert found == pytest.approx(expected, rel=0.002)  # twice what the choice of moments neglects
