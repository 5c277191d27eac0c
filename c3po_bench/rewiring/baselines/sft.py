"""Supervised fine-tuning: LoRA on the references (what a reviewer of the paper asked to see beside it)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from c3po_bench.contract import ArmRow
from c3po_bench.models.targets import AllLinear, check_adapted, find_targets
from c3po_bench.rewiring.baselines.arm import peft_package
from c3po_bench.rewiring.baselines.training import Answering, Opened, TrainedArm, Weights, engine_answering
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.meter import Meter

OUTSIDE = AllLinear()


def sft(
    backend: Workbench,
    row: ArmRow,
    *,
    steps: int = 30,
    batch_size: int = 8,
    learning_rate: float = 2e-4,
    rank: int = 8,
) -> TrainedArm:
    """LoRA on every linear map outside the experts (attention, shared experts), by PEFT.

    Args:
        backend: the workbench.
        row: of the table of arms.
        steps: optimizer steps.
        batch_size: references a step.
        learning_rate: at first; falls linearly to 0.
        rank: of the adapters; their scale is 2.
    """
    return TrainedArm(
        backend,
        row,
        {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "rank": rank},
        Lora(backend, rank),
        adapts="outside the experts",  # once the fused experts of some models, too
    )


class Lora:
    """PEFT's LoRA, put into the shared model and taken out again."""

    def __init__(self, backend: Workbench, rank: int):
        self.backend, self.model, self.rank = backend, backend.loaded.model, rank

    @contextmanager
    def inserted(self, weights: Weights | None = None, seed: int = 0) -> Iterator[Any]:
        """The PEFT model, within the block; the base model's modules are back in place afterwards."""
        peft = peft_package("sft")
        # PEFT's own "all-linear" also takes routers and fused experts of OLMoE
        targets = find_targets(self.model, OUTSIDE)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            target_modules=list(targets.modules),
            target_parameters=list(targets.parameters) or None,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it offers to adapt fused experts, which we leave alone
            torch.manual_seed(seed)
            peft_model: Any = check_adapted(peft.get_peft_model(self.model, config), OUTSIDE)
        try:
            if weights is not None:
                own = trainable(peft_model)
                for name, value in weights.items():
                    own[name].data.copy_(value)
            yield peft_model.eval()
        finally:
            peft_model.unload()
            with suppress(AttributeError):
                del self.model.peft_config
            self.model.requires_grad_(False)

    @contextmanager
    def opened(self, seed: int) -> Iterator[Opened]:
        """Fresh adapters."""
        with self.inserted(seed=seed) as model:
            yield Opened(lambda **inputs: model(**inputs, use_cache=False), trainable(model))

    def answering(self, weights: Weights, meter: Meter) -> Answering:
        """By the base model with the adapters in."""
        return engine_answering(self.backend, meter, lambda: self.inserted(weights))


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that move."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
