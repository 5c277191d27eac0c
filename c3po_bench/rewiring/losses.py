"""The losses that a pathway is sought by: of the neighbors (paper eq. 3), and of an item's own label (the oracle)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from c3po_bench.rewiring.bank import ReferenceBank
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines.base import Batch, Engine, State
from c3po_bench.rewiring.neighbors import Neighborhood, item_seed
from c3po_bench.rewiring.pathway import Mixer, Mixture
from c3po_bench.rewiring.tokens import TokenizedItem
from c3po_bench.runtime.meter import Meter

Loss = Callable[["Tensor"], "Tensor"]
"""Pathways [queries, layers, experts] -> loss [queries], differentiable."""


def no_loss(pathway: Tensor) -> Tensor:
    """Zero for every query, with a gradient of zero: where there is no neighbor, nothing moves."""
    return pathway.flatten(1).sum(-1) * 0.0


@dataclass(frozen=True)
class _Terms:
    """The terms of a loss over scored rows: each is the loss of one labelled prompt, on account of one query.

    batch: the rows to score. term_of: the term of each row [rows]. gold: the row of each term's right answer
    [terms]. query_of: the query whose pathway a term is computed with [terms]. weight: of each term [terms].
    """

    batch: Batch
    term_of: Tensor
    gold: Tensor
    query_of: Tensor
    weight: Tensor


class Losses:
    """Losses of pathways [queries, layers, experts] in the place of `own`, within the experts of `core`."""

    def __init__(
        self, engine: Engine, mixer: Mixer, method: MethodConfig, meter: Meter, own: Tensor, core: Tensor
    ):
        self.engine, self.mixer, self.method, self.meter = engine, mixer, method, meter
        self.own, self.core = own, core

    def of_neighbors(self, bank: ReferenceBank, near: Neighborhood, shuffled: list[int] | None) -> Loss:
        """L(w) = sum_i K_i l(f(x_i, w), y_i) / sum_i K_i: the test item's pathway in the neighbors' forwards (eq. 3).

        The neighbors are read at the first call, so a method without a loss costs nothing. `shuffled` are seeds
        of the queries by which the neighbors' labels are drawn at random; None for the true ones.
        """
        prepared: list[_Terms | None] = []

        def loss(pathway: Tensor) -> Tensor:
            if not prepared:
                prepared.append(self._neighbor_terms(bank, near, shuffled))
            return no_loss(pathway) if prepared[0] is None else self._sum(prepared[0], pathway)

        return loss

    def _neighbor_terms(
        self, bank: ReferenceBank, near: Neighborhood, shuffled: list[int] | None
    ) -> _Terms | None:
        """A term for each neighbor with weight; None where there is none."""
        found = zip(near.index.tolist(), near.weights.tolist(), strict=True)
        neighbors = [
            (q, i, w)
            for q, (index, weights) in enumerate(found)
            for i, w in zip(index, weights, strict=True)
            if w > 0
        ]
        if not neighbors:
            return None
        labels = []
        for query, reference, _ in neighbors:
            item = bank.items[reference]
            if shuffled is None:
                labels.append(item.gold_row)
            else:
                labels.append(item.options[item_seed(shuffled[query], reference) % len(item.options)])
        prompts = [bank.items[i].prompts[p] for (_, i, _), (p, _) in zip(neighbors, labels, strict=True)]
        # having the model read them is part of the one-off cost of the bank, not of the item
        states = self.engine.read(prompts, keep=True, groups=bank.groups, exclude=self.meter.exclude)
        device = self.engine.device
        queries = torch.tensor([q for q, _, _ in neighbors], device=device)
        weights = torch.tensor([w for _, _, w in neighbors], device=device)
        total = torch.zeros(len(self.own), device=device).index_add(0, queries, weights)
        candidates = [range(len(state.prompt.continuations)) for state in states]
        return self._terms(states, list(enumerate(labels)), candidates, queries, weights / total[queries])

    def of_items(self, items: Sequence[TokenizedItem], states: list[State], first: list[int]) -> Loss:
        """The oracle: L(w) = l(f(x, w), y) with the test item's true label. `first`: see `Rewirer._rewire`."""
        rights, candidates = [], []
        for i, item in enumerate(items):
            prompt, answer = item.gold_row
            rights.append((first[i] + prompt, (prompt, answer)))
            candidates.append([c for p, c in item.options if p == prompt])
        queries = torch.tensor([state for state, _ in rights], device=self.engine.device)
        terms = self._terms(
            states, rights, candidates, queries, torch.ones_like(queries, dtype=torch.float32)
        )
        return lambda pathway: self._sum(terms, pathway)

    def _terms(
        self,
        states: list[State],
        rights: Sequence[tuple[int, tuple[int, int]]],
        candidates: Sequence[Sequence[int]],
        queries: Tensor,
        weight: Tensor,
    ) -> _Terms:
        """Terms of (state, label) pairs: their right answers alone, or all `candidates` for `method.loss=choice`."""
        rows, gold, term_of = [], [], []
        for n, (state, (_, right)) in enumerate(rights):
            chosen = [right] if self.method.loss == "nll" else list(candidates[n])
            gold.append(len(rows) + chosen.index(right))
            rows += [(state, c) for c in chosen]
            term_of += [n] * len(chosen)
        device = self.engine.device
        batch = self.engine.batch(states, rows)
        return _Terms(
            batch, torch.tensor(term_of, device=device), torch.tensor(gold, device=device), queries, weight
        )

    def _sum(self, terms: _Terms, pathway: Tensor) -> Tensor:
        """Loss [queries]: the weighted sum of the terms of each query."""
        mixture = self.mixer(pathway, self.own, self.core, self.method.mixing)
        each = self._each(terms, mixture)
        return each.new_zeros(len(self.own)).index_add(0, terms.query_of, each * terms.weight)

    def _each(self, terms: _Terms, mixture: Mixture) -> Tensor:
        """Loss of each term [terms]: mean token NLL of the right answer, or cross-entropy over its candidates."""
        before = terms.batch.flops
        scores, _ = terms.batch.score(mixture, terms.query_of[terms.term_of], greedy=False)
        self.meter.count("optimize", terms.batch.flops - before)
        if self.method.loss == "nll":
            return -scores[terms.gold] / terms.batch.lengths[terms.gold]
        peak = torch.full((len(terms.gold),), float("-inf"), device=scores.device)
        peak = peak.scatter_reduce(0, terms.term_of, scores.detach(), "amax")
        total = scores.new_zeros(len(terms.gold))
        total = total.index_add(0, terms.term_of, (scores - peak[terms.term_of]).exp())
        return total.log() + peak - scores[terms.gold]
