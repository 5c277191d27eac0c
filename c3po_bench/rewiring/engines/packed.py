"""Products with constant weights on a CPU: each weight is put once in the order in which a product reads it.

A CPU's matrix product rearranges the weight at every call, which costs as much as the product itself where
few rows meet it. The product is our own (`grouped`) where that can be compiled, else oneDNN's, which has 1.4
to 2.4 times the rate of `torch.mm` with a few to sixty rows, and 1.15 times with four hundred.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from c3po_bench.rewiring.engines import grouped

if TYPE_CHECKING:
    from torch import Tensor

MEMORY = 1 << 30
"""Bytes that copies of weights may take: what does not fit is multiplied as it is."""
ROWS = 32
"""Rows that oneDNN's order of a copy is made for (measured: as good for 3 and for 400)."""
FEW = 8
"""Rows up to which W X^T is the faster way without a copy (measured: twice as fast at 3 rows, even at 8)."""


@dataclass(frozen=True)
class Copies:
    """Of matrices [out, in]: panels of all of them, for `grouped_product`, or oneDNN's one by one."""

    outputs: int
    panels: Tensor | None
    others: list[Tensor]

    @classmethod
    def of(cls, matrices: Tensor) -> Copies:
        """Copies of matrices [n, out, in]."""
        outputs = matrices.shape[1]
        if grouped.available():
            return cls(outputs, grouped.in_panels(matrices), [])
        return cls(
            outputs, None, [torch.ops.mkldnn._reorder_linear_weight(matrix, ROWS) for matrix in matrices]
        )

    def times(self, rows: Tensor, counts: list[int] | None = None) -> Tensor:
        """X W^T of rows [n, in], the first counts[0] of them with the first matrix, and so on.

        Of a single one without counts.

        Gives no gradient.
        """
        if self.panels is not None:
            return grouped.grouped_product(rows, self.panels, counts or [len(rows)], self.outputs)
        product = torch.ops.mkldnn._linear_pointwise.default
        if counts is None:
            return product(rows, self.others[0], None, "none", [], "")
        shares = zip(rows.split(counts), self.others, strict=True)
        return torch.cat(
            [product(share, other, None, "none", [], "") for share, other in shares if len(share)]
        )


@dataclass(frozen=True)
class _Made:
    """Copies of one parameter in one direction, and what they were made from.

    It is kept, so its place stays its own.
    """

    source: Tensor
    version: int
    copies: Copies

    def of(self, parameter: Tensor) -> bool:
        """Whether `parameter` still is what it was."""
        return self.source.data_ptr() == parameter.data_ptr() and self.version == parameter._version


_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter -> {(transposed, joined): _Made}


def packed(parameter: Any, transposed: bool = False, joined: int | None = None) -> Copies | None:
    """Copies of a parameter's matrices ([out, in], or [n, out, in]), made at first use.

    `transposed`: the parameter's are [in, out]. `joined`: one copy of all, side by side along their outputs
    (0) or inputs (1).

    None where there is nothing to gain or no room: another device or dtype than float32 on a CPU, a torch
    without oneDNN, copies of more than `MEMORY` bytes in all. A parameter given other values, in place or by
    way of `.data`, is copied anew; only an in-place change of `.data` itself goes unseen.
    """
    if (
        parameter.device.type != "cpu"
        or parameter.dtype != torch.float32
        or not torch.backends.mkldnn.is_available()
    ):
        return None
    mine: dict[tuple[bool, int | None], _Made] = _copies.setdefault(parameter, {})  # pyright: ignore[reportAssignmentType]
    key = (transposed, joined)
    if key in mine and mine[key].of(parameter):
        return mine[key].copies
    mine.pop(key, None)
    if _held() + parameter.numel() * parameter.element_size() > MEMORY:
        return None
    source = parameter.detach()
    matrices = one_way(source, transposed)
    if joined is not None:
        matrices = torch.cat([*matrices], dim=joined)[None]
    copies = Copies.of(matrices)
    mine[key] = _Made(source, parameter._version, copies)
    return copies


def one_way(weight: Tensor, transposed: bool) -> Tensor:
    """The matrices [n, out, in] of a weight [out, in] or [n, out, in] (`transposed`: [in, out])."""
    matrices = weight.reshape(-1, *weight.shape[-2:])
    return matrices.mT if transposed else matrices


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """X W^T of rows [n, in] and a weight [out, in] without a copy.

    Few rows as W X^T, for which nothing is rearranged.
    """
    if rows.device.type == "cpu" and len(rows) <= FEW and weight.is_contiguous():
        return (weight @ rows.T).T
    return rows @ weight.T


def times(rows: Tensor, parameter: Tensor, transposed: bool = False) -> Tensor:
    """X W^T of rows [n, in] and a parameter [out, in] (`transposed`.

    [in, out]), with a copy of it if there is one.
    """
    copies = packed(parameter, transposed)
    return copies.times(rows) if copies else product(rows, parameter.T if transposed else parameter)


@contextmanager
def packed_linears(module: Any) -> Iterator[None]:
    """Within the block, bias-free linear layers inside `module` whose weights are frozen multiply with copies."""
    changed = []
    for layer in module.modules():
        if (
            type(layer) is torch.nn.Linear
            and layer.bias is None
            and not layer.weight.requires_grad
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
        out = times(hidden.flatten(0, -2), weight)  # no view of it: OLMoE's `clip_qkv` clamps in place
        return torch.ops.aten._unsafe_view(out, [*hidden.shape[:-1], len(weight)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, times(grads[0].flatten(0, -2), ctx.weight, transposed=True).view(
            *grads[0].shape[:-1], -1
        )


def _held() -> int:
    return sum(p.numel() * p.element_size() * len(made) for p, made in _copies.items())
