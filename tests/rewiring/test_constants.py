"""Products of a few rows with constants: the plain product's numbers, gradient and FLOPs."""

from __future__ import annotations

import pytest
import torch

from c3po_bench.rewiring.engines.constants import FEW, times_constant
from c3po_bench.rewiring.meter import counter


def constants(*sizes: int, turned: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.randn(*sizes, generator=torch.Generator().manual_seed(0)).to(dtype)
    return made.mT.contiguous().mT if turned else made


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("few", [1, 2, FEW, FEW + 1])
@pytest.mark.parametrize("leading", [(3,), (3, 2)])
def test_is_the_plain_product(leading: tuple[int, ...], few: int, turned: bool):
    rows = torch.randn(*leading, few, 7, requires_grad=True)
    constant = constants(*leading, 7, 5, turned=turned)
    above = torch.randn(*leading, few, 5)
    found, plain = times_constant(rows, constant), rows @ constant
    torch.testing.assert_close(found, plain)
    gradients = [torch.autograd.grad(out, rows, above)[0] for out in (found, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_plain_product(dtype: torch.dtype):
    rows, constant = torch.randn(2, 1, 7).to(dtype), constants(2, 7, 5, turned=False, dtype=dtype)
    torch.testing.assert_close(times_constant(rows, constant), rows @ constant)


def test_rows_that_are_views_of_wider_ones():
    wide, constant = torch.randn(2, 3, 2, 9), constants(2, 3, 7, 5, turned=False)
    torch.testing.assert_close(times_constant(wide[..., :7], constant), wide[..., :7] @ constant)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("few", [1, FEW, FEW + 1])
def test_costs_what_the_plain_product_does(few: int, turned: bool):
    rows, constant = torch.randn(3, 2, few, 7, requires_grad=True), constants(3, 2, 7, 5, turned=turned)
    with counter() as counted:
        times_constant(rows, constant).sum().backward()
    assert counted.total == 2 * 2 * (3 * 2 * few * 7 * 5)


def test_sums_without_weights_cost_nothing_in_nested_counters():
    with counter() as outer, counter() as inner:  # as tuning's phase around an answer's
        torch.nn.functional.embedding_bag(torch.tensor([[0, 2], [1, 1]]), torch.randn(3, 5), mode="sum")
    assert outer.total == inner.total == 0


def test_nested_counters_agree():
    rows, constant = torch.randn(3, 2, 1, 7, requires_grad=True), constants(3, 2, 7, 5, turned=False)
    with counter() as outer, counter() as inner:
        times_constant(rows, constant).sum().backward()
    assert outer.total == inner.total == 2 * 2 * (3 * 2 * 7 * 5)
