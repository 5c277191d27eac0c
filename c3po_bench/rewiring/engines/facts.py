"""How a model calls its own layers, seen in one forward of a few tokens, so that `suffix` can call them alike.

Which layers see a window only, which rotary embedding each is given and what enters the first of them differ
from family to family, and configs and modules do not always tell: EXAONE-MoE, for one, has a `sliding_window`
on every layer and uses it on some.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from c3po_bench.models.families import Family
from c3po_bench.models.routing import probe_ids

KNOWN = {"attention_mask", "position_ids", "past_key_values", "position_embeddings", "use_cache"}
KNOWN |= {"cache_position", "output_router_logits", "output_attentions"}
"""What a layer may be called with, besides hidden states, for `suffix` to run it."""
Rotary = Callable[[Tensor, Tensor], Any]


class NoSuffixError(Exception):
    """The engine `suffix` can't run a model; the message says why."""


@dataclass(frozen=True)
class Facts:
    """By decoder layer: the window (None for full attention) and what makes its position embeddings."""

    windows: tuple[int | None, ...]
    rotaries: tuple[Rotary, ...]


class _EnteredError(Exception):
    """Ends a forward at the first layer."""


@torch.no_grad()
def facts_of(family: Family, model: Any) -> Facts:
    """Watch the model call its layers.

    Raises:
        NoSuffixError: for a model whose layers are called in a way that isn't known.
    """
    if family.naive_only:
        raise NoSuffixError(family.naive_only)
    decoder, calls = family.decoder_of(model), []
    config = decoder.config
    window, ids = getattr(config, "sliding_window", None), probe_ids(model)

    def look(_layer: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        calls.append((args, inputs))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in decoder.layers]
    try:
        if window is not None:
            config.sliding_window = 2  # shorter than the prompt: a mask then tells
        decoder(input_ids=ids, use_cache=False)
    finally:
        if window is not None:
            config.sliding_window = window
        for hook in hooks:
            hook.remove()
    for args, inputs in calls:
        if len(args) != 1 or (unknown := {k for k, v in inputs.items() if v is not None} - KNOWN):
            raise NoSuffixError(f"its layers are called with {', '.join(sorted(unknown or {'more'}))}")
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    makers = _makers(decoder)
    hidden = calls[0][0][0]
    return Facts(
        tuple(window if _hides(inputs.get("attention_mask")) else None for _, inputs in calls),
        tuple(_maker(makers, hidden, positions, inputs.get("position_embeddings")) for _, inputs in calls),
    )


def _hides(mask: Tensor | None) -> bool:
    """Whether the last token of the prompt does not see all tokens."""
    if mask is None:
        return False
    seen = mask[0, 0, -1] if mask.dtype == torch.bool else mask[0, 0, -1] >= 0
    return not bool(seen.all())


def _makers(decoder: Any) -> list[Rotary]:
    """All ways in which the decoder can make position embeddings of (hidden, positions)."""
    rotaries = list(getattr(decoder, "rotary_embs", None) or [decoder.rotary_emb])
    makers: list[Rotary] = [lambda hidden, positions: None]
    for rotary in rotaries:
        if "layer_type" in inspect.signature(rotary.forward).parameters:
            kinds = dict.fromkeys(decoder.config.layer_types)
            makers += [partial(_of_type, rotary, kind) for kind in kinds]
        else:
            makers.append(rotary)
    return makers


def _of_type(rotary: Any, layer_type: str, hidden: Tensor, positions: Tensor) -> Any:
    return rotary(hidden, positions, layer_type)


def _maker(makers: list[Rotary], hidden: Tensor, positions: Tensor, given: Any) -> Rotary:
    """The one that makes what a layer was `given`."""
    for maker in makers:
        made = maker(hidden, positions)
        if (made is None) == (given is None) and (made is None or _same(made, given)):
            return maker
    raise NoSuffixError("the position embeddings of its layers are made in a way that isn't known")


def _same(made: Any, given: Any) -> bool:
    pairs = zip(made, given, strict=True) if isinstance(made, tuple) else [(made, given)]
    return all(a.shape == b.shape and torch.equal(a.to(b.device), b) for a, b in pairs)


def embed(family: Family, model: Any, ids: Tensor) -> Tensor:
    """The model's own hidden states [rows, tokens, width] before its first layer, for token ids [rows, tokens]."""
    decoder, entered = family.decoder_of(model), []

    def stop(_layer: Any, args: tuple[Any, ...]) -> None:
        entered.append(args[0])
        raise _EnteredError

    hook = decoder.layers[0].register_forward_pre_hook(stop)
    try:
        decoder(input_ids=ids, use_cache=False)
    except _EnteredError:
        return entered[0]
    finally:
        hook.remove()
    raise NoSuffixError("its first layer is not called")
