"""What is answered to adapters that read values while they are made or traced."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.memory.tracing.hollow import WORK_LIMIT, CheapInitialization, hollow
from autopeft.memory.tracing.values import value_read

SIDE = 2048
assert SIDE * SIDE > WORK_LIMIT


class Answers(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known, value = value_read(func, args, kwargs or {})
        return value if known else func(*args, **(kwargs or {}))


def test_a_condition_on_a_tensor_without_values_is_false_and_a_number_is_one() -> None:
    with FakeTensorMode(), Answers():
        tensor = torch.empty(3)
        assert not bool((tensor > 0).all())
        assert tensor.sum().item() == 1.0
        assert torch.empty(2, dtype=torch.long).sum().item() == 1


def test_a_layer_that_is_left_out_at_random_is_kept_below_a_chance_of_one_half() -> None:
    with FakeTensorMode(), Answers():
        assert torch.rand(1) > 0.0
        assert not torch.rand(1) > 0.9


@given(rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_a_mask_picks_as_if_it_were_true_everywhere(rows: int, columns: int) -> None:
    with FakeTensorMode(), Answers():
        table = torch.empty(rows, columns)
        assert table[table > 0].shape == (rows * columns,)
        assert table[:, table[0] > 0].shape == (rows, columns)
        table[table > 0] = 1.0
        assert table.shape == (rows, columns)


def test_a_gradient_taken_at_the_positions_of_a_sparse_tensor_has_as_many_values() -> None:
    with FakeTensorMode(), Answers():
        positions, values = torch.empty(2, 7, dtype=torch.long), torch.empty(7)
        sparse = torch.sparse_coo_tensor(positions, values, (4, 5), check_invariants=False)
        assert sparse.coalesce()._values().shape == (7,)
        assert torch.empty(4, 5).sparse_mask(sparse)._values().shape == (7,)


def test_real_values_are_read() -> None:
    with Answers():
        assert torch.tensor([3.0]).item() == 3.0
        assert torch.tensor([0, 1, 1]).nonzero().shape == (2, 1)


@pytest.mark.parametrize("decompose", [torch.linalg.svd, torch.linalg.qr, torch.linalg.eigh])
def test_decomposing_a_large_matrix_takes_no_time_and_has_the_right_shapes(decompose) -> None:
    small = decompose(torch.eye(4))
    begin = time.process_time()
    with CheapInitialization():
        large = decompose(hollow((SIDE, SIDE), torch.float32))
    assert time.process_time() - begin < 1.0
    for expected, found in zip(small, large, strict=True):
        assert found.shape == torch.Size([SIDE] * expected.dim())
        assert found.dtype == expected.dtype


def test_solving_a_large_system_reports_no_error() -> None:
    with CheapInitialization():
        matrix = hollow((SIDE, SIDE), torch.float64)
        assert torch.linalg.solve(matrix, matrix).shape == (SIDE, SIDE)
        assert torch.linalg.inv(matrix).dtype == torch.float64


def test_what_comes_back_from_the_device_has_the_asked_type_and_can_be_clustered() -> None:
    with CheapInitialization():
        vectors = torch.empty(64, 8, dtype=torch.bfloat16, device="meta").to(torch.float32).cpu().numpy()
    assert vectors.dtype == "float32"
    assert len({tuple(row) for row in vectors}) == 64


def test_small_arithmetic_really_happens() -> None:
    with CheapInitialization():
        assert torch.equal(torch.full((2, 2), 3.0) @ torch.eye(2), torch.full((2, 2), 3.0))


def test_a_large_permutation_is_one() -> None:
    with CheapInitialization():
        permutation = torch.randperm(WORK_LIMIT + 1)
    assert torch.equal(permutation.sort().values, torch.arange(WORK_LIMIT + 1))


def test_filling_a_large_tensor_with_random_numbers_is_skipped() -> None:
    with CheapInitialization():
        filled = hollow((SIDE, SIDE), torch.float32)
        assert torch.nn.init.normal_(filled) is filled
