"""The losses that a pathway is sought by: of the neighbors (paper eq. 3), and of an item's own label (the oracle)."""

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from c3po_bench.rewiring.bank import ReferenceBank
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines.base import Engine, State
from c3po_bench.rewiring.neighbors import Neighborhood, item_seed
from c3po_bench.rewiring.pathway import Mixer
from c3po_bench.rewiring.tokens import TokenizedItem
from c3po_bench.runtime.meter import Meter

Loss = Callable[["Tensor"], "Tensor"]
"""Pathways [queries, layers, experts] -> loss [queries], differentiable."""


def no_loss(pathway: Tensor) -> Tensor:
    """Zero for every query, with a gradient of zero: where there is no neighbor, nothing moves."""
    return pathway.flatten(1).sum(-1) * 0.0


class Losses:
    """Losses of pathways [queries, layers, experts] in the place of `own`, within the experts of `core`."""

    def __init__(
        self, engine: Engine, mixer: Mixer, method: MethodConfig, meter: Meter, own: Tensor, core: Tensor
    ):
        self.engine, self.mixer, self.method, self.meter = engine, mixer, method, meter
        self.own, self.core = own, core

    def of_neighbors(self, bank: ReferenceBank, near: Neighborhood, shuffled: list[int] | None) -> Loss:
        """L(w) = sum_i K_i l(f(x_i, w), y_i) / sum_i K_i: the test item's pathway in the neighbors' forwards (eq. 3).

        The neighbors are read at the first call, so a method without a loss costs nothing. `shuffled` are
        seeds of the queries by which the neighbors' labels are drawn at random; None for the true ones.
        """
        prepare = cache(partial(self._over_neighbors, bank, near, shuffled))
        return lambda pathway: prepare()(pathway)

    def _over_neighbors(self, bank: ReferenceBank, near: Neighborhood, shuffled: list[int] | None) -> Loss:
        """The loss with a term for each neighbor with weight."""
        found = zip(near.index.tolist(), near.weights.tolist(), strict=True)
        neighbors = [
            (q, i, w)
            for q, (index, weights) in enumerate(found)
            for i, w in zip(index, weights, strict=True)
            if w > 0
        ]
        if not neighbors:
            return no_loss
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
        return self._over_terms(
            states, list(enumerate(labels)), candidates, queries, weights / total[queries]
        )

    def of_items(self, items: Sequence[TokenizedItem], states: list[State], first: list[int]) -> Loss:
        """The oracle: L(w) = l(f(x, w), y) with the test item's true label.

        `first`: see `Rewirer._rewire`.
        """
        rights, candidates = [], []
        for i, item in enumerate(items):
            prompt, answer = item.gold_row
            rights.append((first[i] + prompt, (prompt, answer)))
            candidates.append([c for p, c in item.options if p == prompt])
        queries = torch.tensor([state for state, _ in rights], device=self.engine.device)
        ones = torch.ones_like(queries, dtype=torch.float32)
        return self._over_terms(states, rights, candidates, queries, ones)

    def _over_terms(
        self,
        states: list[State],
        rights: Sequence[tuple[int, tuple[int, int]]],
        candidates: Sequence[Sequence[int]],
        query_of: Tensor,
        weight: Tensor,
    ) -> Loss:
        """The weighted sum, by query, of terms: each is the loss of one labelled prompt, for one query.

        Args:
            states: of the prompts.
            rights: of each term its state, and the label in it.
            candidates: of each term the answers among which the right one is to be the likeliest, for
                `method.loss=choice`; otherwise the right answer is scored alone.
            query_of: the query whose pathway a term is computed with [terms].
            weight: of each term [terms].
        """
        rows, gold, term_of = [], [], []
        for n, (state, (_, right)) in enumerate(rights):
            chosen = [right] if self.method.loss == "nll" else list(candidates[n])
            gold.append(len(rows) + chosen.index(right))
            rows += [(state, c) for c in chosen]
            term_of += [n] * len(chosen)
        batch = self.engine.batch(states, rows)
        term = torch.tensor(term_of, device=self.engine.device)
        right_row = torch.tensor(gold, device=self.engine.device)

        def loss(pathway: Tensor) -> Tensor:
            mixture = self.mixer(pathway, self.own, self.core, self.method.mixing)
            before = batch.flops
            scores, _ = batch.score(mixture, query_of[term], greedy=False)
            self.meter.count("optimize", batch.flops - before)
            if self.method.loss == "nll":
                each = -scores[right_row] / batch.lengths[right_row]
            else:
                each = _cross_entropies(scores, term, right_row)
            return each.new_zeros(len(self.own)).index_add(0, query_of, each * weight)

        return loss


def _cross_entropies(scores: Tensor, term_of: Tensor, gold: Tensor) -> Tensor:
    """Cross-entropy of each term [terms] over its candidates, from the log-likelihoods of all rows [rows]."""
    peak = torch.full((len(gold),), float("-inf"), device=scores.device)
    peak = peak.scatter_reduce(0, term_of, scores.detach(), "amax")
    total = scores.new_zeros(len(gold)).index_add(0, term_of, (scores - peak[term_of]).exp())
    return total.log() + peak - scores[gold]
