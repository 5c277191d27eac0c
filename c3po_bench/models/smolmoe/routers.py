"""Routers that send each token to the experts that add most to it.

Ridge regression from a layer's input to each expert's share of what the layer adds. (Training the routers on
the layer's output by gradient descent was tried and did not lower the error on held-out text.)
"""

from __future__ import annotations

import torch
from torch import Tensor


class Ridge:
    """Fits router weights for one layer's `inputs` [tokens, hidden], any number of times."""

    def __init__(self, inputs: Tensor, strength: float = 1e-2) -> None:
        covariance = inputs.T @ inputs
        damping = strength * covariance.diagonal().mean() * torch.eye(len(covariance))
        self._inputs = inputs
        self._factor = torch.linalg.cholesky(covariance + damping)

    def fit(self, energies: Tensor, *, spread: float) -> Tensor:
        """Router weights [experts, hidden] whose logits follow the experts' energies [tokens, experts].

        The target is the root of each energy as a share of the token's, less the token's mean. `spread` is
        the
        largest standard deviation over experts that the logits of any token have: small, so that softmax
            stays near uniform and a chosen expert answers with a weight near one, on the few massive tokens
            too.
        """
        share = torch.nn.functional.normalize(energies.clamp_min(0).sqrt(), dim=1)
        target = share - share.mean(dim=1, keepdim=True)
        weight = torch.cholesky_solve(self._inputs.T @ target, self._factor).T
        return weight * (spread / (self._inputs @ weight.T).std(dim=1).amax())

    def route(self, energies: Tensor, top_k: int) -> Tensor:
        """The mask [tokens, experts] of the `top_k` experts that a router fitted to `energies` would choose."""
        return chosen(self._inputs @ self.fit(energies, spread=1.0).T, top_k)


def chosen(logits: Tensor, top_k: int) -> Tensor:
    """One for the `top_k` largest logits of each token, zero elsewhere."""
    return torch.zeros_like(logits).scatter(1, logits.topk(top_k, dim=1).indices, 1.0)


def left_out(mlp, inputs: Tensor, experts: Tensor, weights: Tensor) -> tuple[float, float]:
    """The squared error of a layer's output, as a share of that output's square, and the experts' share of it.

    `experts` [experts, neurons] are neuron numbers, `weights` [tokens, experts] what each expert answers
    with.
    """
    activation = mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)
    down = mlp.down_proj.weight
    whole = (activation @ down.T).square().sum(dim=1)
    outputs = torch.stack([activation[:, group] @ down[:, group].T for group in experts], dim=1)
    missing = torch.einsum("te,teh->th", 1 - weights, outputs).square().sum(dim=1)
    routed = outputs.sum(dim=1).square().sum(dim=1)
    return float((missing / whole).mean()), float((routed / whole).mean())
