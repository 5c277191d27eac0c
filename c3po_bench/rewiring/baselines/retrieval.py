"""Neighbors of test questions for baselines: the same embedder, filter and bank as the rewirings use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.rewiring.bank import to_tensor
from c3po_bench.rewiring.config import KernelConfig
from c3po_bench.rewiring.neighbors import nearest

if TYPE_CHECKING:
    from c3po_bench.rewiring.backend import RewiringBackend
    from c3po_bench.rewiring.meter import Meter


class Retriever:
    """Finds the `k` references nearest to a question, nearest first, without near-duplicates.

    `kernel` weighs them.
    """

    def __init__(self, backend: RewiringBackend, k: int, meter: Meter, kernel: KernelConfig | None = None):
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
