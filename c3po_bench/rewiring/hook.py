"""The routing override: at chosen tokens, the experts block is told other weights and experts.

A pre-hook on the `experts` module replaces the arguments of the chosen rows; with more experts than the
model's top-k, a row is split into several of top-k experts each, and a second hook adds their outputs up. So
the override may mix any number of experts at no cost for the other tokens, under every experts
implementation.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from c3po_bench.errors import UserError
from c3po_bench.models.families import Family
from c3po_bench.models.routing import mix, probe_ids
from c3po_bench.rewiring.pathway import Mixture


@contextmanager
def override(
    family: Family, model: nn.Module, layers: list[int], rows: Tensor, mixture: Mixture
) -> Iterator[None]:
    """Within the block, tokens `rows` of every forward are mixed as `mixture` says in `layers`.

    Args:
        family: of the model.
        model: a causal language model.
        layers: decoder layers, in the order of the mixture's layer axis.
        rows: [n] indices of tokens in the flattened batch (batch x sequence).
        mixture: weights and indices [n, layers, slots].
    """
    with ExitStack() as hooks:
        for position, layer in enumerate(layers):
            experts = family.experts_of(model, layer)
            swap = _Swap(rows, mixture.weights[:, position], mixture.indices[:, position])
            hooks.enter_context(experts.register_forward_pre_hook(swap.before))
            hooks.enter_context(experts.register_forward_hook(swap.after))
        yield


@contextmanager
def record_routing(
    family: Family, model: nn.Module, layers: list[int], device: torch.device | None = None
) -> Iterator[dict[int, Tensor]]:
    """Collects what routers gave last, by layer, on `device`; `Family.pathway` makes pathways of it."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        return lambda _module, _args, output: seen.__setitem__(
            layer, output[0].to(device or output[0].device)
        )

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(family.router_of(model, layer).register_forward_hook(keep(layer)))
        yield seen


@torch.no_grad()
def check_override(family: Family, model: Any, layers: list[int]) -> None:
    """Require that hooks see what the model routes and change what it says, by two forwards of a few tokens.

    Raises:
        UserError: where a router is not called, gives scores of another width, or the experts of `layers` are
            not moved by an override, as under a fused kernel that calls neither.
    """
    ids = probe_ids(model)
    with record_routing(family, model, list(family.layers)) as seen:
        plain = model(input_ids=ids, use_cache=False).logits
    way_out = "use model.quantization=mxfp4_dequantized for GPT-OSS, or model.experts_implementation=eager"
    for layer in family.layers:
        if layer not in seen:
            raise UserError(
                f"the router of layer {layer} is not called: a fused kernel replaces it; {way_out}"
            )
        if seen[layer].shape[-1] != family.num_experts:
            raise UserError(
                f"the router of layer {layer} scores {seen[layer].shape[-1]} experts, its weights are of "
                f"{family.num_experts}: this model is loaded in parts; load it whole"
            )
    pathway = torch.stack([family.pathway(seen[layer]).to(plain.device) for layer in layers], dim=1)
    weights, indices = mix(family.at(layers), pathway)
    permuted = Mixture(weights, (indices + 1) % family.num_experts)
    rows = torch.arange(len(pathway), device=plain.device)
    with override(family, model, layers, rows, permuted):
        moved = model(input_ids=ids, use_cache=False).logits
    if torch.equal(plain, moved):
        raise UserError(
            f"other experts change nothing that the model says: a fused kernel runs them; {way_out}"
        )


class _Swap:
    """The pair of hooks on one experts module."""

    def __init__(self, rows: Tensor, weights: Tensor, indices: Tensor):
        self.rows, self.weights, self.indices = rows, weights, indices

    def before(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace rows (hidden [tokens, width], indices and weights [tokens, top-k])."""
        hidden, indices, weights = args
        if self.rows.device != hidden.device:  # a model over several devices
            self.rows, self.weights, self.indices = (
                tensor.to(hidden.device) for tensor in (self.rows, self.weights, self.indices)
            )
        self.tokens, top_k = indices.shape
        n, slots = self.weights.shape
        self.pieces = 1
        if n == self.tokens:  # every token is overridden: no row to keep at top-k experts
            order = self.rows.argsort()
            return hidden, self.indices[order], self.weights[order].to(weights.dtype)
        pieces = -(-slots // top_k)
        pad = pieces * top_k - slots
        new_weights = torch.nn.functional.pad(self.weights, (0, pad)).to(weights.dtype)
        new_indices = torch.cat([self.indices, self.indices[:, :1].expand(n, pad)], dim=1)
        new_weights, new_indices = new_weights.view(n, pieces, top_k), new_indices.view(n, pieces, top_k)
        weights = weights.index_copy(0, self.rows, new_weights[:, 0])
        indices = indices.index_copy(0, self.rows, new_indices[:, 0])
        if pieces > 1:
            extra = hidden[self.rows].repeat_interleave(pieces - 1, dim=0)
            hidden = torch.cat([hidden, extra])
            weights = torch.cat([weights, new_weights[:, 1:].reshape(-1, top_k)])
            indices = torch.cat([indices, new_indices[:, 1:].reshape(-1, top_k)])
        self.pieces = pieces
        return hidden, indices, weights

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the outputs of the split rows up."""
        if self.pieces == 1:
            return output
        extra = output[self.tokens :].view(len(self.rows), self.pieces - 1, -1).sum(dim=1)
        return output[: self.tokens].index_add(0, self.rows, extra)
