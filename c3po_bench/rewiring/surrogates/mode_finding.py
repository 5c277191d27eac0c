"""Mode finding (mean shift): move towards the dense places of pathway space (paper eq. 8-10)."""

import torch
from torch import Tensor

from c3po_bench.rewiring.kernels import kernel_weights
from c3po_bench.rewiring.surrogates import Problem, Solution


def mode_finding(problem: Problem, *, iterations: int = 10, alpha: float = 0.5) -> Solution:
    """Shift: w <- a w + (1 - a) mean of the k references nearest to w *in pathway space*, repeated.

    Args:
        problem: its neighborhood and loss are not used: neighbors are sought anew by the pathway itself.
        iterations: mean-shift steps (10 in the paper's predecessor; none is given in the paper).
        alpha: share of the current pathway kept at each step (not given in the paper).
    """
    return _shift(problem, iterations, alpha)


def mode_finding_random_neighbors(problem: Problem, *, iterations: int = 10, alpha: float = 0.5) -> Solution:
    """The control: `mode_finding` towards as many references with the same weights, drawn once for each item.

    Args:
        problem: as for `mode_finding`; its seeds decide the draw.
        iterations: as `mode_finding`'s.
        alpha: as `mode_finding`'s.
    """
    count, size = min(problem.method.neighbors.k, len(problem.references)), len(problem.references)
    draws = [
        torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count] for seed in problem.seeds
    ]
    return _shift(problem, iterations, alpha, torch.stack(draws).to(problem.original.device))


def _shift(problem: Problem, iterations: int, alpha: float, drawn: Tensor | None = None) -> Solution:
    """Shift towards the nearest references, or with their weights towards those at `drawn` [queries, k]."""
    bank = problem.references.flatten(1)
    count = min(problem.method.neighbors.k, len(bank))
    current = problem.original.flatten(1)
    units = torch.nn.functional.normalize(bank, dim=-1)
    for _ in range(iterations):
        similarity, nearest = (torch.nn.functional.normalize(current, dim=-1) @ units.T).topk(count, dim=-1)
        weights = kernel_weights(
            problem.method.kernel, similarity, torch.ones_like(similarity, dtype=torch.bool)
        )
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
        pulling = bank[nearest if drawn is None else drawn]
        current = alpha * current + (1 - alpha) * torch.einsum("qk,qkp->qp", weights, pulling)
    return Solution(current.view_as(problem.original))
