"""Attention of a few tokens over many earlier ones that are constants.

Stock attention is given earlier and new keys in one tensor: they are copied together at each step, and the
backward pass makes gradients for all of them, which nobody reads. Here the two are kept apart. Same numbers
as `sdpa`, by tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.rewiring.engines.products import times_constant

if TYPE_CHECKING:
    from torch import Tensor

NAME = "c3po_suffix"
_earlier: list[tuple[dict[int, Tensor], dict[int, Tensor]]] = []


@contextmanager
def constant_prefix(model: Any, keys: dict[int, Tensor], values: dict[int, Tensor]) -> Iterator[bool]:
    """Within the block, attention of layer i also sees keys[i], values[i] [rows, kv heads, earlier tokens, width].

    Gives False, and changes nothing, where the model does not attend by `sdpa` (attention sinks, for one) or
    caches latents that keys are made from (multi-head latent attention): then the cache must put earlier and
    new together.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or getattr(config, "kv_lora_rank", None):
        yield False
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    _earlier.append((keys, values))
    config._attn_implementation = NAME
    try:
        yield True
    finally:
        config._attn_implementation = "sdpa"
        _earlier.pop()


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions.

    Query [rows, heads, tokens, width] -> [rows, tokens, heads, width].

    The mask [rows, 1, tokens, earlier + tokens] is added to the scores; heads that share a key stand
    together.
    """
    keys, values = (part[module.layer_idx] for part in _earlier[-1])
    rows, heads, tokens, width = query.shape
    shared, earlier = keys.shape[1], keys.shape[2]
    scale = width**-0.5 if scaling is None else scaling
    folded = (query * scale).reshape(rows, shared, -1, width)
    scores = torch.cat([times_constant(folded, keys.mT), folded @ key.mT], dim=-1)
    scores = scores.view(rows, shared, heads // shared, tokens, -1) + attention_mask[:, :, None]
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=exact).to(query.dtype).view(rows, shared, -1, scores.shape[-1])
    out = times_constant(weights[..., :earlier], values) + weights[..., earlier:] @ value
    return out.view(rows, heads, tokens, -1).transpose(1, 2), None
