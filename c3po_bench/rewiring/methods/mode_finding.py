"""Mode finding (mean shift): move towards the dense places of pathway space (paper eq. 8-10)."""

import torch

from c3po_bench.rewiring.kernels import kernel_weights
from c3po_bench.rewiring.methods import Queries, Solution


def mode_finding(queries: Queries, *, iterations: int = 10, alpha: float = 0.5) -> Solution:
    """Shift: w <- a w + (1 - a) mean of the k references nearest to w *in pathway space*, repeated.

    Args:
        queries: its neighborhood and loss are not used: neighbors are sought anew by the pathway itself.
        iterations: mean-shift steps (10 in the paper's predecessor; none is given in the paper).
        alpha: share of the current pathway kept at each step (not given in the paper).
    """
    return _shift(queries, iterations, alpha)


def mode_finding_random_neighbors(queries: Queries, *, iterations: int = 10, alpha: float = 0.5) -> Solution:
    """The control: `mode_finding` towards as many references with the same weights, drawn once for each item.

    Args:
        queries: as for `mode_finding`; its seeds decide the draw.
        iterations: as `mode_finding`'s.
        alpha: as `mode_finding`'s.
    """
    count, size = min(queries.method.neighbors.k, len(queries.references)), len(queries.references)
    draws = [
        torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count] for seed in queries.seeds
    ]
    return _shift(queries, iterations, alpha, torch.stack(draws).to(queries.original.device))


def _shift(queries: Queries, iterations: int, alpha: float, drawn: torch.Tensor | None = None) -> Solution:
    """Shift towards the nearest references, or with their weights towards those at `drawn` [queries, k]."""
    bank = queries.references.flatten(1)
    count = min(queries.method.neighbors.k, len(bank))
    current = queries.original.flatten(1)
    units = torch.nn.functional.normalize(bank, dim=-1)
    for _ in range(iterations):
        similarity, nearest = (torch.nn.functional.normalize(current, dim=-1) @ units.T).topk(count, dim=-1)
        weights = kernel_weights(
            queries.method.kernel, similarity, torch.ones_like(similarity, dtype=torch.bool)
        )
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
        pulling = bank[nearest if drawn is None else drawn]
        current = alpha * current + (1 - alpha) * torch.einsum("qk,qkp->qp", weights, pulling)
    return Solution(current.view_as(queries.original))
