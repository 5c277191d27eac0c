"""The baseline without references: the original pathway sharpened or flattened by a temperature."""

from c3po_bench.models.families import to_logits, to_score
from c3po_bench.rewiring.methods import Queries, Solution


def routing_temperature(queries: Queries, *, temperature: float = 0.5) -> Solution:
    """softmax(log w / temperature) in the critical layers, the same for every item.

    Where scores are sigmoids: sigmoid(logit w / temperature).
    """
    return Solution(to_score(to_logits(queries.original, queries.score) / temperature, queries.score))
