"""Experts on a CPU: of a few tokens again and again (`moe_step`), and of whole prompts once (`moe_prefill`).

A step of rewiring passes a few rows through each of some twenty core experts, again and again: their weights
are packed once (`products`). Gathering the experts' rows and summing their outputs are each other's
transposes, so neither needs a scatter in the backward pass. Reading passes hundreds of tokens through every
expert: there copying the rows in and out takes the time, and they are copied as little as can be. The numbers
are those of the model's own `grouped_mm`, by tests.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from c3po_bench.models.placement import input_device, is_spread
from c3po_bench.rewiring.engines.products import as_out_in, packed, times_weight

NAME = "c3po_bench"
NARROW = 64
"""Inner width of an expert up to which its products are so small that those of all experts take no longer."""


@contextmanager
def experts_by(function: Callable[..., Tensor], model: Any) -> Iterator[None]:
    """Within the block, experts of a model on a CPU run `function` in the place of `grouped_mm`."""
    config = model.config
    if not replaces_experts(model):
        yield
        return
    ALL_EXPERTS_FUNCTIONS.register(NAME, function)
    config._experts_implementation = NAME
    try:
        yield
    finally:
        config._experts_implementation = "grouped_mm"


def replaces_experts(model: Any) -> bool:
    """Whether `experts_by` changes anything for this model."""
    on_cpu = input_device(model).type == "cpu" and not is_spread(model)
    return on_cpu and getattr(model.config, "_experts_implementation", None) == "grouped_mm"


def moe_step(module: Any, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """An experts function of transformers' form, differentiable in `hidden` and `weights`.

    Hidden [tokens, width], indices and weights [tokens, k] -> [tokens, width].
    """
    if needs_stock(module):
        return grouped_mm_experts_forward(module, hidden, indices, weights)
    if asks_most(module, indices.shape[1]):
        return _mix_all(module, hidden, indices, weights)
    order, back, counts = _by_expert(indices, module.num_experts)
    gathered = _Gather.apply(hidden, order // indices.shape[1], back)
    inner = module._apply_gate(_Experts.apply(gathered, module.gate_up_proj, counts, module.is_transposed))
    # some routers give float32 weights in any dtype
    weighed = (inner * weights.flatten()[order, None]).to(inner.dtype)
    outer = _Experts.apply(weighed, module.down_proj, counts, module.is_transposed)
    return _Sum.apply(outer, order // indices.shape[1], back)


def asks_most(module: Any, k: int) -> bool:
    """Whether tokens that mix `k` experts are mixed faster by asking all experts side by side.

    Measured with 8 to 200 tokens, forward and backward: 2 to 3.5 times as fast where all 16 narrow experts
    are wanted, 1.5 to 3.3 where half of them are; experts of 256 and more are as fast either way when some
    60% are wanted.
    """
    wide = module.down_proj.shape[1 if module.is_transposed else 2] > NARROW
    most = 3 * k >= 2 * module.num_experts if wide else 2 * k >= module.num_experts
    weights = ((module.gate_up_proj, 0), (module.down_proj, 1))
    return most and all(packed(weight, module.is_transposed, axis) for weight, axis in weights)


def _mix_all(module: Any, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The same by way of all experts, those not wanted at weight 0.

    There is nothing to gather, and the product itself adds up.
    """
    tokens, experts = len(hidden), module.num_experts
    every = weights.new_zeros(tokens, experts).scatter_add(1, indices, weights)
    both = _Joined.apply(hidden, module.gate_up_proj, module.is_transposed, 0)
    inner = module._apply_gate(both.reshape(tokens * experts, -1))
    weighed = (inner * every.view(-1, 1)).to(inner.dtype)
    return _Joined.apply(weighed.view(tokens, -1), module.down_proj, module.is_transposed, 1)


