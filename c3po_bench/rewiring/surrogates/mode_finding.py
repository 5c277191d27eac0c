"""Mode finding (mean shift): move towards the dense places of pathway space (paper eq. 8-10)."""

from __future__ import annotations

import torch

from c3po_bench.rewiring.kernels import kernel_weights
from c3po_bench.rewiring.surrogates import Problem, Solution


def mode_finding(problem: Problem, *, iterations: int = 10, alpha: float = 0.5) -> Solution:
    """Shift: w <- a w + (1 - a) mean of the k references nearest to w *in pathway space*, repeated.

    Args:
        problem: its neighborhood and loss are not used: neighbors are sought anew by the pathway itself.
        iterations: mean-shift steps (10 in the paper's predecessor; none is given in the paper).
        alpha: share of the current pathway kept at each step (not given in the paper).
    """
    bank = problem.references.flatten(1)
    count = min(problem.method.neighbors.k, len(bank))
    current = problem.own.flatten(1)
    units = torch.nn.functional.normalize(bank, dim=-1)
    for _ in range(iterations):
        similarity, index = (torch.nn.functional.normalize(current, dim=-1) @ units.T).topk(count, dim=-1)
        weights = kernel_weights(problem.method.kernel, similarity, torch.ones_like(similarity, dtype=torch.bool))
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
        current = alpha * current + (1 - alpha) * torch.einsum("qk,qkp->qp", weights, bank[index])
    return Solution(current.view_as(problem.own))
