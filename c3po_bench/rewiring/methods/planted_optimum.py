"""The ceiling of the planted testbed: the pathway put there, known from the question's topic words."""

from c3po_bench.errors import UserError
from c3po_bench.models.embedded.planted_world import pathway_of
from c3po_bench.rewiring.methods import Queries, Solution


def planted_optimum(queries: Queries) -> Solution:
    """The planted pathway in place of the model's own.

    `model=planted` with layers last:3 or fewer of them only.
    """
    try:
        rows = [pathway_of(text, queries.layers) for text in queries.texts]
    except ValueError as error:
        raise UserError(f"arm planted_optimum: {error}; use +experiment=planted") from error
    return Solution(queries.original.new_tensor(rows))