@torch.no_grad()
def moe_prefill(module: Any, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """As `moe_step`, without a gradient and without packed weights.

    1.3 to 1.5 times as fast with hundreds of tokens.
    """
    if needs_stock(module):
        return grouped_mm_experts_forward(module, hidden, indices, weights)
    order, back, counts = _by_expert(indices, module.num_experts)
    pairs = hidden.index_select(0, order // indices.shape[1])
    inner = pairs.new_empty(len(pairs), 2 * module.down_proj.shape[1 if module.is_transposed else 2])
    _multiply(pairs, module.gate_up_proj, counts, module.is_transposed, inner)
    weighed = (module._apply_gate(inner) * weights.flatten()[order, None]).to(inner.dtype)
    _multiply(weighed, module.down_proj, counts, module.is_transposed, pairs)
    return _total(pairs, back)


def needs_stock(module: Any) -> bool:
    """Whether these experts do something that ours don't: then the model's own function runs."""
    odd = any(
        getattr(module, name, False) for name in ("has_bias", "has_post_expert_norm", "_is_expert_parallel")
    )
    return odd or not module.has_gate


def _by_expert(indices: Tensor, experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Pairs (token, expert) of indices [tokens, k], sorted by expert.

    Returns:
        The pairs' numbers in that order, the place of each [tokens, k], and how many each expert has.
    """
    order = indices.flatten().argsort()
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return order, back.view_as(indices), indices.flatten().bincount(minlength=experts).tolist()


def _multiply(pairs: Tensor, weight: Tensor, counts: list[int], transposed: bool, out: Tensor) -> None:
    matrices = weight if transposed else weight.transpose(1, 2)
    for expert, (rows, result) in enumerate(zip(pairs.split(counts), out.split(counts), strict=True)):
        if len(rows):
            torch.mm(rows, matrices[expert], out=result)


class _Gather(torch.autograd.Function):
    """Hidden [tokens, width] -> [pairs, width], pair i of token `token[i]`.

    `back` [tokens, k] are each token's pairs.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, token: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return hidden.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _total(grads[0], ctx.back), None, None


class _Sum(torch.autograd.Function):
    """The transpose: [pairs, width] -> [tokens, width], each token the sum of its pairs."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, token: Tensor, back: Tensor) -> Tensor:
        ctx.token = token
        return _total(pairs, back)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].index_select(0, ctx.token), None, None


def _total(pairs: Tensor, back: Tensor) -> Tensor:
    return embedding_bag(back, pairs, mode="sum")  # gathers and adds in one pass


class _Experts(torch.autograd.Function):
    """Pairs [n, in], sorted by expert, `counts` an expert, each times its expert's weight [experts, out, in].

    `transposed`: the weights are [experts, in, out].
    """

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, weight: Tensor, counts: list[int], transposed: bool) -> Tensor:
        ctx.weight, ctx.counts, ctx.transposed = weight, counts, transposed
        return _each(pairs, weight, counts, transposed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _each(grads[0], ctx.weight, ctx.counts, not ctx.transposed), None, None, None


class _Joined(torch.autograd.Function):
    """Rows [n, in] times all experts' weights, side by side along outputs (axis 0) or inputs (axis 1)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, transposed: bool, axis: int) -> Tensor:
        ctx.weight, ctx.transposed, ctx.axis = weight, transposed, axis
        return _at_once(rows, weight, transposed, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _at_once(grads[0], ctx.weight, not ctx.transposed, 1 - ctx.axis), None, None, None


def _at_once(rows: Tensor, weight: Tensor, transposed: bool, axis: int) -> Tensor:
    if weights := packed(weight, transposed, axis):
        return weights.times(rows)
    return times_weight(rows, torch.cat([*as_out_in(weight, transposed)], dim=axis))


def _each(pairs: Tensor, weight: Tensor, counts: list[int], transposed: bool) -> Tensor:
    if weights := packed(weight, transposed):
        return weights.times(pairs, counts)
    shares = zip(pairs.split(counts), as_out_in(weight, transposed), strict=True)
    return torch.cat([times_weight(rows, matrix) for rows, matrix in shares if len(rows)])
