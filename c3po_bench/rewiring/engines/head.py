"""The head and its loss: log-probabilities of target tokens without keeping a vocabulary-wide gradient.

The head is often larger than all critical layers together. Its gradient with respect to the hidden state
needs only softmax(logits) @ W, so it is formed in the forward pass and the logits are let go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.rewiring.engines.products import times_parameter

if TYPE_CHECKING:
    from torch import Tensor

    from c3po_bench.models.families import Family

ROWS = 512
"""Targets whose logits are held at once."""


class _TargetLogProbs(torch.autograd.Function):
    """log p(target) of hidden states [targets, width], float32 [targets], and whether the target is the likeliest."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, divisor: float, greedy: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits in float32; the gradient, where asked for, in the head's dtype."""
        chosen, likeliest, gradients = [], [], []
        for start in range(0, len(targets), ROWS):
            rows, wanted = hidden[start : start + ROWS], targets[start : start + ROWS, None]
            logits = times_parameter(rows, weight).float()
            if divisor != 1.0:
                logits /= divisor
            if greedy:
                likeliest.append(logits.argmax(dim=-1) == wanted.squeeze(-1))
            at_target, peak = logits.gather(-1, wanted), logits.amax(dim=-1, keepdim=True)
            odds = logits.sub_(peak).exp_()  # once, for their sum and for the gradient
            total = odds.sum(dim=-1, keepdim=True)
            chosen.append(
                (at_target - peak - total.log()).squeeze(-1)
            )  # log_softmax on a CPU is off by 4e-5 on average
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
        return (saved.float() * grads[0][:, None]).to(saved.dtype), None, None, None, None


def target_log_probs(
    family: Family, model: Any, hidden: Tensor, targets: Tensor, greedy: bool
) -> tuple[Tensor, Tensor]:
    """What the head says of target tokens, from final normed hidden states [targets, width].

    Returns:
        log p(target) [targets], float32, differentiable in `hidden`, and whether no token is likelier,
        boolean [targets] (all false unless `greedy`).
    """
    weight = model.get_submodule(family.head).weight
    return _TargetLogProbs.apply(hidden, targets, weight, family.logits_divisor, greedy)  # type: ignore[no-any-return]
