"""Experts for a handful of tokens on a CPU.

Rewiring asks some twenty core experts about a few rows each, step after step: their weights are packed once (`packed`).
And gathering rows for the experts and summing what they say are each other's transposes, so that neither needs a scatter
in the backward pass. Same numbers as the model's own `grouped_mm`, by tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.rewiring.engines.packed import packed, product, with_copy

if TYPE_CHECKING:
    from torch import Tensor

NAME = "c3po_few_rows"


@contextmanager
def few_rows(model: Any) -> Iterator[None]:
    """Within the block, experts of a model on a CPU that would run `grouped_mm` run `mix_experts`."""
    config = model.config
    if getattr(config, "_experts_implementation", None) != "grouped_mm" or next(model.parameters()).device.type != "cpu":
        yield
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, mix_experts)
    config._experts_implementation = NAME
    try:
        yield
    finally:
        config._experts_implementation = "grouped_mm"


def mix_experts(module: Any, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """As transformers' experts functions: hidden [tokens, width], indices and weights [tokens, k] -> [tokens, width]."""
    odd = any(getattr(module, name, False) for name in ("has_bias", "has_post_expert_norm", "_is_expert_parallel"))
    if odd or not module.has_gate:
        from transformers.integrations.moe import grouped_mm_experts_forward

        return grouped_mm_experts_forward(module, hidden, indices, weights)
    tokens, k = indices.shape
    order = indices.flatten().argsort()
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    counts = indices.flatten().bincount(minlength=module.num_experts).tolist()
    gathered = _Gather.apply(hidden, order // k, back)
    inner = module._apply_gate(_Experts.apply(gathered, module.gate_up_proj, counts, module.is_transposed))
    weighed = (inner * weights.flatten()[order, None]).to(inner.dtype)  # some routers give float32 weights in any dtype
    outer = _Experts.apply(weighed, module.down_proj, counts, module.is_transposed)
    return _Sum.apply(outer, order // k, back, tokens)


class _Gather(torch.autograd.Function):
    """hidden [tokens, width] -> [pairs, width], pair i of token `token[i]`; `back` undoes the pairs' order."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, token: Tensor, back: Tensor) -> Tensor:
        ctx.back, ctx.tokens = back, len(hidden)
        return hidden.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _total(grads[0], ctx.back, ctx.tokens), None, None


class _Sum(torch.autograd.Function):
    """The transpose: [pairs, width] -> [tokens, width], each token the sum of its pairs."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, token: Tensor, back: Tensor, tokens: int) -> Tensor:
        ctx.token = token
        return _total(pairs, back, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].index_select(0, ctx.token), None, None, None


def _total(pairs: Tensor, back: Tensor, tokens: int) -> Tensor:
    return pairs.index_select(0, back).view(tokens, -1, pairs.shape[-1]).sum(dim=1)


class _Experts(torch.autograd.Function):
    """Pairs [n, in], sorted by expert, each times its expert's weight [experts, out, in]; `counts` pairs an expert.

    `transposed`: the weights are [experts, in, out].
    """

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, weight: Tensor, counts: list[int], transposed: bool) -> Tensor:
        ctx.weight, ctx.counts, ctx.transposed = weight, counts, transposed
        return _each(pairs, weight, counts, transposed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _each(grads[0], ctx.weight, ctx.counts, not ctx.transposed), None, None, None


def _each(pairs: Tensor, weight: Tensor, counts: list[int], transposed: bool) -> Tensor:
    copies = packed(weight, transposed)
    asked = [expert for expert, count in enumerate(counts) if count]
    shares = pairs.split([counts[expert] for expert in asked])
    if copies:
        return torch.cat([with_copy(rows, copies[expert]) for expert, rows in zip(asked, shares, strict=True)])
    matrices = weight.transpose(1, 2) if transposed else weight
    return torch.cat([product(rows, matrices[expert]) for expert, rows in zip(asked, shares, strict=True)])
