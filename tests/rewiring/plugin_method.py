"""A surrogate from outside the package, as a user would write it (named in `plugins`)."""

from __future__ import annotations

from c3po_bench.rewiring.arms import method
from c3po_bench.rewiring.methods import Queries, Solution


@method("nearest_pathway", controls=("random_neighbors",), passes=0.5)
def nearest_pathway(queries: Queries, *, share: float = 0.5) -> Solution:
    """w <- (1 - s) w + s w_1, w_1 being the pathway of the nearest neighbor alone.

    Args:
        queries: its neighborhood is used.
        share: s.
    """
    assert queries.neighborhood is not None
    nearest = queries.references[queries.neighborhood.index[:, 0]]
    return Solution((1 - share) * queries.original + share * nearest)
