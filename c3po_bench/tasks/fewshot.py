"""Few-shot examples that are the same for every question of a task, whatever the order, shard or limit.

lm-eval's own sampler draws anew for each document from one stream, so a prompt depends on how many were built
before it.
"""

import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

from lm_eval.api.samplers import ContextSampler

from c3po_bench.errors import UserError


class FixedShots(ContextSampler):
    """The first `n` of a seeded shuffle of the pool, passing over the evaluated document itself."""

    seed = 0
    _order: list[int] | None = None

    def sample(
        self,
        n: int,
        eval_doc: dict[str, Any] | None = None,
        df: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """The examples for one document; `UserError` if the pool is too small."""
        pool = df or self.df
        if self._order is None or len(self._order) != len(pool):
            self._order = random.Random(self.seed).sample(range(len(pool)), len(pool))
        others = (pool[index] for index in self._order if eval_doc is None or pool[index] != eval_doc)
        shots = list(islice(others, n))
        if len(shots) < n:
            raise UserError(f"scoring.num_fewshot={n}: this task has only {len(shots)} examples to show")
        return shots


def fixed_shots(seed: int) -> type[FixedShots]:
    """A sampler class for `seed`, for the `sampler` of a task's `fewshot_config`."""
    return type("FixedShots", (FixedShots,), {"seed": seed})
