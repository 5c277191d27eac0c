"""The definition: every score is a whole forward pass of the model with its routing overridden.

Notation of arXiv 2504.07964 section 3: f(x, w) is `NaiveBatch.score`, w the mixture made from a pathway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from c3po_bench.rewiring.engines.base import Batch, Engine, share_flops
from c3po_bench.rewiring.engines.batching import pad_right
from c3po_bench.rewiring.hook import override, record_routing
from c3po_bench.rewiring.pathway import Mixture
from c3po_bench.rewiring.states import Prompt, State


class NaiveEngine(Engine):
    """Whole forward passes; keeps nothing of a prompt but its original pathway."""

    @torch.no_grad()
    def read_new(self, prompts: list[Prompt]) -> list[State]:
        """One forward over the contexts, recording the routing of the last token."""
        ids, lengths = pad_right([p.context for p in prompts], self.device)
        with record_routing(self.family, self.model, list(self.family.layers), self.device) as routed:
            self.model(input_ids=ids, attention_mask=_mask(ids, lengths), use_cache=False, logits_to_keep=1)
        last = torch.arange(len(prompts), device=self.device) * ids.shape[1] + lengths - 1
        original = torch.stack(
            [self.family.pathway(routed[i][last]) for i in self.family.layers], dim=1
        ).cpu()
        rows, width = ids.shape
        cost = self.shape.forward(self.shape.span, rows, width, width) + self.shape.logits(rows)
        return share_flops([State(prompt, original[i]) for i, prompt in enumerate(prompts)], cost)

    def batch(self, states: list[State], rows: list[tuple[int, int]]) -> NaiveBatch:
        """Rows as whole token sequences."""
        return NaiveBatch(
            self, [(states[s].prompt.context, states[s].prompt.continuations[c]) for s, c in rows]
        )


class NaiveBatch(Batch):
    """Sequences context + continuation[:-1], right-padded."""

    def __init__(self, engine: NaiveEngine, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]):
        self.engine = engine
        self.ids, self.total = pad_right([c + a[:-1] for c, a in pairs], engine.device)
        self.context = torch.tensor([len(c) for c, _ in pairs], device=engine.device)
        self.lengths = torch.tensor([len(a) for _, a in pairs], device=engine.device)
        self.targets = torch.tensor([t for _, a in pairs for t in a], device=engine.device)
        self.rows = len(pairs)
        self.row_of_target = torch.repeat_interleave(
            torch.arange(self.rows, device=engine.device), self.lengths
        )
        first = torch.cumsum(self.lengths, 0) - self.lengths
        step = torch.arange(len(self.targets), device=engine.device) - first[self.row_of_target]
        self.position_of_target = (self.context - 1)[self.row_of_target] + step

    def score(
        self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """f(x, w): one forward over all rows."""
        engine, (rows, width) = self.engine, self.ids.shape
        inputs = {"input_ids": self.ids, "attention_mask": _mask(self.ids, self.total), "use_cache": False}
        everywhere = (engine.shape.span, (rows, width, width), rows * width)
        if mixture is None:
            with torch.no_grad():
                logits = engine.model(**inputs).logits
            self.flops += engine.shape.score(*everywhere)
        else:
            assert owner is not None
            row, offset = self._overridden()
            weights, indices = mixture.weights[owner[row]], mixture.indices[owner[row]]
            swapped = Mixture(weights, indices)
            with override(engine.family, engine.model, engine.layers, row * width + offset, swapped):
                logits = engine.model(**inputs).logits
            more = len(row) * (weights.shape[-1] - engine.family.top_k)
            lowest = engine.layers[0] + 1 if weights.requires_grad else None
            self.flops += engine.shape.score(*everywhere, engine.layers, more, lowest)
        return _continuation_scores(
            logits.to(engine.device)[self.row_of_target, self.position_of_target],
            self.targets,
            self.row_of_target,
            self.rows,
        )

    def _overridden(self) -> tuple[Tensor, Tensor]:
        """Row and position of every overridden token: the last of the context, or the answer's tokens too."""
        if self.engine.position == "last":
            return torch.arange(self.rows, device=self.ids.device), self.context - 1
        return self.row_of_target, self.position_of_target


def _mask(ids: Tensor, lengths: Tensor) -> Tensor:
    return (torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()


def _continuation_scores(
    logits: Tensor, targets: Tensor, row_of_target: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Sum target log-probabilities by row: logits [targets, vocabulary] -> ([rows], all-greedy [rows])."""
    logits = logits.float()
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)
    total = chosen.new_zeros(rows).index_add(0, row_of_target, chosen)
    with torch.no_grad():
        wrong = (logits.argmax(dim=-1) != targets).float()
        greedy = wrong.new_zeros(rows).index_add(0, row_of_target, wrong) == 0
    return total, greedy
