"""What all baselines have in common: identity, settings, cost, and the references that they may use."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from c3po_bench.errors import UserError
from c3po_bench.rewiring.meter import Meter, peak_memory

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from c3po_bench.rewiring.backend import RewiringBackend
    from c3po_bench.tasks.items import Item

CHUNK = 1024


class BaselineArm:
    """An arm that answers by other means than rewiring.

    Args:
        backend: the workbench of the experiment: model, tokenizer, engine, references.
        name: of the arm.
        options: its options, complete.
    """

    reads_labels = False

    def __init__(self, backend: RewiringBackend, name: str, options: dict[str, Any]):
        self.backend, self.name, self.options = backend, name, options
        self.meter = Meter()

    def identity(self) -> dict[str, Any]:
        """Options, references and what they are compared by."""
        cfg = self.backend.cfg
        return {
            "engine": cfg.engine,
            "options": self.options,
            "seed": cfg.seed,
            **self.backend.reference_identity,
            "max_similarity": cfg.method.neighbors.max_similarity,
        }

    def settings(self) -> dict[str, Any]:
        """Columns of the ablation table."""
        found = {"reference_size": self.backend.cfg.references.limit}
        return found | {f"option_{key}": value for key, value in self.options.items()}

    def lm(self) -> LM:
        """What answers; each baseline has its own."""
        raise UserError(f"arm {self.name} can't answer")

    def cost(self) -> dict[str, Any]:
        """Phases of this process so far."""
        return {
            "phases": self.meter.phases(),
            "peak_memory_bytes": peak_memory(),
            "credited_seconds": self.meter.cached_seconds,
        }

    def report(self) -> dict[str, Any]:
        """Counts of the references and notes on where they came from."""
        notes = [*self.backend.reference_items[1], *self.meter.notes]
        return {"counts": self.backend.bank.counts, "curves": {}, "notes": notes}


class TrainingSet:
    """The reference items that a trained baseline may see: none that is, or nearly is, a test item.

    All of them, also those that the model answers wrongly: the paper trains its baselines on the whole set.
    """

    def __init__(self, backend: RewiringBackend):
        self.backend = backend
        self.counts: dict[str, int] = {}

    @cached_property
    def items(self) -> list[Item]:
        """The items, in order; fills `counts`."""
        backend = self.backend
        items, _ = backend.reference_items
        asked = list(dict.fromkeys(backend.test_questions))
        hashes = backend.test_hashes
        distinct = [item for item in items if item.doc_hash not in hashes]
        near = self._nearest(distinct, asked) > backend.cfg.method.neighbors.max_similarity
        kept = [item for item, copy in zip(distinct, near, strict=True) if not copy]
        self.counts = {
            "references": len(kept),
            "references_read": len(items),
            "references_leaked": len(items) - len(distinct),
            "dropped_duplicates": int(near.sum()),
        }
        if not kept:
            raise UserError(
                "no reference item is left to train on: raise references.limit or name other references.tasks"
            )
        return kept

    def _nearest(self, items: list[Item], asked: list[str]) -> np.ndarray:
        """Similarity of each item to the test question most like it, [items]."""
        ours = self.backend.embedder([item.question for item in items])
        theirs = self.backend.embedder(asked)
        return np.concatenate(
            [(ours[i : i + CHUNK] @ theirs.T).max(axis=1) for i in range(0, len(ours), CHUNK)]
        )


def peft_package(arm: str) -> Any:
    """PEFT, which is not among the core dependencies."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise UserError(
            f"arm {arm} needs the package peft: pip install 'c3po-bench[feedback]', or leave the arm out"
        ) from error
