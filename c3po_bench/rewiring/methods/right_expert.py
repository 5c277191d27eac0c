"""The known ceiling of `model=specialists`: the expert that was trained on the item's skill, and no other."""

from c3po_bench.errors import UserError
from c3po_bench.models.embedded.specialists import DOMAINS, EXPERTS, ROUTED
from c3po_bench.rewiring.methods import Queries, Solution
from c3po_bench.tasks.skills.generate import skill_of


def right_expert(queries: Queries) -> Solution:
    """All weight on the skill's own expert, in every critical layer.

    `model=specialists` on tasks of the group `skills` only. Raises `UserError` elsewhere.
    """
    if not set(queries.layers) <= set(ROUTED) or queries.original.shape[-1] != EXPERTS:
        raise UserError("arm right_expert: only model=specialists has an expert for each skill; leave it out")
    skills = [skill_of(text) for text in queries.texts]
    if None in skills:
        text = queries.texts[skills.index(None)]
        raise UserError(
            f"arm right_expert: {text[:60]!r} is no item of the group skills; use +experiment=specialists"
        )
    pathway = queries.original.new_zeros(queries.original.shape)
    for row, skill in enumerate(skills):
        pathway[row, :, DOMAINS.index(skill)] = 1.0
    return Solution(pathway)
