"""Products of a few rows with matrices that never change, on a CPU: weights, or constants of a prompt.

A CPU's matrix product rearranges a weight at every call, which costs as much as the product itself where few
rows meet it. So weights are put once into the order in which oneDNN's product reads them (`PackedWeights`):
1.4 to 2.4 times the rate of `torch.mm` with a few to sixty rows, and 1.15 times with four hundred.

A batched product of few rows with a matrix each (earlier keys and values, a layer's expert outputs) takes two
to three times as long as reading the matrices, and its backward pass makes gradients for them, which nobody
reads (`times_constant`). The numbers are those of the stock products, by tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.utils.weak import WeakTensorKeyDictionary

MEMORY = 1 << 30
"""Bytes that packed weights may take: what does not fit is multiplied as it is."""
ROWS = 32
"""Rows that oneDNN's order is made for (measured: as good for 3 and for 400)."""
FEW_ROWS = 8
"""Rows up to which W X^T is faster with a weight as it is (measured: twice as fast at 3 rows, even at 8)."""
FEW_SUMS = 4
"""Rows up to which a weighted sum of a constant's rows is faster (at 1 and 2 in 0.2 to 0.4 of the time)."""


@dataclass(frozen=True)
class PackedWeights:
    """Matrices [out, in] in the order that oneDNN reads, one by one.

    `source` is the parameter that they were made from, and `version` which of its values. It is kept, so that
    no other tensor takes its place in memory.
    """

    matrices: list[Tensor]
    source: Tensor
    version: int

    @classmethod
    def of(cls, parameter: Tensor, transposed: bool = False, joined: int | None = None) -> PackedWeights:
        """Pack a parameter's matrices; see `packed` for the arguments."""
        matrices = as_out_in(parameter.detach(), transposed)
        if joined is not None:
            matrices = torch.cat([*matrices], dim=joined)[None]
        reordered = [torch.ops.mkldnn._reorder_linear_weight(matrix, ROWS) for matrix in matrices]
        return cls(reordered, parameter.detach(), parameter._version)

    def made_from(self, parameter: Tensor) -> bool:
        """Whether `parameter` still is what it was."""
        return self.source.data_ptr() == parameter.data_ptr() and self.version == parameter._version

    def times(self, rows: Tensor, counts: list[int] | None = None) -> Tensor:
        """X W^T of rows [n, in], the first counts[0] of them with the first matrix, and so on -> [n, out].

        Without counts there is one matrix, for all rows. Gives no gradient.
        """
        shares = zip(rows.split(counts or len(rows)), self.matrices, strict=True)
        product = torch.ops.mkldnn._linear_pointwise.default
        products = [product(share, matrix, None, "none", [], "") for share, matrix in shares if len(share)]
        return products[0] if len(products) == 1 else torch.cat(products)


# parameter -> {(transposed, joined): PackedWeights}
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed(parameter: Any, transposed: bool = False, joined: int | None = None) -> PackedWeights | None:
    """A parameter's matrices ([out, in], or [n, out, in]), packed at first use.

    A parameter given other values, in place or by way of `.data`, is packed anew; only an in-place change of
    `.data` itself goes unseen.

    Args:
        parameter: a weight.
        transposed: its matrices are [in, out].
        joined: pack all as one matrix, side by side along their outputs (0) or inputs (1).

    Returns:
        None where there is nothing to gain or no room: another device or dtype than float32 on a CPU, a torch
        without oneDNN, packed weights of more than `MEMORY` bytes in all.
    """
    if (
        parameter.device.type != "cpu"
        or parameter.dtype != torch.float32
        or not torch.backends.mkldnn.is_available()
    ):
        return None
    known: Any = _packed.setdefault(parameter, {})
    key = (transposed, joined)
    if key in known and known[key].made_from(parameter):
        return known[key]
    known.pop(key, None)
    if _packed_bytes() + parameter.numel() * parameter.element_size() > MEMORY:
        return None
    known[key] = PackedWeights.of(parameter, transposed, joined)
    return known[key]


