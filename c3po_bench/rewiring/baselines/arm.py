"""What all baselines have in common: identity, settings, cost, and the references that they may use."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from c3po_bench.contract import Answer, ArmRow, Cost, Item, Report
from c3po_bench.errors import UserError
from c3po_bench.rewiring.bank import to_tensor
from c3po_bench.rewiring.config import KernelConfig
from c3po_bench.rewiring.neighbors import nearest
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.meter import Meter
from c3po_bench.tasks.duplicates import near_duplicates, question_hash

CHUNK = 1024


class BaselineArm:
    """An arm that answers by other means than rewiring.

    Args:
        backend: the workbench of the experiment: model, tokenizer, engine, references.
        row: of the table of arms.
        options: its options, complete.
    """

    def __init__(self, backend: Workbench, row: ArmRow, options: dict[str, Any]):
        self.backend, self.row, self.options = backend, row, options
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

    def prepare(self) -> None:
        """Whatever comes before the first item."""

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Each baseline answers in its own way."""
        raise NotImplementedError

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """Nothing to add."""
        return rows, {}

    def cost(self) -> Cost:
        """Phases of this process so far."""
        return self.meter.cost()

    def report(self) -> Report:
        """Counts of the references and notes on where they came from."""
        return Report(self.backend.bank.counts, {}, [*self.backend.reference_items[1], *self.meter.notes])

    def close(self) -> None:
        """Nothing to give back."""


class TrainingSet:
    """The reference items that a trained baseline may see: none that is, or nearly is, a test item.

    All of them, also those that the model answers wrongly: the paper trains its baselines on the whole set.
    """

    def __init__(self, backend: Workbench):
        self.backend = backend
        self.counts: dict[str, int] = {}

    @cached_property
    def items(self) -> list[Item]:
        """The items, in order; fills `counts`."""
        backend = self.backend
        items, _ = backend.reference_items
        asked = list(dict.fromkeys(backend.test_questions))
        hashes = backend.test_hashes
        distinct = [item for item in items if question_hash(item.question) not in hashes]
        near = near_duplicates(self._nearest(distinct, asked), backend.cfg.method.neighbors.max_similarity)
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

    def __call__(self, questions: Sequence[str]) -> list[tuple[list[int], list[float], dict[str, Any]]]:
        """For each question: places in the bank, kernel weights, and what the record keeps."""
        vectors = torch.from_numpy(self.backend.question_embedder(questions, self.meter))
        with self.meter.phase("retrieve"):
            self.meter.count("retrieve", 2 * len(vectors) * self.bank.numel())
            near = nearest(self.method, vectors, self.bank)
        found = []
        for q in range(len(questions)):
            kept = [n for n, w in enumerate(near.weights[q].tolist()) if w > 0]
            places = [int(near.index[q, n]) for n in kept]
            details = {
                "neighbors": [
                    self.backend.bank.neighbor(place, float(near.similarity[q, n]))
                    for place, n in zip(places, kept, strict=True)
                ],
                "dropped_duplicates": int(near.dropped[q]),
            }
            found.append((places, [float(near.weights[q, n]) for n in kept], details))
        return found


def peft_package(arm: str) -> Any:
    """PEFT, which is not among the core dependencies."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise UserError(
            f"arm {arm} needs the package peft: pip install 'c3po-bench[feedback]', or leave the arm out"
        ) from error
