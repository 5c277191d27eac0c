"""Products with packed weights and constants: the plain products' numbers and gradients, within a bound of memory."""

from __future__ import annotations

import gc

import pytest
import torch

from c3po_bench.rewiring.engines import products as ours
from c3po_bench.rewiring.engines.products import FEW_SUMS, times_constant

with_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def frozen(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(*shape), requires_grad=False)


@with_onednn
@pytest.mark.parametrize("rows", [1, ours.FEW_ROWS, ours.FEW_ROWS + 1, 70])
@pytest.mark.parametrize("transposed", [False, True])
def test_products(rows, transposed):
    weight = frozen(5, 6)
    matrix = weight.T if transposed else weight
    x = torch.randn(rows, matrix.shape[1])
    expected = torch.nn.functional.linear(x, matrix)
    torch.testing.assert_close(ours.packed(weight, transposed).times(x), expected)
    torch.testing.assert_close(ours.times_weight(x, matrix), expected)


@with_onednn
@pytest.mark.parametrize("transposed", [False, True])
def test_each_share_of_the_rows_meets_its_matrix(transposed):
    weight, counts = frozen(3, 5, 6), [4, 0, 13]
    matrices = weight.transpose(1, 2) if transposed else weight
    x = torch.randn(17, matrices.shape[2])
    expected = torch.cat([share @ matrix.T for share, matrix in zip(x.split(counts), matrices, strict=True)])
    torch.testing.assert_close(ours.packed(weight, transposed).times(x, counts), expected)


@with_onednn
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_matrices_side_by_side(transposed, axis):
    weight = frozen(3, 5, 6)
    whole = torch.cat([matrix.T if transposed else matrix for matrix in weight], dim=axis)
    x = torch.randn(4, whole.shape[1])
    torch.testing.assert_close(ours.packed(weight, transposed, axis).times(x), x @ whole.T)
    assert ours.packed(weight, transposed) is not ours.packed(weight, transposed, axis), (
        "kept apart from those one by one"
    )


@with_onednn
def test_a_copy_is_made_once_and_anew_when_the_weight_changes():
    weight, x = frozen(4, 6), torch.randn(2, 6)
    first = ours.packed(weight)
    assert ours.packed(weight) is first
    with torch.no_grad():
        weight += 1
    torch.testing.assert_close(ours.times_parameter(x, weight), x @ weight.T)
    own = weight.data
    for _ in range(3):  # a value that is let go must not be taken for the next at the same place
        weight.data = torch.randn(4, 6)
        torch.testing.assert_close(ours.times_parameter(x, weight), x @ weight.T)
    weight.data = own
    torch.testing.assert_close(ours.times_parameter(x, weight), x @ weight.T)


@with_onednn
def test_copies_go_with_their_weight_and_stay_within_the_limit(monkeypatch):
    gc.collect()
    before = ours._packed_bytes()
    weight, other = frozen(8, 8), frozen(8, 8)
    monkeypatch.setattr(ours, "MEMORY", before + 300)
    assert ours.packed(weight) and ours._packed_bytes() == before + 256
    assert ours.packed(other) is None and ours.packed(weight, transposed=True) is None
    del weight
    assert ours._packed_bytes() == before
    assert ours.packed(other)


@with_onednn
@pytest.mark.parametrize("weight", [frozen(4, 6).bfloat16(), torch.empty(4, 6, device="meta")])
def test_other_weights_are_left_alone(weight):
    assert ours.packed(weight) is None


@with_onednn
def test_linear_layers_of_a_block():
    torch.manual_seed(0)
    block = torch.nn.Sequential(*(torch.nn.Linear(6, 6, bias=bias) for bias in (False, True, False)))
    for layer in block[:2]:
        layer.weight.requires_grad_(False)
    x = torch.randn(2, 3, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(block(x).square().sum(), x)
    with pytest.raises(ZeroDivisionError), ours.packed_linears(block):
        assert ["forward" in vars(layer) for layer in block] == [
            True,
            False,
            False,
        ]  # has a bias, is being trained
        torch.testing.assert_close(torch.autograd.grad(block(x).square().sum(), x)[0], expected)
        _ = 1 / 0
    assert not any("forward" in vars(layer) for layer in block)


@with_onednn
def test_rows_need_not_lie_in_order():
    weight = frozen(4, 6)
    for rows in (torch.randn(1, 6).expand(12, 6), torch.randn(6, 12).T, torch.randn(12, 12)[:, ::2]):
        torch.testing.assert_close(ours.times_parameter(rows, weight), rows @ weight.T)


def constants(*sizes: int, turned: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.randn(*sizes, generator=torch.Generator().manual_seed(0)).to(dtype)
    return made.mT.contiguous().mT if turned else made


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("few", [1, 2, FEW_SUMS, FEW_SUMS + 1])
@pytest.mark.parametrize("leading", [(3,), (3, 2)])
def test_a_product_with_a_constant_is_the_plain_one(leading: tuple[int, ...], few: int, turned: bool):
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