def _packed_bytes() -> int:
    return sum(p.numel() * p.element_size() * len(known) for p, known in _packed.items())


def as_out_in(weight: Tensor, transposed: bool) -> Tensor:
    """The matrices [n, out, in] of a weight [out, in] or [n, out, in] (`transposed`: [in, out])."""
    matrices = weight.reshape(-1, *weight.shape[-2:])
    return matrices.mT if transposed else matrices


def times_weight(rows: Tensor, weight: Tensor) -> Tensor:
    """X W^T of rows [n, in] and a weight [out, in] as it is.

    Few rows are multiplied as W X^T, for which nothing is rearranged.
    """
    if rows.device.type == "cpu" and len(rows) <= FEW_ROWS and weight.is_contiguous():
        return (weight @ rows.T).T
    return rows @ weight.T


def times_parameter(rows: Tensor, parameter: Tensor, transposed: bool = False) -> Tensor:
    """X W^T of rows [n, in] and a parameter [out, in] (`transposed`: [in, out]), packed if there is room."""
    if weights := packed(parameter, transposed):
        return weights.times(rows)
    return times_weight(rows, parameter.T if transposed else parameter)


@contextmanager
def packed_linears(module: Any) -> Iterator[None]:
    """Within the block, linear layers in `module` with frozen weights and no bias use packed weights."""
    changed = []
    for layer in module.modules():
        if (
            type(layer) is torch.nn.Linear
            and layer.bias is None
            and not layer.weight.requires_grad
            and not hasattr(layer, "_hf_hook")
            and packed(layer.weight)
        ):
            layer.forward = partial(_Linear.apply, layer.weight)
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


class _Linear(torch.autograd.Function):
    """Of a frozen weight [out, in] and what comes in [..., in]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, hidden: Tensor) -> Tensor:
        ctx.weight = weight
        # no view of it: OLMoE's `clip_qkv` clamps in place
        out = times_parameter(hidden.flatten(0, -2), weight)
        return torch.ops.aten._unsafe_view(out, [*hidden.shape[:-1], len(weight)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gradient = times_parameter(grads[0].flatten(0, -2), ctx.weight, transposed=True)
        return None, gradient.view(*grads[0].shape[:-1], -1)


def times_constant(rows: Tensor, constant: Tensor) -> Tensor:
    """Rows [..., n, a] @ constant [..., a, b], with the same leading sizes.

    Differentiable in `rows` alone.
    """
    return _TimesConstant.apply(rows, constant)


class _TimesConstant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, constant: Tensor) -> Tensor:
        ctx.constant = constant
        return _batched_product(rows, constant)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _batched_product(grads[0], ctx.constant.mT), None


def _batched_product(rows: Tensor, constant: Tensor) -> Tensor:
    """As matrix times vector where what is summed over lies together, else as a weighted sum of rows."""
    few = rows.shape[-2]
    if few == 1 and constant.mT.is_contiguous():
        return (constant.mT @ rows.mT).mT
    if (
        few <= FEW_SUMS
        and constant.is_contiguous()
        and constant.device.type == "cpu"
        and constant.dtype == torch.float32
    ):
        count, width = rows.shape[:-1].numel(), constant.shape[-1]
        chosen, starts = _bags(count // few, few, constant.shape[-2])
        sums = embedding_bag(
            chosen, constant.view(-1, width), starts, mode="sum", per_sample_weights=rows.reshape(-1)
        )
        return sums.view(*rows.shape[:-1], width)
    return rows @ constant


@lru_cache(maxsize=8)
def _bags(matrices: int, few: int, height: int) -> tuple[Tensor, Tensor]:
    """For each of `few` sums a matrix, the numbers of all the matrix's rows; and where each sum's begin."""
    numbers = torch.arange(matrices * height, dtype=torch.int32).view(matrices, 1, height)
    starts = torch.arange(0, matrices * few * height, height, dtype=torch.int32)
    return numbers.expand(-1, few, -1).flatten(), starts
