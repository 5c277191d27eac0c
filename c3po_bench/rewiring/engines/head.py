"""The head and its loss: log-probabilities of target tokens without keeping a vocabulary-wide gradient.

The head is often larger than all critical layers together. Its gradient with respect to the hidden state needs only
softmax(logits) @ W, so it is formed in the forward pass, in place, and the logits are let go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from c3po_bench.models.families import Family

ROWS = 512
"""Targets whose logits are held at once."""


class _TargetLogProbs(torch.autograd.Function):
    """log p(target) of hidden states [targets, width], float32 [targets]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, divisor: float) -> Tensor:
        """Logits in float32; the gradient, where asked for, in the head's dtype."""
        chosen, gradients = [], []
        for start in range(0, len(targets), ROWS):
            rows, wanted = hidden[start : start + ROWS], targets[start : start + ROWS, None]
            logits = torch.nn.functional.linear(rows, weight).float()
            if divisor != 1.0:
                logits /= divisor
            total = logits.logsumexp(dim=-1, keepdim=True)
            chosen.append((logits.gather(-1, wanted) - total).squeeze(-1))
            if ctx.needs_input_grad[0]:
                logits.sub_(total).exp_().neg_()
                logits.scatter_add_(-1, wanted, logits.new_ones(wanted.shape))
                gradients.append(logits.to(weight.dtype) @ weight / divisor)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(chosen)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The saved gradient, scaled by what comes from above."""
        (saved,) = ctx.saved_tensors
        return (saved.float() * grads[0][:, None]).to(saved.dtype), None, None, None


def target_log_probs(family: Family, model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log p(target) [targets], float32, of final normed hidden states [targets, width]; differentiable in `hidden`."""
    return _TargetLogProbs.apply(hidden, targets, model.get_submodule(family.head).weight, family.logits_divisor)  # type: ignore[no-any-return]


@torch.no_grad()
def greedy_tokens(family: Family, model: Any, hidden: Tensor) -> Tensor:
    """The most likely next token [targets] of final normed hidden states [targets, width]."""
    hidden = hidden.detach()
    pieces = [family.head_logits(model, hidden[i : i + ROWS]).argmax(dim=-1) for i in range(0, len(hidden), ROWS)]
    return torch.cat(pieces)
