"""Kernel regression: the neighbors' kernel-weighted mean pathway, mixed with the original (paper eq. 5-7)."""

from collections.abc import Callable

import torch

from c3po_bench.errors import unknown
from c3po_bench.rewiring.methods import Queries, Solution

SEARCHES = ("grid", "binary", "fixed")


def kernel_regression(
    queries: Queries, *, search: str = "grid", alpha: float = 0.0, points: int = 11
) -> Solution:
    """Mix: w <- a w + (1 - a) sum_i K_i w_i / sum_i K_i, with a minimizing the neighbors' loss.

    Args:
        queries: see `Queries`.
        search: grid tries `points` values of a in [0, 1]. binary is a golden section search with `points`
            evaluations, as in the paper's predecessor. fixed takes a = `alpha`; with 0, all experts and a
            linear kernel it is what the paper's released code does.
        alpha: share of the original pathway when fixed.
        points: how many values of a are tried.

    Returns:
        The pathways, and the best loss found after each evaluation (none where a is fixed).
    """
    if search not in SEARCHES:
        raise unknown("arm_options.kernel_regression.search", search, SEARCHES)
    near = queries.neighborhood
    assert near is not None
    total = near.weights.sum(-1)
    weights = near.weights / total.clamp_min(1e-12)[:, None]
    mean = torch.einsum("qk,qkle->qle", weights, queries.references[near.index])
    mean = torch.where((total > 0)[:, None, None], mean, queries.original)

    def at(a: torch.Tensor) -> torch.Tensor:
        share = a[:, None, None]
        return share * queries.original + (1 - share) * mean

    zero = queries.original.new_zeros(len(queries.original))
    if search == "fixed":
        return Solution(at(zero + alpha))
    with torch.no_grad():
        if search == "grid":
            # from the original pathway on; ties stay near it
            tried = [zero + 1 - i / max(1, points - 1) for i in range(points)]
            losses = [queries.loss(at(a)) for a in tried]
        else:
            tried, losses = _golden_section(lambda a: queries.loss(at(a)), zero, points)
        every = torch.stack(losses)
        best = torch.stack(tried).gather(0, every.argmin(0, keepdim=True))[0]
        return Solution(at(best), every.cummin(0).values)


def _golden_section(
    loss: Callable[[torch.Tensor], torch.Tensor], zero: torch.Tensor, points: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Values of a in [0, 1] that close in on the least loss, each query by itself, and their losses."""
    ratio = (5**0.5 - 1) / 2
    low, high = zero, zero + 1
    tried, losses = [], []

    def value(a: torch.Tensor) -> torch.Tensor:
        tried.append(a)
        losses.append(loss(a))
        return losses[-1]

    value(high)  # the original pathway first: ties stay there
    value(low)
    inner, outer = high - ratio * (high - low), low + ratio * (high - low)
    at_inner, at_outer = value(inner), value(outer)
    for _ in range(max(0, points - 4)):
        left = at_inner < at_outer
        low, high = torch.where(left, low, inner), torch.where(left, outer, high)
        fresh = torch.where(left, high - ratio * (high - low), low + ratio * (high - low))
        found = value(fresh)
        inner, outer = torch.where(left, fresh, outer), torch.where(left, inner, fresh)
        at_inner, at_outer = torch.where(left, found, at_outer), torch.where(left, at_inner, found)
    return tried, losses
