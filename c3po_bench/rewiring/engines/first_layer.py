"""The first critical layer, opened.

Nothing that enters it depends on the pathway, so its parts are constants.

Its output is linear in the mixing weights: what it gives with no routed expert, plus each expert's output
times its weight. Both are computed once for a batch; each step then only mixes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.rewiring.engines.products import times_constant
from c3po_bench.rewiring.hook import experts_of, override
from c3po_bench.rewiring.pathway import Mixture

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from c3po_bench.rewiring.engines.base import Engine


class FirstLayer:
    """`rest` [rows, tokens, width] without routed experts at the overridden token, `parts` [rows, experts, width]."""

    @torch.no_grad()
    def __init__(self, engine: Engine, run: Callable[[], Tensor], rows: int, tokens: int):
        family, model, layer = engine.family, engine.model, engine.layers[0]
        at = torch.arange(rows, device=engine.device) * tokens
        experts = experts_of(family, model, layer)
        seen: list[Tensor] = []

        def look(_module: Any, args: tuple[Any, ...]) -> None:
            seen.append(args[0][at])

        silent = Mixture(torch.zeros(rows, 1, 1, device=engine.device), at.new_zeros(rows, 1, 1))
        handle = experts.register_forward_pre_hook(look)
        try:
            with override(family, model, [layer], at, silent):
                self.rest = run()
        finally:
            handle.remove()
        count = family.num_experts
        each = torch.arange(count, device=engine.device).repeat(rows)[:, None]
        hidden = seen[0].repeat_interleave(count, dim=0)
        out = experts(hidden, each, torch.ones_like(each, dtype=hidden.dtype))
        block = family.decoder_of(model).layers[layer]
        self.parts = out.view(rows, count, -1) * getattr(block, "residual_multiplier", 1.0)

    def mixed(self, weights: Tensor, indices: Tensor) -> Tensor:
        """The layer's output [rows, tokens, width] under mixtures [rows, slots]."""
        spread = weights.new_zeros(self.parts.shape[:2]).scatter_add(1, indices, weights)
        added = times_constant(spread.to(self.parts.dtype)[:, None], self.parts)
        return torch.cat([self.rest[:, :1] + added, self.rest[:, 1:]], dim=1)
