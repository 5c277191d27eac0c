"""What all baselines have in common: identity, settings, cost, and the references that they may use."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from c3po_bench.contract import Arm, ArmRow, Cost, Item, Report
from c3po_bench.errors import UserError
from c3po_bench.rewiring.bank import to_tensor
from c3po_bench.rewiring.config import KernelConfig
from c3po_bench.rewiring.neighbors import Neighborhood, nearest
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.meter import Meter
from c3po_bench.tasks.duplicates import near_duplicates, question_hash

CHUNK = 1024


class BaselineArm(Arm):
    """An arm that answers by other means than rewiring.

    Args:
        backend: the workbench of the experiment: model, tokenizer, engine, references.
        row: of the table of arms.
        options: its options, complete.
    """

    def __init__(self, backend: Workbench, row: ArmRow, options: dict[str, Any]):
        self.backend, self.row, self.options = backend, row, options
        self.seed = backend.cfg.seed  # of the training, where the arm trains: `seeds` sets others
        self.meter = Meter()
        self.cut = 0

    cut_of = "their beginning"
    """What prompts lose that are longer than the model reads behind what this arm puts before them."""

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """Count the prompts that were cut by what the arm puts before them."""
        self.cut = sum("prompt_tokens_cut" in row for row in rows)
        return rows, {}

    def cut_notes(self) -> list[str]:
        """The note that prompts were cut, where some were."""
        if not self.cut:
            return []
        return [
            f"{self.row.name}: {self.cut} prompts are longer than the model reads, and lose {self.cut_of}"
        ]

    def identity(self) -> dict[str, Any]:
        """Options, references and what they are compared by."""
        cfg = self.backend.cfg
        return {
            "engine": cfg.engine,
            "options": self.options,
            "seed": self.seed,
            **self.backend.reference_identity,
            "max_similarity": cfg.method.neighbors.max_similarity,
        }

    def settings(self) -> dict[str, Any]:
        """Columns of the ablation table."""
        return {
            "reference_size": self.backend.cfg.references.limit,
            **{f"option_{key}": value for key, value in self.options.items()},
        }

    def cost(self) -> Cost:
        """Phases of this process so far."""
        return self.meter.cost()

    def report(self) -> Report:
        """Counts of the references and notes on where they came from."""
        notes = [*self.backend.reference_items[1], *self.meter.notes, *self.cut_notes()]
        return Report(self.backend.bank.counts, {}, notes)


def training_set(backend: Workbench) -> tuple[list[Item], dict[str, int]]:
    """The reference items that a trained baseline may see, in order, and counts.

    None that is, or nearly is, a test item. But also those that the model answers wrongly: the paper trains
    its baselines on the whole set.

    Raises:
        UserError: if none is left.
    """
    items, _ = backend.reference_items
    distinct = [item for item in items if question_hash(item.question) not in backend.test_hashes]
    near = near_duplicates(_likeness(backend, distinct), backend.cfg.method.neighbors.max_similarity)
    kept = [item for item, copy in zip(distinct, near, strict=True) if not copy]
    if not kept:
        raise UserError(
            "no reference item is left to train on: raise references.limit or name other references.tasks"
        )
    return kept, {
        "references": len(kept),
        "references_read": len(items),
        "references_leaked": len(items) - len(distinct),
        "dropped_duplicates": int(near.sum()),
    }


def _likeness(backend: Workbench, items: list[Item]) -> np.ndarray:
    """Similarity of each item to the test question most like it, [items]."""
    ours = backend.embedder([item.question for item in items])
    theirs = backend.embedder(list(dict.fromkeys(backend.test_questions)))
    return np.concatenate([(ours[i : i + CHUNK] @ theirs.T).max(axis=1) for i in range(0, len(ours), CHUNK)])


class Retriever:
    """Finds the `k` references nearest to a question, nearest first, without near-duplicates.

    `kernel` weighs them.
    """

    def __init__(self, backend: Workbench, k: int, meter: Meter, kernel: KernelConfig | None = None):
        method = backend.cfg.method
        self.backend, self.meter = backend, meter
        self.method = replace(
            method, neighbors=replace(method.neighbors, kind="knn", k=k), kernel=kernel or KernelConfig()
        )
        self.bank = to_tensor(backend.bank.embeddings, torch.device("cpu"))

    def __call__(self, questions: Sequence[str]) -> Neighborhood:
        """The neighbors of each question."""
        vectors = torch.from_numpy(self.backend.question_embedder(questions, self.meter))
        with self.meter.phase("retrieve"):
            self.meter.count("retrieve", 2 * len(vectors) * self.bank.numel())
            return nearest(self.method, vectors, self.bank)


def peft_package(arm: str) -> Any:
    """PEFT, which is not among the core dependencies."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise UserError(
            f"arm {arm} needs the package peft: pip install 'c3po-bench[feedback]', or leave the arm out"
        ) from error
