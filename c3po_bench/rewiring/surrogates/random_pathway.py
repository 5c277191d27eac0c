"""The control for 'any move would do': a random direction, as far from the own pathway as NGD moved."""

from __future__ import annotations

import torch

from c3po_bench.rewiring.surrogates import Problem, Solution
from c3po_bench.rewiring.surrogates.ngd import ngd


def random_pathway(problem: Problem) -> Solution:
    """Random log-probability direction within the core experts, scaled to NGD's Euclidean distance by bisection."""
    moved = (ngd(problem).pathway - problem.own).flatten(1).norm(dim=-1)
    logits = problem.own.clamp_min(1e-9).log()
    directions = [torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in problem.seeds]
    direction = torch.stack(directions).to(logits).masked_fill(~problem.core, 0.0)

    def at(scale: torch.Tensor) -> torch.Tensor:
        return (logits + scale[:, None, None] * direction).softmax(dim=-1)

    low, high = torch.zeros_like(moved), torch.full_like(moved, 64.0)
    for _ in range(40):
        middle = (low + high) / 2
        short = (at(middle) - problem.own).flatten(1).norm(dim=-1) < moved
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return Solution(at((low + high) / 2))
