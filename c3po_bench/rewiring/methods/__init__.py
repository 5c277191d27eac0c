"""Methods of rewiring: what stands in for the unknown label (paper section 3), one file each.

A method is a function `f(queries: Queries, *, option=default, ...) -> Solution`; its keyword options are its
config (`arm_options.NAME.option`). Adding one is a file of this folder and a row of `rewiring.arms`, or,
outside the package, a function decorated with `rewiring.arms.method` in a module named in `plugins`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.neighbors import Neighborhood


@dataclass(frozen=True)
class Queries:
    """What a surrogate is given: `queries` test prompts at once, each independent of the others.

    original: the model's own pathways, without rewiring, [queries, layers, experts].
    core: which experts may carry weight, boolean, same shape.
    neighborhood: neighbors of each query; None where the arm has none.
    references: pathways of the whole bank [references, layers, experts].
    loss: pathways [queries, layers, experts] -> surrogate loss [queries], differentiable (eq. 4's L).
    method: the shared options.
    seeds: one per query, for anything drawn.
    texts: the question of each query.
    layers: the critical decoder layers.
    score: what a pathway's rows are: softmax (each sums to one) or sigmoid (each score in [0, 1]).
    top_k: how many experts the model runs.
    descent: what NGD found for these very queries, where an arm before this one has solved it.
    """

    original: Tensor
    core: Tensor
    neighborhood: Neighborhood | None
    references: Tensor
    loss: Callable[[Tensor], Tensor]
    method: MethodConfig
    seeds: list[int]
    texts: list[str] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    score: str = "softmax"
    top_k: int = 2
    descent: Solution | None = None


@dataclass(frozen=True)
class Solution:
    """The new pathways [queries, layers, experts], and the loss by step [steps, queries] if there is one."""

    pathway: Tensor
    losses: Tensor | None = None
