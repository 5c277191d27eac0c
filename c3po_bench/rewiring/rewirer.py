"""Answering questions under another pathway: neighbors, surrogate loss, surrogate, score."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.errors import UserError
from c3po_bench.rewiring.bank import ReferenceBank, to_tensor
from c3po_bench.rewiring.meter import Meter
from c3po_bench.rewiring.neighbors import Neighborhood, item_seed, nearest, random_draw
from c3po_bench.rewiring.pathway import Mixer, Mixture, core_experts
from c3po_bench.rewiring.surrogates import Problem, Solution

if TYPE_CHECKING:
    from torch import Tensor

    from c3po_bench.rewiring.config import MethodConfig
    from c3po_bench.rewiring.embedders import QuestionEmbedder
    from c3po_bench.rewiring.engines.base import Batch, Engine, State
    from c3po_bench.rewiring.questions import Question

Loss = Callable[["Tensor"], "Tensor"]
Descents = dict[tuple[int, ...], tuple[Solution, float, float]]
"""What `ngd` found for the queries with these seeds, and the seconds and FLOPs that it took."""


@dataclass
class Answer:
    """Log-likelihood and greediness of each row of a question, and what to keep for the record."""

    scores: list[tuple[float, bool]]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recipe:
    """How one arm rewires.

    neighborhood: embedding, random, none or self (the oracle).
    labels: true or shuffled.
    descent: kept (for arms that would repeat this one's solutions), wanted (this arm would), or neither.
    """

    solve: Callable[[Problem], Solution]
    neighborhood: str = "embedding"
    labels: str = "true"
    descent: str = ""


class Rewirer:
    """Answers batches of questions with one recipe. Holds no state that a question could leave behind.

    `descents` are shared by the arms of an experiment; an arm is charged for what it takes from them.
    """

    def __init__(
        self,
        engine: Engine,
        method: MethodConfig,
        recipe: Recipe | None,
        *,
        bank: ReferenceBank | None = None,
        embedder: QuestionEmbedder | None = None,
        seed: int = 0,
        meter: Meter | None = None,
        descents: Descents | None = None,
    ):
        self.engine, self.method, self.recipe = engine, method, recipe
        self.bank, self.embedder, self.seed = bank, embedder, seed
        self.meter = meter or Meter()
        self.descents: Descents = {} if descents is None else descents
        self.mixer = Mixer(engine.family, method.mass)
        if bank is not None:
            self.embeddings = to_tensor(bank.embeddings, engine.device)
            self.pathways = to_tensor(bank.pathways[:, engine.critical.tolist()], engine.device)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Score all choices of each question."""
        prompts = [p for q in questions for p in q.prompts]
        owner = [i for i, q in enumerate(questions) for _ in q.prompts]
        first = [0]
        for question in questions:
            first.append(first[-1] + len(question.prompts))
        states = self.engine.read(prompts, self.meter)
        rows = [(first[i] + p, c) for i, q in enumerate(questions) for p, c in q.rows]
        batch = self.engine.batch(states, rows)
        mixture, details = None, [{} for _ in questions]
        if self.recipe is not None:
            own = self.engine.original_pathways(states)
            core = core_experts(own, self.method.experts, self.engine.family.top_k)
            problem, near = self._problem(questions, states, owner, first, own, core)
            solution = self._solve(problem)
            mixture = self.mixer(solution.pathway, own, core, self.method.final_mixing)
            details = self._details(questions, first, own, solution, near)
        with self.meter.phase("score"), torch.no_grad():
            scores, greedy = batch.score(
                mixture, torch.tensor([s for s, _ in rows], device=self.engine.device)
            )
            self.meter.count("score", batch.flops)
        flat = iter(zip(scores.tolist(), greedy.tolist(), strict=True))
        return [Answer([next(flat) for _ in q.rows], details[i]) for i, q in enumerate(questions)]

    def mixture_for(self, question: Question) -> tuple[Mixture | None, dict[str, Any]]:
        """The override for one prompt whose answer is written, not scored; None for the base model."""
        if self.recipe is None:
            return None, {}
        states = self.engine.read(question.prompts, self.meter)
        own = self.engine.original_pathways(states)
        core = core_experts(own, self.method.experts, self.engine.family.top_k)
        problem, near = self._problem([question], states, [0], [0], own, core)
        solution = self._solve(problem)
        mixture = self.mixer(solution.pathway, own, core, self.method.final_mixing)
        return mixture, self._details([question], [0], own, solution, near)[0]

    def _solve(self, problem: Problem) -> Solution:
        """The recipe's solution, from NGD's of the same queries where the recipe needs it and an arm before has it."""
        recipe, meter, key = self.recipe, self.meter, tuple(problem.seeds)
        assert recipe is not None
        if recipe.descent == "wanted" and key in self.descents:
            descent, seconds, flops = self.descents[key]
            meter.add_cached_cost("optimize", seconds, flops)
            start = time.perf_counter()
            solution = recipe.solve(replace(problem, descent=descent))
            meter.add("optimize", time.perf_counter() - start, 0)
            return solution
        before = meter.spent("optimize")
        with meter.phase("optimize"):
            solution = recipe.solve(problem)
        if recipe.descent == "kept":
            seconds, flops = (now - then for now, then in zip(meter.spent("optimize"), before, strict=True))
            self.descents[key] = (solution, seconds, flops)
        return solution

    def _problem(
        self,
        questions: Sequence[Question],
        states: list[State],
        owner: list[int],
        first: list[int],
        own: Tensor,
        core: Tensor,
    ) -> tuple[Problem, Neighborhood | None]:
        """Everything the surrogate may see, one query for each prompt."""
        recipe, method = self.recipe, self.method
        assert recipe is not None
        seeds = [item_seed(self.seed, questions[i].seed_key) for i in owner]
        near = None
        if recipe.neighborhood in ("embedding", "random"):
            assert self.embedder is not None
            vectors = self.embedder([q.text for q in questions], self.meter)
            vectors = torch.from_numpy(vectors).to(self.engine.device)[owner]
            with self.meter.phase("retrieve"):
                self.meter.count("retrieve", 2 * len(vectors) * self.embeddings.numel())
                if recipe.neighborhood == "random":
                    near = random_draw(method, vectors, self.embeddings, seeds)
                else:
                    near = nearest(method, vectors, self.embeddings)
        if recipe.neighborhood == "self":
            loss = self._own_loss(questions, states, first, own, core)
        elif near is not None:
            loss = self._neighbors_loss(near, own, core, seeds)
        else:
            loss = _no_loss
        bank = self.pathways if self.bank is not None else own[:0]
        texts = [questions[i].text for i in owner]
        return Problem(own, core, near, bank, loss, method, seeds, texts, list(self.engine.layers)), near

    def _row_loss(self, batch: Batch, mixture: Mixture, owner: Tensor, gold: Tensor, group: Tensor) -> Tensor:
        """Loss of each group of rows [groups].

        Mean token NLL of the gold row, or cross-entropy over the group's rows.
        """
        before = batch.flops
        scores, _ = batch.score(mixture, owner, greedy=False)
        self.meter.count("optimize", batch.flops - before)
        groups = len(gold)
        if self.method.loss == "nll":
            return -scores[gold] / batch.lengths[gold]
        peak = torch.full((groups,), float("-inf"), device=scores.device)
        peak = peak.scatter_reduce(0, group, scores.detach(), "amax")
        total = scores.new_zeros(groups).index_add(0, group, (scores - peak[group]).exp())
        return total.log() + peak - scores[gold]

    def _neighbors_loss(self, near: Neighborhood, own: Tensor, core: Tensor, seeds: list[int]) -> Loss:
        """L(w) = sum_i K_i l(f(x_i, w), y_i) / sum_i K_i.

        The test item's pathway in the neighbors' forwards (eq. 3).

        The neighbors' states are read at the first call, so a surrogate without a loss costs nothing.
        """
        prepared: list[Any] = []

        def prepare() -> None:
            assert self.bank is not None and self.recipe is not None
            query_of, indices, weights = [], [], []
            for q, (index, weight) in enumerate(zip(near.index.tolist(), near.weights.tolist(), strict=True)):
                for i, w in zip(index, weight, strict=True):
                    if w > 0:
                        query_of.append(q)
                        indices.append(i)
                        weights.append(w)
            if not indices:
                prepared.append(None)
                return
            labels = [self._label(i, seeds[q]) for i, q in zip(indices, query_of, strict=True)]
            states = self._neighbors_read(indices, labels)
            rows, gold, group = [], [], []
            for n, (_, right) in enumerate(labels):
                answers = range(len(states[n].prompt.continuations))
                chosen = [right] if self.method.loss == "nll" else list(answers)
                gold.append(len(rows) + chosen.index(right))
                rows += [(n, c) for c in chosen]
                group += [n] * len(chosen)
            device = self.engine.device
            queries = torch.tensor(query_of, device=device)
            groups = torch.tensor(group, device=device)
            total = torch.zeros(len(own), device=device).index_add(
                0, queries, torch.tensor(weights, device=device)
            )
            share = torch.tensor(weights, device=device) / total[queries]
            prepared.append(
                (self.engine.batch(states, rows), queries, groups, torch.tensor(gold, device=device), share)
            )

        def loss(pathway: Tensor) -> Tensor:
            if not prepared:
                prepare()
            if prepared[0] is None:
                return _no_loss(pathway)
            batch, queries, groups, gold, share = prepared[0]
            mixture = self.mixer(pathway, own, core, self.method.mixing)
            each = self._row_loss(batch, mixture, queries[groups], gold, groups)
            return each.new_zeros(len(own)).index_add(0, queries, each * share)

        return loss

    def _neighbors_read(self, indices: list[int], labels: list[tuple[int, int]]) -> list[State]:
        """States of the neighbors.

        Having the model read them is part of the one-off cost of the bank, not of the item.
        """
        assert self.bank is not None
        prompts = self.bank.prompts([(i, p) for i, (p, _) in zip(indices, labels, strict=True)])
        return self.engine.read(prompts, keep=True, groups=self.bank.groups, exclude=self.meter.exclude)

    def _label(self, reference: int, seed: int) -> tuple[int, int]:
        """(prompt, continuation) of a reference's label.

        The true one, or one drawn at random from all choices.
        """
        assert self.bank is not None and self.recipe is not None
        question = self.bank.questions[reference]
        assert question.gold is not None
        if self.recipe.labels == "shuffled":
            return question.rows[item_seed(seed, reference) % len(question.rows)]
        return question.rows[question.gold]

    def _own_loss(
        self, questions: Sequence[Question], states: list[State], first: list[int], own: Tensor, core: Tensor
    ) -> Loss:
        """The oracle: L(w) = l(f(x, w), y) with the test item's true label."""
        rows, gold, group, queries = [], [], [], []
        for i, question in enumerate(questions):
            if question.gold is None:
                raise UserError(
                    "the oracle needs a label among choices: leave it out where the answer is written"
                )
            prompt, answer = question.rows[question.gold]
            answers = (
                [c for p, c in question.rows if p == prompt] if self.method.loss == "choice" else [answer]
            )
            gold.append(len(rows) + answers.index(answer))
            group += [i] * len(answers)
            queries += [first[i] + prompt] * len(answers)
            rows += [(first[i] + prompt, c) for c in answers]
        device = self.engine.device
        batch = self.engine.batch(states, rows)
        gold_rows, groups = torch.tensor(gold, device=device), torch.tensor(group, device=device)
        owner = torch.tensor(queries, device=device)

        def loss(pathway: Tensor) -> Tensor:
            mixture = self.mixer(pathway, own, core, self.method.mixing)
            each = self._row_loss(batch, mixture, owner, gold_rows, groups)
            return each.new_zeros(len(own)).index_add(0, owner[gold_rows], each)

        return loss

    def _details(
        self,
        questions: Sequence[Question],
        first: list[int],
        own: Tensor,
        solution: Solution,
        near: Neighborhood | None,
    ) -> list[dict[str, Any]]:
        """What the record keeps of each question: of its first prompt, where there are several."""
        change = (solution.pathway - own).flatten(1).norm(dim=-1).tolist()
        before, after = own.cpu(), solution.pathway.cpu()
        losses = None if solution.losses is None else solution.losses.T.tolist()
        out = []
        for i in range(len(questions)):
            q = first[i]
            row: dict[str, Any] = {
                "pathway_layers": list(self.engine.layers),
                "pathway_before": _rounded(before[q]),
                "pathway_after": _rounded(after[q]),
                "pathway_change": round(change[q], 6),
            }
            if losses is not None:
                row["losses"] = [round(value, 6) for value in losses[q]]
            if near is not None and self.bank is not None:
                found = (near.index[q].tolist(), near.similarity[q].tolist(), near.weights[q].tolist())
                row["neighbors"] = [self.bank.neighbor(n, s) for n, s, w in zip(*found, strict=True) if w > 0]
                row["dropped_duplicates"] = int(near.dropped[q])
            out.append(row)
        return out


def _no_loss(pathway: Tensor) -> Tensor:
    """Zero for every query, with a gradient of zero: where there is no neighbor, nothing moves."""
    return pathway.flatten(1).sum(-1) * 0.0


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(v, 4) for v in row] for row in matrix.tolist()]
