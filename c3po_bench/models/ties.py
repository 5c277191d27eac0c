"""Routing ties: tokens whose last chosen expert and first one left out score alike up to rounding.

Which of the two is chosen is then decided by the order in which numbers are added, so by the batch: the same
question may get another answer, and no method did that.
"""

from collections.abc import Sequence
from typing import Any

import torch

from c3po_bench.errors import UserError
from c3po_bench.models.families import Family
from c3po_bench.models.placement import input_device
from c3po_bench.models.routing import family_of, selection_scores

ROUNDING = 16.0
"""Steps of the model's precision, relative to the score, within which two scores count as equal.

A router's logits are sums over the hidden state, which itself is rounded in every layer before; other batches
moved SmolMoE's scores in float32 by up to some ten steps.
"""


def family_with_routers(model: Any) -> Family | None:
    """The family of a model, or None for one without routers, or not in the table."""
    try:
        return family_of(model)
    except UserError:
        return None


@torch.no_grad()
def count_ties(model: Any, family: Family, sequences: Sequence[Sequence[int]]) -> int:
    """How many (token, layer) of these token sequences have a tie within rounding, in one forward pass.

    Args:
        model: the model, as it is.
        family: from `family_of`.
        sequences: of one item: each option behind its context, or a prompt.
    """
    width = max(map(len, sequences))
    ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences], device=input_device(model))
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences], device=ids.device)
    routed: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        return lambda _module, _args, output: routed.__setitem__(layer, output[0].cpu())

    hooks = [family.router_of(model, layer).register_forward_hook(keep(layer)) for layer in family.layers]
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    pathways = torch.stack([family.pathway(routed[layer]) for layer in family.layers], dim=1)
    scores = selection_scores(family.at(family.layers, pathways.device), pathways)
    last, next_one = (
        scores.topk(min(family.top_k + 1, family.num_experts), dim=-1).values[..., -2:].unbind(-1)
    )
    step = torch.finfo(next(model.parameters()).dtype).eps * ROUNDING
    tied = (last - next_one) <= step * last.abs()
    return int((tied & mask.cpu().bool().flatten()[:, None]).sum())


def ties_note(tied: int, items: int) -> str:
    """What a result says of its routing ties."""
    return (
        f"{tied} of {items} items have a routing tie within rounding (two experts of a token score alike): which "
        "expert answers depends on the batch"
    )
