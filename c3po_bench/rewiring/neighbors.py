"""Neighbors: exact search over the bank (a product is fastest up to some hundred thousand references)."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.kernels import kernel_weights
from c3po_bench.tasks.duplicates import near_duplicates


@dataclass(frozen=True)
class Neighborhood:
    """Neighbors of each query.

    index: [queries, k] places in the bank.
    similarity: [queries, k] cosines.
    weights: [queries, k] of the kernel; 0 = no neighbor in this place.
    dropped: [queries] near-duplicates that were left out.
    """

    index: Tensor
    similarity: Tensor
    weights: Tensor
    dropped: Tensor


def nearest(method: MethodConfig, queries: Tensor, bank: Tensor) -> Neighborhood:
    """The k nearest, or an epsilon ball in embedding space, without near-duplicates.

    Args:
        method: `method.neighbors` and `method.kernel`.
        queries: [queries, width] unit embeddings.
        bank: [references, width] unit embeddings.
    """
    cfg = method.neighbors
    similarity = queries @ bank.T
    duplicate = near_duplicates(similarity, cfg.max_similarity)
    usable = similarity.masked_fill(duplicate, -2.0)
    count = min(cfg.k if cfg.kind == "knn" else cfg.epsilon_most, bank.shape[0])
    best, index = usable.topk(count, dim=-1)
    mask = best > -2.0
    if cfg.kind == "epsilon":
        mask &= (2 - 2 * best).clamp_min(0.0).sqrt() <= cfg.epsilon
    return Neighborhood(index, best, kernel_weights(method.kernel, best, mask), duplicate.sum(-1))


def random_draw(method: MethodConfig, queries: Tensor, bank: Tensor, seeds: list[int]) -> Neighborhood:
    """The control: as many references as were retrieved, with the retrieved ones' weights, drawn at random.

    So nothing differs from `nearest` but which references they are. Near-duplicates are passed over; the draw
    depends on the item's seed only.
    """
    found = nearest(method, queries, bank)
    similarity = queries @ bank.T
    duplicate = near_duplicates(similarity, method.neighbors.max_similarity)
    count = found.index.shape[1]
    places = []
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(bank.shape[0], generator=generator).to(queries.device)
        is_copy = duplicate[row][order].long()
        # copies last, where the retrieved ones' weights are 0
        places.append(order[is_copy.argsort(stable=True)][:count])
    index = torch.stack(places)
    return Neighborhood(index, similarity.gather(1, index), found.weights, found.dropped)


def item_seed(seed: int, *parts: object) -> int:
    """A seed that depends on the item and the run's seed, not on order, batch or shard."""
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
