"""What a forward pass says about labelled tokens, without logits where nobody needs them.

TRL calls its model with ``fused_lm_head=True`` and reads per-token fields. Its fused head saves memory on a
GPU but is several times slower than plain logits on a CPU, so `PlainHead` offers the same fields from plain
logits at the labelled positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100


@dataclass
class TokenFields:
    """Per-token fields [rows, length - 1], zero where the label is ignored.

    `logits` [labelled tokens, vocabulary].
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor
    mask: torch.Tensor
    aux_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def labelled_logits(
    model: Any, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, Any]:
    """The logits that predict the labelled tokens [labelled tokens, vocabulary], row by row, and the model's output.

    The head runs from the first position that predicts a label on, not over the prompts.
    """
    mask = labels[:, 1:] != IGNORED
    columns = mask.any(dim=0).nonzero()
    first = int(columns[0]) if len(columns) else mask.shape[1] - 1
    kept = input_ids.shape[1] - first
    output = model(input_ids=input_ids, logits_to_keep=kept, use_cache=False, **kwargs)
    logits = output.logits[:, -kept:-1]  # models that ignore logits_to_keep return every position
    return logits[mask[:, first:]], output


def token_fields(model: Any, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> TokenFields:
    """`TokenFields` of the labels [rows, length] by plain logits, in float32."""
    mask = labels[:, 1:] != IGNORED
    logits, output = labelled_logits(model, input_ids, labels, **kwargs)
    logits = logits.float()
    targets = labels[:, 1:][mask]
    log_normalizer = logits.logsumexp(dim=-1)
    log_probs = logits.gather(-1, targets[:, None])[:, 0] - log_normalizer
    with torch.no_grad():
        probabilities = (logits - log_normalizer[:, None]).exp()
        entropy = log_normalizer - (probabilities * logits).sum(dim=-1)
        mean_logits, is_top1 = logits.mean(dim=-1), logits.argmax(dim=-1) == targets

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    return TokenFields(
        spread(log_probs),
        spread(entropy),
        spread(mean_logits),
        spread(is_top1),
        mask,
        aux_loss=getattr(output, "aux_loss", None),
        logits=logits,
    )


class PlainHead:
    """Stands in for a model in TRL's losses: same call, same fields, plain logits."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> TokenFields:
        """The fields of the rows [rows, length - 1]."""
        kwargs = {k: v for k, v in kwargs.items() if k not in ("fused_lm_head", "use_cache")}
        return token_fields(self.model, input_ids, labels, **kwargs)
