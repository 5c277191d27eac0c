"""Soft prompt: trained embeddings before every prompt, the base frozen (the paper's soft-prompt row, Table 1)."""

from typing import Any

import torch

from c3po_bench.contract import ArmRow
from c3po_bench.rewiring.baselines.arm import peft_package
from c3po_bench.rewiring.baselines.training import TrainedArm
from c3po_bench.rewiring.baselines.virtual_tokens import VirtualTokens
from c3po_bench.rewiring.workbench import Workbench


def soft_prompt(
    backend: Workbench,
    row: ArmRow,
    *,
    steps: int = 30,
    batch_size: int = 8,
    learning_rate: float = 1e-2,
    tokens: int = 8,
) -> TrainedArm:
    """Prompt tuning, by PEFT.

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
        SoftPrompt(backend, tokens),
    )


class SoftPrompt(VirtualTokens):
    """Embeddings."""

    def config(self) -> Any:
        """Starts anywhere: `start` is put in at once."""
        return peft_package("soft_prompt").PromptTuningConfig(
            num_virtual_tokens=self.tokens, task_type="CAUSAL_LM"
        )

    @torch.no_grad()
    def start(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of the instruction."""
        return self.model.get_input_embeddings()(ids)[0].float()
