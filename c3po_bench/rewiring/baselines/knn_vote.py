"""What the neighbors' answers alone would say: no model is asked.

A gain of rewiring should be more than this.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from c3po_bench.errors import UserError
from c3po_bench.rewiring.baselines.arm import BaselineArm
from c3po_bench.rewiring.baselines.retrieval import Retriever
from c3po_bench.rewiring.neighbors import item_seed
from c3po_bench.tasks.items import normalize

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from c3po_bench.rewiring.backend import RewiringBackend

FLOOR = 1e-6  # for the guess: it decides ties, and where nobody votes


def knn_vote(backend: RewiringBackend, *, k: int = 5) -> KnnVoteArm:
    """Each neighbor votes, with its kernel weight, for the choice that reads like its own right answer.

    Made for answers that are letters (`scoring.rule=letters`, MMLU): there it is the answer prior that
    rewiring could merely copy. Where answers are texts a vote needs the same words; an item without a vote is
    guessed by a draw of its own seed, and the count of such items is in the record (`silent`).

    Args:
        backend: the workbench.
        k: how many neighbors vote.
    """
    if k < 1:
        raise UserError(f"arm.knn_vote.k={k}: must be 1 or more")
    return KnnVoteArm(backend, "knn_vote", {"k": k})


class KnnVoteArm(BaselineArm):
    """See `knn_vote`."""

    def __init__(self, backend: RewiringBackend, name: str, options: dict[str, Any]):
        super().__init__(backend, name, options)
        self.silent = self.items = 0

    def identity(self) -> dict[str, Any]:
        """The kernel weighs the votes."""
        kernel = self.backend.cfg.method.kernel
        return super().identity() | {"kernel": [kernel.name, kernel.bandwidth, kernel.degree]}

    def lm(self) -> LM:
        """The ballot."""
        backend = self.backend
        retriever = Retriever(backend, self.options["k"], self.meter, backend.cfg.method.kernel)
        return KnnVoteLM(retriever, backend.bank.items, backend.cfg.seed)

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Count the items that no neighbor voted on."""
        self.items, self.silent = len(rows), sum(not any(row.get("votes", [0])) for row in rows)
        return rows, {}

    def report(self) -> dict[str, Any]:
        """References, and how many items were guessed."""
        found = super().report()
        found["counts"] = {**found["counts"], "silent": self.silent}
        if self.silent:
            note = f"knn_vote: {self.silent} of {self.items} items had no neighbor with one of their answers and were guessed"
            found["notes"] = [*found["notes"], note]
        return found


class KnnVoteLM(LM):
    """Log vote shares, relative to the largest, in the place of log-likelihoods."""

    def __init__(self, retriever: Retriever, items: list[Any], seed: int):
        super().__init__()
        self.retriever, self.seed = retriever, seed
        self.answers = [normalize(item.pairs[item.gold][1]) for item in items]
        self._details: dict[tuple[str, int], dict[str, Any]] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """One value a choice; the largest wins."""
        groups: dict[tuple[str, int], list[int]] = {}
        for position, request in enumerate(requests):
            groups.setdefault((str(request.task_name), int(request.doc_id or 0)), []).append(position)
        out: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        docs = [requests[positions[0]].doc for positions in groups.values()]
        near = self.retriever([str(doc["question"]) for doc in docs])
        for (key, positions), doc, (places, weights, details) in zip(groups.items(), docs, near, strict=True):
            asked: list[Any] = [requests[position].args for position in positions]
            choices = [normalize(str(arguments[1])) for arguments in asked]
            votes = [0.0] * len(choices)
            for place, weight in zip(places, weights, strict=True):
                if (
                    choices.count(self.answers[place]) == 1
                ):  # the same text everywhere (WinoGrande) tells nothing
                    votes[choices.index(self.answers[place])] += weight
            votes = [vote / (sum(votes) or 1.0) for vote in votes]
            self._details[key] = {**details, "votes": [round(vote, 6) for vote in votes]}
            guess = item_seed(self.seed, "knn_vote", doc["key"]) % len(choices)
            shares = [vote + (FLOOR if n == guess else 0.0) for n, vote in enumerate(votes)]
            for n, position in enumerate(positions):  # the largest is 0, which no length makes less
                out[position] = (math.log(shares[n] / max(shares) + 1e-9), shares[n] == max(shares))
        return out

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """There is nothing to vote on."""
        raise UserError("arm knn_vote chooses among given answers: leave it out where the answer is written")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """There is nothing to vote on."""
        raise UserError("arm knn_vote chooses among given answers: leave it out for whole texts")

    def pop_details(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Neighbors and votes of each item."""
        details, self._details = self._details, {}
        return details
