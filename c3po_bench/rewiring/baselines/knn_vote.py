"""What the neighbors' answers alone would say: no model is asked.

A gain of rewiring should be more than this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from c3po_bench.contract import Answer, ArmRow, Item, Report
from c3po_bench.rewiring.baselines.arm import BaselineArm, Retriever
from c3po_bench.rewiring.neighbors import item_seed
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.tasks.duplicates import normalize

FLOOR = 1e-6  # for the guess: it decides ties, and where nobody votes


def knn_vote(backend: Workbench, row: ArmRow, *, k: int = 5) -> KnnVoteArm:
    """Each neighbor votes, with its kernel weight, for the choice that reads like its own right answer.

    Made for answers that are letters (`scoring.rule=letters`, MMLU): there it is the answer prior that
    rewiring could merely copy. Where answers are texts a vote needs the same words; an item without a vote is
    guessed by a draw of its own seed, and the count of such items is in the record (`silent`).

    Args:
        backend: the workbench.
        row: of the table of arms.
        k: how many neighbors vote.
    """
    return KnnVoteArm(backend, row, {"k": k})


class KnnVoteArm(BaselineArm):
    """Log vote shares, relative to the largest, in the place of log-likelihoods."""

    def __init__(self, backend: Workbench, row: ArmRow, options: dict[str, Any]):
        super().__init__(backend, row, options)
        self.silent = self.items = 0

    def identity(self) -> dict[str, Any]:
        """The kernel weighs the votes."""
        kernel = self.backend.cfg.method.kernel
        return super().identity() | {"kernel": [kernel.name, kernel.bandwidth, kernel.degree]}

    def prepare(self) -> None:
        """Read the references."""
        backend = self.backend
        self._retriever = Retriever(backend, self.options["k"], self.meter, backend.cfg.method.kernel)
        self._right = [
            normalize(entry.item.requests[entry.item.gold or 0][1]) for entry in backend.bank.items
        ]

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """One value an option; the largest wins.

        Requests that only a metric asks for are no options, and get 0.
        """
        answers = []
        near = self._retriever([item.question for item in items])
        for query, item in enumerate(items):
            options = [normalize(continuation) for _, continuation in item.options]
            votes = [0.0] * len(options)
            for place, weight in zip(near.index[query].tolist(), near.weights[query].tolist(), strict=True):
                if (
                    options.count(self._right[place]) == 1
                ):  # the same text everywhere (WinoGrande) tells nothing
                    votes[options.index(self._right[place])] += weight
            votes = [vote / (sum(votes) or 1.0) for vote in votes]
            guess = item_seed(self.backend.cfg.seed, "knn_vote", item.key) % len(options)
            shares = [vote + (FLOOR if n == guess else 0.0) for n, vote in enumerate(votes)]
            most = max(shares)  # its option gets 0, which no length makes less
            scores = [(math.log(share / most + 1e-9), share == most) for share in shares]
            scores += [(0.0, False)] * (len(item.requests) - len(options))
            details = self.backend.bank.details(near, query) | {"votes": [round(vote, 6) for vote in votes]}
            answers.append(Answer(scores=tuple(scores), details=details))
        return answers

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """Count the items that no neighbor voted on."""
        self.items, self.silent = len(rows), sum(not any(row.get("votes", [0])) for row in rows)
        return rows, {}

    def report(self) -> Report:
        """References, and how many items were guessed."""
        report = super().report()
        notes = [
            f"knn_vote: {self.silent} of {self.items} items had no neighbor with one of their answers and were guessed"
        ]
        return Report(
            {**report.counts, "silent": self.silent}, {}, report.notes + (notes if self.silent else [])
        )
