"""Parts of the decoder as the suffix engine runs them. Same numbers as the model's own, by tests.

- Attention over earlier tokens that are constants: stock attention is given earlier and new keys in one
  tensor. It copies them together at each step, and its backward pass makes gradients for all of them, which
  nobody reads. Here the two are kept apart (`constant_prefix`).
- The first critical layer: nothing that enters it depends on the pathway, and its output is linear in the
  mixing weights. What it gives without routed experts, and each expert's output, are computed once for a
  batch; a step only mixes them (`FirstLayer`).
- The head, often larger than all critical layers together: its gradient towards the hidden state needs only
  softmax(logits) @ W, so it is formed in the forward pass and the logits are let go (`target_log_probs`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from c3po_bench.models.families import Family
from c3po_bench.models.placement import at_hand
from c3po_bench.rewiring.engines.base import Engine
from c3po_bench.rewiring.engines.products import times_constant, times_parameter
from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.pathway import Mixture

NAME = "c3po_suffix"
LOGIT_ROWS = 512
"""Targets whose logits are held at once."""
_earlier: list[tuple[dict[int, Tensor], dict[int, Tensor]]] = []


@contextmanager
def constant_prefix(model: Any, keys: dict[int, Tensor], values: dict[int, Tensor]) -> Iterator[bool]:
    """Within the block, attention of layer i also sees keys[i], values[i] [rows, kv heads, earlier, width].

    Gives False, and changes nothing, where the keys can't stay apart: then the cache must put earlier and new
    together.
    """
    config = model.config
    if not keys_stay_apart(model):
        yield False
        return
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    _earlier.append((keys, values))
    config._attn_implementation = NAME
    try:
        yield True
    finally:
        config._attn_implementation = "sdpa"
        _earlier.pop()


def keys_stay_apart(model: Any) -> bool:
    """Whether earlier and new keys may be given apart.

    Not where the model does not attend by `sdpa` (attention sinks, for one) or caches latents that keys are
    made from (multi-head latent attention).
    """
    return model.config._attn_implementation == "sdpa" and not getattr(model.config, "kv_lora_rank", None)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers' form.

    Query [rows, heads, tokens, width] -> [rows, tokens, heads, width]. The mask [rows, 1, tokens, earlier +
    tokens] is added to the scores; heads that share a key stand together.
    """
    keys, values = (part[module.layer_idx].to(query.device) for part in _earlier[-1])
    rows, heads, tokens, width = query.shape
    shared, earlier = keys.shape[1], keys.shape[2]
    scale = width**-0.5 if scaling is None else scaling
    folded = (query * scale).reshape(rows, shared, -1, width)
    scores = torch.cat([times_constant(folded, keys.mT), folded @ key.mT], dim=-1)
    scores = scores.view(rows, shared, heads // shared, tokens, -1) + attention_mask[:, :, None]
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=exact).to(query.dtype).view(rows, shared, -1, scores.shape[-1])
    out = times_constant(weights[..., :earlier], values) + weights[..., earlier:] @ value
    return out.view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


class FirstLayer:
    """The first critical layer of a batch, opened.

    rest: [rows, tokens, width], its output without routed experts at the overridden token.
    parts: [rows, experts, width], each routed expert's output there, times the layer's `factor`.
    """

    @torch.no_grad()
    def __init__(self, engine: Engine, run: Callable[[], Tensor], rows: int, tokens: int, factor: float):
        family, model, layer = engine.family, engine.model, engine.layers[0]
        at = torch.arange(rows, device=engine.device) * tokens
        experts = family.experts_of(model, layer)
        seen: list[Tensor] = []

        def look(_module: Any, args: tuple[Any, ...]) -> None:
            seen.append(args[0][at.to(args[0].device)])

        silent = Mixture(torch.zeros(rows, 1, 1, device=engine.device), at.new_zeros(rows, 1, 1))
        handle = experts.register_forward_pre_hook(look)
        try:
            with override(family, model, [layer], at, silent):
                self.rest = run()
        finally:
            handle.remove()
        count = family.num_experts
        hidden = seen[0].repeat_interleave(count, dim=0)
        each = torch.arange(count, device=hidden.device).repeat(rows)[:, None]
        out = experts(hidden, each, torch.ones_like(each, dtype=hidden.dtype))
        self.parts = out.view(rows, count, -1).to(engine.device) * factor

    def mixed(self, weights: Tensor, indices: Tensor) -> Tensor:
        """The layer's output [rows, tokens, width] under mixtures [rows, slots]."""
        spread = weights.new_zeros(self.parts.shape[:2]).scatter_add(1, indices, weights)
        added = times_constant(spread.to(self.parts.dtype)[:, None], self.parts)
        return torch.cat([self.rest[:, :1] + added, self.rest[:, 1:]], dim=1)


class _TargetLogProbs(torch.autograd.Function):
    """See `target_log_probs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        divisor: float,
        greedy: bool,
    ) -> tuple[Tensor, Tensor]:
        """Logits in float32; the gradient, where asked for, in the head's dtype."""
        chosen, likeliest, gradients = [], [], []
        for start in range(0, len(targets), LOGIT_ROWS):
            rows, wanted = hidden[start : start + LOGIT_ROWS], targets[start : start + LOGIT_ROWS, None]
            logits = times_parameter(rows, weight).float()
            if bias is not None:
                logits += bias
            if divisor != 1.0:
                logits /= divisor
            if greedy:
                likeliest.append(logits.argmax(dim=-1) == wanted.squeeze(-1))
            at_target, peak = logits.gather(-1, wanted), logits.amax(dim=-1, keepdim=True)
            odds = logits.sub_(peak).exp_()  # once, for their sum and for the gradient
            total = odds.sum(dim=-1, keepdim=True)
            # not by log_softmax, which on a CPU is off by 4e-5 on average
            chosen.append((at_target - peak - total.log()).squeeze(-1))
            if ctx.needs_input_grad[0]:
                expected = times_parameter(odds.div_(total).to(weight.dtype), weight, transposed=True)
                gradients.append((weight[wanted.squeeze(-1)] - expected) / divisor)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        hits = torch.cat(likeliest) if greedy else torch.zeros_like(targets, dtype=torch.bool)
        ctx.mark_non_differentiable(hits)
        return torch.cat(chosen), hits

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The saved gradient, scaled by what comes from above."""
        (saved,) = ctx.saved_tensors
        return (saved.float() * grads[0][:, None]).to(saved.dtype), None, None, None, None, None


def target_log_probs(
    family: Family, model: Any, hidden: Tensor, targets: Tensor, greedy: bool
) -> tuple[Tensor, Tensor]:
    """What the head says of target tokens, from final normed hidden states [targets, width].

    Returns:
        log p(target) [targets], float32, differentiable in `hidden`, and whether no token is likelier,
        boolean [targets] (all false unless `greedy`).
    """
    head = model.get_submodule(family.head)
    with at_hand(head):
        weight, bias = head.weight, getattr(head, "bias", None)
        here, wanted = hidden.to(weight.device), targets.to(weight.device)
        chosen, hits = _TargetLogProbs.apply(here, wanted, weight, bias, family.logits_divisor, greedy)
    return chosen.to(hidden.device), hits.to(hidden.device)
