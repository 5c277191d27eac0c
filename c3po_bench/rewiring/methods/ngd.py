"""Neighborhood gradient descent: descend the neighbors' loss from the original pathway (paper eq. 1, 3)."""

import math

import torch
from torch import Tensor

from c3po_bench.models.families import to_logits, to_score
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.methods import Queries, Solution


def learning_rate(method: MethodConfig, step: int) -> float:
    """Learning rate of step 0, 1, ... under `method.schedule`."""
    first, last, steps = method.learning_rate, method.final_learning_rate, method.steps
    if method.schedule == "cosine":
        return last + (first - last) * (1 + math.cos(math.pi * step / max(1, steps))) / 2
    if method.schedule == "step":
        return first * 0.5 ** (3 * step // max(1, steps))
    return first


def to_parameters(pathway: Tensor, parameterization: str, score: str = "softmax") -> Tensor:
    """What the optimizer moves: logits, or the scores themselves."""
    return to_logits(pathway, score) if parameterization == "logits" else pathway.clone()


def to_pathway(
    parameters: Tensor, core: Tensor, original: Tensor, parameterization: str, score: str = "softmax"
) -> Tensor:
    """Back to what a router can say; outside the core nothing moves, so the first pathway is the original.

    Softmax scores share a total: the core's is kept, so the row stays on the simplex. Sigmoid scores do not
    compete, so each is clipped to [0, 1] by itself, which is the nearest point of what sigmoids can be.
    """
    if parameterization == "logits":
        return to_score(parameters, score)
    if score == "sigmoid":
        return torch.where(core, parameters.clamp(0.0, 1.0), original)
    inside = parameters.clamp_min(0.0).masked_fill(~core, 0.0)
    mass = original.masked_fill(~core, 0.0).sum(-1, keepdim=True)
    inside = inside * mass / inside.sum(-1, keepdim=True).clamp_min(1e-9)
    return torch.where(core, inside, original)


def ngd(queries: Queries) -> Solution:
    """Descend: w <- w - lambda grad L(w), for `method.steps` steps.

    Queries don't interact (elementwise optimizers).
    """
    method, core, original = queries.method, queries.core, queries.original
    how = (method.parameterization, queries.score)
    parameters = to_parameters(original, *how).requires_grad_()
    kind = torch.optim.Adam if method.optimizer == "adam" else torch.optim.SGD
    optimizer = kind([parameters], lr=method.learning_rate)
    losses = []
    for step in range(method.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(method, step)
        loss = queries.loss(to_pathway(parameters, core, original, *how))
        losses.append(loss.detach())
        (gradient,) = torch.autograd.grad(loss.sum(), parameters)
        parameters.grad = gradient.masked_fill(~core, 0.0)
        optimizer.step()
        if method.parameterization == "probabilities":
            parameters.data = to_pathway(parameters.data, core, original, *how)
    with torch.no_grad():
        pathway = to_pathway(parameters, core, original, *how)
    return Solution(pathway, torch.stack(losses) if losses else None)
