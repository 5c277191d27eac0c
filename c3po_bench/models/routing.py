"""A family with a model's numbers filled in, and how pathways become weights and experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from c3po_bench.errors import UserError
from c3po_bench.models.families import Family, family_by_type, to_logits
from c3po_bench.models.placement import at_hand, input_device


def family_of(model: nn.Module) -> Family:
    """The family of a causal language model, with its numbers filled in.

    Raises:
        UserError: when the model is dense, its family isn't in the table, or transformers is too old for it.
    """
    config: Any = model.config
    family = family_by_type(config, type(model).__name__)
    layers = tuple(
        number
        for number, layer in enumerate(family.decoder_of(model).layers)
        if any(name == family.router for name, _ in layer.named_modules())  # a dense layer has no router
    )
    if not layers:
        raise UserError(
            f"no layer of this {family.model_type} model has a router: rewiring has nothing to change"
        )
    routers: list[Any] = [family.router_of(model, layer) for layer in layers]
    sizes = {(_width(r), int(getattr(r, "top_k", 0) or getattr(config, family.top_k_key))) for r in routers}
    if len(sizes) > 1:
        raise UserError(f"this {family.model_type} model has layers of unlike numbers of experts: {sizes}")
    num_experts, top_k = sizes.pop()
    rule, score, scale = family.renormalises, family.score, _number(config, family.scale_key)
    limited = family.group_score == "top2sum" or (
        family.group_score is not None and getattr(config, "topk_method", None) == "group_limited_greedy"
    )
    return replace(
        family,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        score=score(config) if callable(score) else score,
        renormalise=rule(config)
        if callable(rule)
        else bool(getattr(config, rule) if isinstance(rule, str) else rule),
        scale=1.0 if family.scale_after else scale,
        factor=scale if family.scale_after else 1.0,
        least_sum=_number(config, family.least_sum_key, 0.0),
        logits_divisor=_number(config, family.logits_divisor_key) / _number(config, family.logits_factor_key),
        groups=(config.n_group or 1) if limited else 1,
        kept_groups=(config.topk_group or 1) if limited else 1,
        selection_bias=_of_layers(family, model, layers, family.bias),
        expert_scales=_of_layers(family, model, layers, family.expert_scale),
    )


def _number(config: Any, key: str | None, otherwise: float = 1.0) -> float:
    """The value of config key `key`; `otherwise` for families that have no such key."""
    return float(getattr(config, key)) if key else otherwise


def _width(router: nn.Module) -> int:
    """How many experts a router has logits for."""
    return next(p.shape[0] for p in router.parameters() if p.dim() == 2 and p.shape[0] > 1)


def _of_layers(family: Family, model: nn.Module, layers: tuple[int, ...], path: str | None) -> Tensor | None:
    """The tensors at `path` of layers, stacked [layers, experts] in float32; None where there are none."""
    if path is None:
        return None
    rows: list[Any] = []
    owner, _, name = path.rpartition(".")
    for layer in layers:
        module = family.decoder_of(model).layers[layer].get_submodule(owner)
        if not hasattr(module, name):  # a config may do without
            return None
        with at_hand(module):
            rows.append(getattr(module, name).detach().float().flatten().cpu())
    return torch.stack(rows)


def probe_ids(model: Any) -> Tensor:
    """A prompt of four different tokens [1, 4], on the device where the model's inputs go."""
    ids = torch.arange(1, 5)[None] * 7 % model.config.get_text_config().vocab_size
    return ids.to(input_device(model))


def selection_scores(family: Family, pathway: Tensor, candidates: Tensor | None = None) -> Tensor:
    """What experts compete by, [..., experts]: the pathway with the family's bias, -inf where not eligible.

    Args:
        family: from `family_of`, its bias that of the pathway's layers (`Family.at`).
        pathway: [..., experts], or [..., layers, experts] where the family has a bias.
        candidates: optional boolean, same shape: only these are eligible.
    """
    score = pathway
    if family.selection_bias is not None:
        score = to_logits(pathway, "sigmoid") if family.bias_on == "logits" else pathway
        score = score + family.selection_bias.to(pathway)
    if candidates is not None:
        score = score.masked_fill(~candidates, float("-inf"))
    if family.groups > 1:
        grouped = score.unflatten(-1, (family.groups, -1))
        if family.group_score == "max":
            worth = grouped.amax(dim=-1)
        else:
            first, second = grouped.topk(2, dim=-1).values.unbind(-1)
            worth = first + second.masked_fill(second.isinf(), 0.0)  # a group of one candidate
        best = worth.topk(family.kept_groups, dim=-1).indices
        kept = score.new_zeros(worth.shape).scatter(-1, best, 1.0).bool()
        score = score.masked_fill(~kept.unsqueeze(-1).expand_as(grouped).flatten(-2), float("-inf"))
    return score


def mix(
    family: Family, pathway: Tensor, top_k: int | None = None, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights and experts that the family's block would use if its router had said `pathway`.

    Given the original pathway it gives the router's own answer. Differentiable in `pathway` for a fixed
    choice of experts.

    Args:
        family: from `family_of`; where it has a selection bias, of the pathway's layers alone (`Family.at`).
        pathway: [..., experts], non-negative; [..., layers, experts] where the family has a selection bias.
        top_k: how many experts to mix; the model's own number if None.
        candidates: optional boolean [..., experts]: only these may be selected (at least `top_k` of them).

    Returns:
        weights [..., top_k], float as `pathway`, and indices [..., top_k].
    """
    score = selection_scores(family, pathway, candidates)
    indices = score.topk(family.top_k if top_k is None else top_k, dim=-1).indices
    weights = pathway.gather(-1, indices)
    if family.renormalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + family.eps).clamp_min(family.least_sum)
    if family.expert_scales is not None:
        scales = family.expert_scales.to(pathway).expand_as(pathway)
        weights = weights * scales.gather(-1, indices)
    return weights * family.scale, indices
