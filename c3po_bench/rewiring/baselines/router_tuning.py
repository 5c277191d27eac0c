"""Router tuning: the routers of the critical layers trained on the references (a baseline of the authors' own RoMA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from c3po_bench.contract import ArmRow
from c3po_bench.models.routing import family_of
from c3po_bench.rewiring.baselines.training import (
    Answering,
    Opened,
    TrainedArm,
    Weights,
    engine_answering,
    swapped,
)
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.meter import Meter


def router_tuning(
    backend: Workbench,
    row: ArmRow,
    *,
    steps: int = 30,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
) -> RouterTuningArm:
    """One static change for all items and all tokens, where rewiring finds one for each item's last token.

    Args:
        backend: the workbench.
        row: of the table of arms.
        steps: optimizer steps.
        batch_size: references a step.
        learning_rate: at first; falls linearly to 0.
    """
    return RouterTuningArm(
        backend,
        row,
        {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate},
        Routers(backend),
        layers=backend.layers,
    )


class RouterTuningArm(TrainedArm):
    """See `router_tuning`."""

    def settings(self) -> dict[str, Any]:
        """With the layers' column."""
        return {"layers": self.backend.cfg.method.layers, **super().settings()}


class Routers:
    """All parameters of the critical layers' routers, in float32 while they are trained."""

    def __init__(self, backend: Workbench):
        self.backend, self.model = backend, backend.loaded.model
        family = family_of(self.model)
        routers = [family.router_of(self.model, layer) for layer in backend.layers]
        mine = {id(p) for router in routers for p in router.parameters()}
        self.names = [name for name, p in self.model.named_parameters() if id(p) in mine]

    @contextmanager
    def opened(self, seed: int) -> Iterator[Opened]:
        """Copies of the routers' weights, put in for each call."""
        model = self.model
        frozen = dict(model.named_parameters())
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        parameters = {name: torch.nn.Parameter(frozen[name].detach().float().clone()) for name in self.names}

        def call(**inputs: Any) -> Any:
            typed = {name: p.to(frozen[name].dtype) for name, p in parameters.items()}
            return torch.func.functional_call(model, typed, (), {**inputs, "use_cache": False})

        yield Opened(call, parameters)

    def answering(self, weights: Weights, meter: Meter) -> Answering:
        """By the base model with the trained routers in the place of its own."""
        return engine_answering(self.backend, meter, lambda: swapped(self.model, weights))
