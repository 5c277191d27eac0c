"""Routers that send each token to the experts it needs most.

Started by ridge regression from a layer's input to each expert's output norm, then trained to repeat the layer's own
output with 8 of 16 experts. Both read what the experts do on the calibration tokens and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expert_outputs(mlp, inputs: Tensor, groups: Tensor) -> Tensor:
    """What each expert adds with weight one: [tokens, experts, hidden], for `groups` [experts, neurons]."""
    activation = mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)
    down = mlp.down_proj.weight
    return torch.stack([activation[:, group] @ down[:, group].T for group in groups], dim=1)


def overlaps(outputs: Tensor, yardstick: Tensor) -> Tensor:
    """Inner products of the experts' outputs, relative to the residual stream: [tokens, experts, experts].

    With weights w, the error of leaving out experts is (1 - w)' G (1 - w): all that fitting a router needs.
    """
    scaled = outputs / yardstick[:, None, None]
    return scaled @ scaled.transpose(1, 2)


def ridge(inputs: Tensor, gram: Tensor, *, strength: float = 1e-2, spread: float = 0.25) -> Tensor:
    """Router weights [experts, hidden] whose logits follow the experts' output norms.

    `spread` is the standard deviation of the logits over experts: small, so that softmax stays near uniform.
    """
    norms = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    share = norms / norms.norm(dim=1, keepdim=True).clamp_min(1e-12)
    target = share - share.mean(dim=1, keepdim=True)
    covariance = inputs.T @ inputs
    damping = strength * covariance.diagonal().mean() * torch.eye(len(covariance))
    weight = torch.linalg.solve(covariance + damping, inputs.T @ target).T
    return weight * (spread / (inputs @ weight.T).std(dim=1).mean())


def error(weight: Tensor, inputs: Tensor, gram: Tensor, top_k: int) -> Tensor:
    """Squared error [tokens] of the layer's output with the router `weight`, relative to the residual stream."""
    gap = 1 - _weights(inputs @ weight.T, top_k)
    return torch.einsum("te,tef,tf->t", gap, gram, gap)


def _weights(logits: Tensor, top_k: int) -> Tensor:
    """The weight of each expert as Qwen2-MoE computes it, times the number of experts; zero outside the top k."""
    weights = logits.softmax(dim=-1) * logits.shape[-1]
    threshold = logits.topk(top_k, dim=-1).values[:, -1:]
    return weights * (logits >= threshold)


def train(weight: Tensor, inputs: Tensor, gram: Tensor, top_k: int, *, seed: int, epochs: int = 12) -> Tensor:
    """Fit the router `weight` [experts, hidden] to the layer's output by Adam with a cosine schedule.

    Trained in units of each input feature's own size, so that one step size serves all layers.
    """
    size = inputs.square().mean(dim=0).sqrt().clamp_min(1e-6)
    scaled = inputs / size
    parameter = (weight * size).requires_grad_(True)
    optimizer = torch.optim.Adam([parameter], lr=3e-3)
    batch = 512
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    typical = gram.sum(dim=(1, 2)).mean()
    for step in range(steps):
        if step % (len(inputs) // batch) == 0:
            order = torch.randperm(len(inputs), generator=generator)
        rows = order[(step % (len(inputs) // batch)) * batch :][:batch]
        loss = error(parameter, scaled[rows], gram[rows], top_k).mean() / typical
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return (parameter / size).detach()
