"""Which neuron becomes shared, and which neurons become one expert."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def contributions(mlp, inputs: Tensor) -> Tensor:
    """How much each neuron adds, |activation| times the norm of its down projection: [tokens, neurons]."""
    activation = mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)
    return activation.abs() * mlp.down_proj.weight.norm(dim=0)


def shared_neurons(strength: Tensor, yardstick: Tensor, count: int) -> Tensor:
    """The `count` neurons of largest mean contribution, in order; `strength` [tokens, neurons], `yardstick` [tokens].

    A token counts by its contribution relative to the residual stream it is added to, so that the few tokens with
    massive activations do not decide alone.
    """
    return (strength / yardstick[:, None]).mean(dim=0).topk(count).indices.sort().values


def experts(strength: Tensor, count: int, *, seed: int, rounds: int = 30) -> Tensor:
    """Split neurons that are active on the same tokens into `count` equal groups (balanced k-means).

    `strength` is [tokens, neurons]; returns [count, neurons / count] column numbers, each row in order.
    """
    from scipy.optimize import linear_sum_assignment

    points = _profiles(strength)
    size = len(points) // count
    centers = _spread(points, count, seed)
    assigned = np.zeros(len(points), dtype=int)
    for _ in range(rounds):
        cost = -(points @ centers.T).repeat_interleave(size, dim=1).double().numpy()
        renewed = linear_sum_assignment(cost)[1] // size
        if (renewed == assigned).all():
            break
        assigned = renewed
        labels = torch.from_numpy(assigned)
        centers = torch.stack([points[labels == group].mean(dim=0) for group in range(count)])
        centers = torch.nn.functional.normalize(centers, dim=1)
    groups = [np.flatnonzero(assigned == group) for group in range(count)]
    return torch.from_numpy(np.stack(groups))


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
