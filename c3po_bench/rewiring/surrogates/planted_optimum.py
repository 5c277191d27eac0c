"""The ceiling of the planted testbed: the pathway put there, known from the question's topic words."""

from c3po_bench.errors import UserError
from c3po_bench.models.embedded.planted_world import pathway_of
from c3po_bench.rewiring.surrogates import Problem, Solution


def planted_optimum(problem: Problem) -> Solution:
    """The planted pathway in place of the model's own.

    `model=planted` with layers last:3 or fewer of them only.
    """
    try:
        rows = [pathway_of(text, problem.layers) for text in problem.texts]
    except ValueError as error:
        raise UserError(f"arm planted_optimum: {error}; use +experiment=planted") from error
    return Solution(problem.original.new_tensor(rows))
