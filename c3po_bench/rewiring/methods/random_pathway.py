"""The control for 'any move would do': a random direction, as far from the original pathway as NGD moved."""

import torch

from c3po_bench.models.families import to_logits
from c3po_bench.rewiring.methods import Queries, Solution
from c3po_bench.rewiring.methods.ngd import ngd, to_pathway


def random_pathway(queries: Queries) -> Solution:
    """A random direction of logits within the core, in each layer as far as NGD moved.

    The scale is found by bisection. It keeps to the same set as NGD (`to_pathway`): on `probabilities` the
    core's weight, where scores are a softmax, and all other experts' stay.
    """
    original, core, kind = queries.original, queries.core, queries.method.parameterization
    descent = queries.descent or ngd(queries)
    moved = (descent.pathway - original).norm(dim=-1)
    score = queries.score
    logits = to_logits(original, score)
    directions = [
        torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in queries.seeds
    ]
    direction = torch.stack(directions).to(logits).masked_fill(~core, 0.0)

    def at(scale: torch.Tensor) -> torch.Tensor:
        there = logits + scale[..., None] * direction
        if score == "softmax":
            there = there - there.masked_fill(~core, float("-inf")).amax(-1, keepdim=True)
        if kind != "logits":
            there = there.sigmoid() if score == "sigmoid" else there.exp()
        return to_pathway(there, core, original, kind, score)

    low, high = torch.zeros_like(moved), torch.full_like(moved, 64.0)
    for _ in range(40):
        middle = (low + high) / 2
        short = (at(middle) - original).norm(dim=-1) < moved
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return Solution(at((low + high) / 2))
