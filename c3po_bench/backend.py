"""What the harness knows of a backend: it builds arms, and an arm is one way of answering."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from c3po_bench.errors import unknown

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from c3po_bench.config import Config
    from c3po_bench.tasks.taskset import TaskSet

BACKENDS = {
    "rewiring": "c3po_bench.rewiring.backend:RewiringBackend",
    "feedback": "c3po_bench.feedback.backend:FeedbackBackend",
    "both": "c3po_bench.both:BothBackend",
}


class Arm(Protocol):
    """One way of answering.

    `reads_labels` is true of the oracle alone: the harness gives no other arm any label. Optional:
    `finish(rows)` post-processes sample rows after scoring and returns (rows, extra metrics by task).
    """

    name: str
    reads_labels: bool

    def identity(self) -> dict[str, Any]:
        """The part of the config that can change this arm's numbers: it names the run folder."""
        ...

    def settings(self) -> dict[str, Any]:
        """Flat columns for the ablation table."""
        ...

    def lm(self) -> LM:
        """What lm-eval scores. May offer `pop_details() -> {(task, doc_id): dict}` for the sample rows."""
        ...

    def cost(self) -> dict[str, Any]:
        """{"phases": {name: {"seconds", "flops"}}, "peak_memory_bytes"} so far.

        `credited_seconds`, optional, is work that an earlier arm did for this one: it is added to the
            clock's. Work that all arms share counts negative.
        """
        ...

    def report(self) -> dict[str, Any]:
        """{"counts", "curves", "notes"} for the result."""
        ...


class Backend(Protocol):
    """Builds the arms of an experiment."""

    model_hash: str

    def __init__(self, cfg: Config, tasks: TaskSet): ...

    @staticmethod
    def check(cfg: Config) -> None:
        """Raise `UserError` for what can be seen to be wrong before anything is loaded."""
        ...

    def arms(self) -> Iterator[Arm]:
        """The arms that `cfg.arms` names, base first."""
        ...


def load_backend(name: str) -> type[Backend]:
    """The backend class called `name`."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    module, attribute = BACKENDS[name].split(":")
    return getattr(importlib.import_module(module), attribute)
