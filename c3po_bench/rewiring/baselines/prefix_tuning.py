"""Prefix tuning: trained keys and values before every prompt, in all layers (the paper's prefix row, Table 1)."""

from typing import Any

import torch

from c3po_bench.contract import ArmRow
from c3po_bench.errors import UserError
from c3po_bench.rewiring.baselines.arm import peft_package
from c3po_bench.rewiring.baselines.training import TrainedArm
from c3po_bench.rewiring.baselines.virtual_tokens import VirtualTokens
from c3po_bench.rewiring.workbench import Workbench


def prefix_tuning(
    backend: Workbench,
    row: ArmRow,
    *,
    steps: int = 30,
    batch_size: int = 8,
    learning_rate: float = 1e-2,
    tokens: int = 8,
) -> TrainedArm:
    """Prefix tuning, by PEFT.

    Args:
        backend: the workbench.
        row: of the table of arms.
        steps: optimizer steps.
        batch_size: references a step.
        learning_rate: at first; falls linearly to 0.
        tokens: virtual tokens (the paper names no number).
    """
    return TrainedArm(
        backend,
        row,
        {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "tokens": tokens},
        Prefix(backend, tokens),
    )


class Prefix(VirtualTokens):
    """Keys and values."""

    def config(self) -> Any:
        """Shapes are read off the model's cache, since heads and widths have other names in each family."""
        heads, width = self._cache(torch.zeros(1, 1, dtype=torch.long, device=self.model.device))[0][0].shape[
            1::2
        ]
        return peft_package("prefix_tuning").PrefixTuningConfig(
            num_virtual_tokens=self.tokens,
            task_type="CAUSAL_LM",
            num_layers=self.model.config.num_hidden_layers,
            token_dim=heads * width,
            num_attention_heads=heads,
        )

    @torch.no_grad()
    def start(self, ids: torch.Tensor) -> torch.Tensor:
        """Keys and values that the model itself computes for the instruction.

        [tokens, layers * 2 * heads * width].
        """
        parts = [half[0].transpose(0, 1).flatten(1) for layer in self._cache(ids) for half in layer]
        return torch.cat(parts, dim=1).float()

    @torch.no_grad()
    def _cache(self, ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(keys, values) by layer, each [1, heads, tokens, width]."""
        cache = self.model(input_ids=ids, use_cache=True).past_key_values
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        if any(keys.shape != values.shape for keys, values in layers):
            raise UserError(
                "arm prefix_tuning needs keys and values of one shape, which this model family lacks: leave it out"
            )
        if any(keys.shape[2] != ids.shape[1] for keys, _ in layers):
            raise UserError(
                f"arm_options.prefix_tuning.tokens={self.tokens}: more than this model's sliding window holds; use fewer"
            )
        return layers
