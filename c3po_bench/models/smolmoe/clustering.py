"""Which neuron becomes shared, and which neurons become one expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Route = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Partition:
    """Neuron numbers of one layer: `shared` [768] and `experts` [16, 48], each row in order."""

    shared: Tensor
    experts: Tensor


def contributions(mlp, inputs: Tensor, yardstick: Tensor) -> Tensor:
    """How much each neuron adds: |activation| times the norm of its down projection, [tokens, neurons].

    Relative to the residual stream it is added to, whose norm is `yardstick` [tokens], so that the few tokens
    with massive activations do not decide alone.
    """
    activation = mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)
    return activation.abs() * mlp.down_proj.weight.norm(dim=0) / yardstick[:, None]


def energies(strength: Tensor, experts: Tensor) -> Tensor:
    """What each expert's neurons add, squared and summed: [tokens, experts]."""
    return torch.stack([strength[:, group].square().sum(dim=1) for group in experts], dim=1)


def first(strength: Tensor, shared: int, count: int, *, seed: int, rounds: int = 30) -> Partition:
    """The `shared` strongest neurons, and the rest in `count` equal groups active on the same tokens.

    Balanced k-means on each neuron's share of the tokens' contributions; `strength` is [tokens, neurons].
    """
    strongest = strength.mean(dim=0).topk(shared).indices.sort().values
    rest = torch.tensor(sorted(set(range(strength.shape[1])) - set(strongest.tolist())))
    points = _profiles(strength[:, rest])
    centers = _spread(points, count, seed)
    size = len(points) // count
    labels = torch.zeros(len(points), dtype=torch.long)
    for _ in range(rounds):
        renewed = _assign((points @ centers.T).repeat_interleave(size, dim=1)) // size
        if torch.equal(renewed, labels):
            break
        labels = renewed
        means = torch.stack([points[labels == group].mean(dim=0) for group in range(count)])
        centers = torch.nn.functional.normalize(means, dim=1)
    return Partition(strongest, torch.stack([rest[labels == group] for group in range(count)]))


def refine(strength: Tensor, start: Partition, route: Route, *, rounds: int) -> Partition:
    """Move neurons to where the router lets most of their contribution through.

    A round routes the tokens with the present experts, `route(energies) -> mask [tokens, experts]`, and gives
    each
    neuron its best place: a shared neuron counts on all tokens, a routed one on those sent to its expert.
    Places are limited, so that this is an assignment problem, solved exactly.
    """
    partition = start
    squared = strength.square()
    count, size = partition.experts.shape
    shared = len(partition.shared)
    for _ in range(rounds):
        mask = route(energies(strength, partition.experts))
        kept = squared.T @ mask
        always = squared.sum(dim=0)[:, None].expand(-1, shared)
        place = _assign(torch.cat([always, kept.repeat_interleave(size, dim=1)], dim=1)) - shared
        groups = torch.where(place < 0, -1, place // size)
        experts = torch.stack([(groups == group).nonzero()[:, 0] for group in range(count)])
        partition = Partition((groups < 0).nonzero()[:, 0], experts)
    return partition


def _assign(gain: Tensor) -> Tensor:
    """The one-to-one assignment of rows to columns with the largest total gain."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(gain.double().numpy(), maximize=True)[1].astype(np.int64))


def _profiles(strength: Tensor) -> Tensor:
    """One unit vector a neuron: its share of each token's contributions, less its own mean."""
    share = strength / strength.norm(dim=1, keepdim=True).clamp_min(1e-12)
    centered = share - share.mean(dim=0)
    return torch.nn.functional.normalize(centered.T, dim=1)


def _spread(points: Tensor, count: int, seed: int) -> Tensor:
    """k-means++ starting centers."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < count:
        nearest = (points @ points[chosen].T).amax(dim=1)
        distance = (1 - nearest).clamp_min(0) ** 2
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
    return points[chosen]
