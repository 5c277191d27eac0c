"""The control for 'any experts would do': NGD's own weights of the item, given to other experts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from c3po_bench.rewiring.methods import Queries, Solution
from c3po_bench.rewiring.methods.ngd import ngd
from c3po_bench.rewiring.movement import total_variation

DRAWS = 32
TIE = 1e-4  # draws that are as near are one; the first counts, whatever the last digits say
NEAR = 0.1
"""By what share of NGD's distance that of permuted own experts may differ; else they keep their weights."""


def ngd_permuted_experts(queries: Queries) -> Solution:
    """Permute what NGD found among the core's experts.

    The weights are the same, and so are their total and how many experts run; the distance is nearly so.

    Experts outside the model's own top-k change places among themselves, in a cycle, so that each gets
    the weight of another; the top-k's do, too, where that keeps the distance (`NEAR`). An expert that NGD
    brought in is so replaced by one that the model chose no more than it. Of `DRAWS` drawn permutations each
    layer takes the one whose total variation from the original pathway is nearest to NGD's.
    """
    descent = queries.descent or ngd(queries)
    own, after, core = queries.original, descent.pathway, queries.core
    ranked = own.masked_fill(~core, -1.0)
    top = torch.zeros_like(core).scatter(-1, ranked.topk(queries.top_k, dim=-1).indices, True) & core
    goal = total_variation(own, after)
    drawn = [
        torch.rand(DRAWS, 2, *own.shape[1:], generator=torch.Generator().manual_seed(seed))
        for seed in queries.seeds
    ]
    keys = torch.stack(drawn, dim=2).to(own.device)  # [draws, 2, queries, layers, experts]
    nothing = Nearest(after, torch.full_like(goal, torch.inf))
    part, both = nothing, nothing  # the others alone permuted, and the top-k, too
    for rest_key, top_key in keys:
        moved = _cycled(after, core & ~top, rest_key)
        part = part.or_nearer(moved, (total_variation(own, moved) - goal).abs())
        moved = _cycled(moved, top, top_key)
        both = both.or_nearer(moved, (total_variation(own, moved) - goal).abs())
    near = both.distance <= NEAR * goal
    return Solution(torch.where(near[..., None], both.pathway, part.pathway))


@dataclass(frozen=True)
class Nearest:
    """The pathways found so far [queries, layers, experts], and how far they are from the wanted distance."""

    pathway: Tensor
    distance: Tensor

    def or_nearer(self, pathway: Tensor, distance: Tensor) -> "Nearest":
        """In each layer the nearer of the two."""
        nearer = distance < self.distance - TIE
        return Nearest(
            torch.where(nearer[..., None], pathway, self.pathway),
            torch.where(nearer, distance, self.distance),
        )


def _cycled(pathway: Tensor, among: Tensor, key: Tensor) -> Tensor:
    """Every expert of the mask `among` gets the weight of the next one in the order of `key`: one cycle."""
    order = key.masked_fill(~among, 2.0).argsort(dim=-1)  # those of the mask first
    count = among.sum(-1, keepdim=True)
    place = torch.arange(pathway.shape[-1], device=pathway.device).expand_as(order)
    following = torch.where(place < count, (place + 1) % count.clamp_min(1), place)
    source = order.gather(-1, following)
    return pathway.scatter(-1, order, pathway.gather(-1, source))
