from __future__ import annotations

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.memory.tracing.core import trace
from autopeft.memory.tracing.fakes import as_parameter, fake_of
from autopeft.memory.tracing.recorder import AllocationRecorder, Moment
from autopeft.memory.tracing.request import TraceRequest
from autopeft.memory.tracing.shapes import ShapeMemory, made
from autopeft.specs import Candidate, StepStyle

aten = torch.ops.aten
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture
def mode():
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake(mode, *shape: int, dtype=torch.float32):
    return fake_of(mode, torch.empty(shape, dtype=dtype, device="meta"))


def twice(mode, func, *args, **kwargs):
    """Returns what torch answers, and what the memory makes of the same call."""
    shapes = ShapeMemory()
    call = shapes.call(func, args, kwargs)
    with mode:
        asked = func(*args, **kwargs)
    assert call is not None
    assert shapes.learn(func, call, asked) is not None
    return asked, made(shapes.recall(shapes.call(func, args, kwargs)), call, mode)


def storages(tensors):
    return {each.untyped_storage()._cdata for each in tensors}


def facts(tensor):
    keys = torch._C._dispatch_keys(tensor)
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.device, type(tensor), keys


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.mm.default, lambda m: (fake(m, 4, 6), fake(m, 6, 8))),
        (aten.mul.Tensor, lambda m: (fake(m, 4, 6, dtype=torch.bfloat16), fake(m, 6))),
        (aten._to_copy.default, lambda m: (fake(m, 4, 6).t(),)),
        (aten.empty_like.default, lambda m: (fake(m, 4, 6),)),
    ],
)
def test_a_remembered_result_is_what_torch_answers(mode, func, args):
    given = args(mode)
    asked, recalled = twice(mode, func, *given)
    assert facts(recalled) == facts(asked)
    assert storages([recalled]).isdisjoint(storages(given))
    assert recalled.untyped_storage().nbytes() == asked.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("func", "rest"),
    [
        (aten.t.default, ()),
        (aten.view.default, ([24],)),
        (aten._unsafe_view.default, ([24],)),
        (aten.slice.Tensor, (0, 1, 3)),
        (aten.detach.default, ()),
    ],
)
def test_a_remembered_view_shares_the_storage_of_its_argument(mode, func, rest):
    base = fake(mode, 4, 6)
    asked, recalled = twice(mode, func, base, *rest)
    assert facts(recalled) == facts(asked)
    assert recalled.untyped_storage()._cdata == base.untyped_storage()._cdata


def test_an_operator_in_place_returns_its_own_argument(mode):
    base = fake(mode, 4, 6)
    _, recalled = twice(mode, aten.add_.Tensor, base, 1.0)
    assert recalled is base


def test_several_results_come_back_in_their_order_with_none_where_none_was(mode):
    parts = aten.split.Tensor
    asked, recalled = twice(mode, parts, fake(mode, 6, 4), 2)
    assert [facts(each) for each in recalled] == [facts(each) for each in asked]
    assert len(storages(recalled)) == 1
    args = (fake(mode, 4, 6), fake(mode, 4, 6), [6], fake(mode, 4, 1), fake(mode, 4, 1), fake(mode, 6), None)
    asked, recalled = twice(mode, aten.native_layer_norm_backward.default, *args, [True, True, False])
    assert recalled[2] is asked[2] is None
    assert len(storages(recalled[:2])) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda m: (aten.nonzero.default, (fake(m, 4),)),
        lambda m: (aten._local_scalar_dense.default, (fake(m, 1),)),
        lambda m: (aten.add.Tensor, (torch.ones(3), torch.ones(3))),
        lambda m: (aten.mul.Tensor, (fake(m, 3), torch.ones(3))),
    ],
)
def test_calls_that_depend_on_values_are_not_remembered(mode, call):
    func, args = call(mode)
    shapes = ShapeMemory()
    found = shapes.call(func, args, {})
    assert found is None or shapes.learn(func, found, fake(mode, 4)) is None


def test_calls_differ_by_shape_dtype_strides_scalars_and_by_what_is_given_twice(mode):
    shapes = ShapeMemory()
    one, other = fake(mode, 4, 4), fake(mode, 4, 4)
    calls = [
        (one, other),
        (one, one),
        (one, fake(mode, 4, 1)),
        (one, fake(mode, 4, 4, dtype=torch.bfloat16)),
        (one, other.t()),
        (one, 1),
        (one, 1.0),
        (one, True),
    ]
    keys = [shapes.call(aten.mul.Tensor, args, {}).key for args in calls]
    assert len(set(keys)) == len(keys)


def test_a_storage_from_a_remembered_call_is_counted_and_let_go_of(mode):
    recorder = AllocationRecorder(lambda: Moment("forward"), fakes=(mode, ShapeMemory()))
    base = fake(mode, 1024, 1024)
    with mode, recorder:
        for _ in range(3):
            del _
            product = base * 2.0
            del product
    actions = [allocated for allocated, _, _ in recorder.events]
    assert actions == [True, False] * 3
    assert recorder.peaks[Moment("forward")].bytes == 4 * 2**20
    launches = [sums[2] for (_, key), sums in recorder.ledger.sums.items() if key.kind == "elementwise"]
    assert launches == [3]


def test_a_fake_parameter_is_one_and_keeps_whether_it_is_trained(mode):
    parameter = as_parameter(fake(mode, 4), requires_grad=True)
    assert isinstance(parameter, torch.nn.Parameter)
    assert parameter.requires_grad
    assert not as_parameter(torch.empty(4, device="meta")).requires_grad


CASES = {
    "lora": {"lora_dropout": 0.1, "activation_checkpointing": True},
    "nf4": {"quantization": "nf4", "double_quantization": True, "trainer": "trl"},
    "int8": {"quantization": "int8", "activation_checkpointing": True},
    "dora": {"method": "dora", "gradient_accumulation_steps": 2, "attention": "eager"},
    "adalora": {"method": "adalora", "optimizer": "adafactor"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_trace_that_remembers_shapes_answers_what_one_does_that_asks_torch_every_time(name, monkeypatch):
    fields = {"method": "lora", "r": 4, "lora_alpha": 4.0, "adapter_dtype": "float32", "trainer": "transformers"}
    fields |= {"target_modules": ("q_proj", "v_proj"), "per_device_batch_size": 2}
    request = TraceRequest(
        candidate=Candidate(**fields | CASES[name]),
        model_type="llama",
        config=TINY,
        encoder=False,
        kind="cuda",
        sequence_length=48,
        style=StepStyle(padded=name == "lora"),
    )
    remembering = json.dumps(trace(request).to_dict(), sort_keys=True)
    monkeypatch.setattr(ShapeMemory, "call", lambda *_: None)
    assert json.dumps(trace(request).to_dict(), sort_keys=True) == remembering
