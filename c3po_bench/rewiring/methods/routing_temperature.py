"""The baseline without references: the original pathway sharpened or flattened by a temperature."""

from c3po_bench.rewiring.methods import Queries, Solution


def routing_temperature(queries: Queries, *, temperature: float = 0.5) -> Solution:
    """softmax(log w / temperature) in the critical layers, the same for every item."""
    return Solution((queries.original.clamp_min(1e-9).log() / temperature).softmax(dim=-1))
