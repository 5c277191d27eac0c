"""How far a pathway was moved, beside how far the pathways of different items lie apart.

A pathway's rows sum to one where the router's scores are a softmax. Where they are sigmoids, they do not:
each row is then divided by its sum before it is compared, so that a distance is a share of the routing weight
in either case. What the total weight does is told apart from that, by the mass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from more_itertools import map_reduce
from torch import Tensor

from c3po_bench.models.families import Family
from c3po_bench.models.routing import mix
from c3po_bench.rewiring.pathway import Mixture

MEASURES = ("total_variation", "mass_before", "mass_after", "kept", "entropy_before", "entropy_after")
"""Of each layer: total variation moved, 0 (none) to 1; total weight of the experts that run, before and
after; share of the model's own top-k that is still among the k heaviest; entropy of the row in nats, before
and after."""
MOST_ITEMS = 256  # whose pathways are compared with each other, over all tasks


def shares(pathway: Tensor) -> Tensor:
    """The rows [..., experts], each divided by its sum."""
    return pathway / pathway.sum(-1, keepdim=True).clamp_min(1e-12)


def total_variation(before: Tensor, after: Tensor) -> Tensor:
    """Half the sum of |after - before| over experts, rows divided by their sums: [...], 0 to 1."""
    return (shares(after) - shares(before)).abs().sum(-1) / 2


def entropy(pathway: Tensor) -> Tensor:
    """-sum p log p of the rows divided by their sums [...], in nats."""
    p = shares(pathway)
    return -(p * p.clamp_min(1e-12).log()).sum(-1)


def movement(family: Family, before: Tensor, after: Tensor, mixture: Mixture) -> list[dict[str, list[float]]]:
    """The `MEASURES` of each query, each a number a layer.

    Args:
        family: at the critical layers.
        before: original pathways [queries, layers, experts].
        after: the new ones.
        mixture: what the experts are given for them when the answer is scored.
    """
    own, chosen = mix(family, before)
    places = mixture.weights.topk(family.top_k, dim=-1).indices
    heaviest = mixture.indices.gather(-1, places)
    kept = (heaviest[..., None] == chosen[..., None, :]).any(-1).float().mean(-1)
    values = (
        total_variation(before, after),
        own.sum(-1),
        mixture.weights.sum(-1),
        kept,
        entropy(before),
        entropy(after),
    )
    table = (
        torch.stack([value.float() for value in values], dim=1).cpu().tolist()
    )  # [queries, measures, layers]
    return [
        {name: [round(number, 6) for number in numbers] for name, numbers in zip(MEASURES, row, strict=True)}
        for row in table
    ]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run's rows say together; see `store.schema.Movement`. Empty where none was rewired."""
    moved = [row for row in rows if "movement" in row]
    if not moved:
        return {}
    means = {name: _mean([row["movement"][name] for row in moved]) or [] for name in MEASURES}
    within, between = natural_spread(moved)
    losses = [found for row in moved if (found := row["movement"].get("surrogate_loss"))]
    similarity = [n["similarity"] for row in moved for n in row.get("neighbors", ())]
    far, apart = float(np.mean(means["total_variation"] or 0.0)), float(np.mean(within or between or 0.0))
    return {
        "layers": moved[0]["pathway_layers"],
        **means,
        "spread": within,
        "spread_between_tasks": between,
        "times_spread": round(far / apart, 4) if apart > 0 else None,
        "loss_first": round(float(np.mean([each[0] for each in losses])), 6) if losses else None,
        "loss_last": round(float(np.mean([each[-1] for each in losses])), 6) if losses else None,
        "similarity": round(float(np.mean(similarity)), 4) if similarity else None,
    }


def natural_spread(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float] | None, list[float] | None]:
    """Mean total variation between items' own pathways [layers]: of two items of one task, of two tasks.

    Of each task as many items, at most `MOST_ITEMS` in all, in the order of their documents' hashes; the
    tasks weigh the same. None where there are no two such items.
    """
    by_task = map_reduce(rows, lambda row: row["task"])
    each = max(2, MOST_ITEMS // len(by_task))
    picked = []
    for own in by_task.values():
        ordered = sorted(own, key=lambda row: (row.get("doc_hash", ""), row["doc_id"]))[:each]
        before = np.array([row["pathway_before"] for row in ordered])
        picked.append(before / before.sum(-1, keepdims=True).clip(1e-12))
    inside = [
        np.concatenate([_apart(p[i + 1 :], p[i]) for i in range(len(p) - 1)]).mean(0)
        for p in picked
        if len(p) > 1
    ]
    outside = [_apart(a[:8, None], b[None, :8]).mean((0, 1)) for a, b in combinations(picked[:24], 2)]
    return _mean(inside), _mean(outside)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).sum(-1) / 2


def _mean(rows: Sequence[Any]) -> list[float] | None:
    return [round(float(value), 6) for value in np.mean(rows, axis=0)] if len(rows) else None
