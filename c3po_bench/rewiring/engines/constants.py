"""Products of a few rows with constants of their own: earlier keys and values, a layer's expert outputs.

A CPU's stock batched product of one row takes two to three times as long as reading the constant, and its
backward pass makes gradients for the constants, which nobody reads. Same numbers, by tests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from torch import Tensor

FEW = 4
"""Rows up to which a weighted sum of the constants' rows is the faster product.

At 1 and 2 in 0.2 to 0.4 of the time.
"""


def times_constant(rows: Tensor, constant: Tensor) -> Tensor:
    """Rows [..., n, a] @ constant [..., a, b], with the same leading sizes.

    Differentiable in `rows` alone.
    """
    return _Times.apply(rows, constant)  # type: ignore[no-any-return]


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, constant: Tensor) -> Tensor:
        ctx.constant = constant
        return _times(rows, constant)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _times(grads[0], ctx.constant.mT), None


def _times(rows: Tensor, constant: Tensor) -> Tensor:
    """As matrix times vector where what is summed over lies together, as a weighted sum of rows where it does not."""
    few = rows.shape[-2]
    if few == 1 and constant.mT.is_contiguous():
        return (constant.mT @ rows.mT).mT
    if (
        few <= FEW
        and constant.is_contiguous()
        and constant.device.type == "cpu"
        and constant.dtype == torch.float32
    ):
        count, width = rows.shape[:-1].numel(), constant.shape[-1]
        chosen, starts = _places(count // few, few, constant.shape[-2])
        sums = embedding_bag(
            chosen, constant.view(-1, width), starts, mode="sum", per_sample_weights=rows.reshape(-1)
        )
        return sums.view(*rows.shape[:-1], width)
    return rows @ constant


@lru_cache(maxsize=8)
def _places(matrices: int, few: int, height: int) -> tuple[Tensor, Tensor]:
    """For each of `few` sums a matrix, the numbers of all the matrix's rows; and where each sum's begin."""
    numbers = torch.arange(matrices * height, dtype=torch.int32).view(matrices, 1, height)
    starts = torch.arange(0, matrices * few * height, height, dtype=torch.int32)
    return numbers.expand(-1, few, -1).flatten(), starts
