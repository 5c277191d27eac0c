"""Answering items under another pathway: find neighbors, find a pathway, score or write the answer with it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from c3po_bench.contract import TEXT, Answer, ArmRow, Item
from c3po_bench.errors import finite
from c3po_bench.models.encoding import decoding
from c3po_bench.models.routing import selection_scores
from c3po_bench.rewiring.bank import ReferenceBank, to_tensor
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.embedders import QuestionEmbedder
from c3po_bench.rewiring.engines.base import Engine, State, distinct
from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.losses import Losses, no_loss
from c3po_bench.rewiring.methods import Queries, Solution
from c3po_bench.rewiring.movement import movement
from c3po_bench.rewiring.neighbors import Neighborhood, item_seed, nearest, random_draw
from c3po_bench.rewiring.pathway import Mixer, Mixture, core_experts
from c3po_bench.rewiring.tokens import TokenizedItem, Tokenizer
from c3po_bench.runtime.meter import Meter

Solutions = dict[tuple[int, ...], tuple[Solution, float, float]]
"""Solutions that other arms may take over, by the seeds of their queries, with the seconds and FLOPs they took."""


@dataclass(frozen=True)
class Rewiring:
    """One way of rewiring: an arm's row, and its solver with the arm's options bound."""

    row: ArmRow
    solve: Callable[[Queries], Solution]


class Rewirer:
    """Answers items on one engine, rewired in one way. Holds no state that an item could leave behind.

    Args:
        engine: runs the model.
        tokenizer: of the model.
        method: options that all arms share.
        rewiring: how this arm rewires; None for the model's own routing.
        bank: the references, where the arm learns from any.
        embedder: of questions, where the arm seeks neighbors.
        seed: of the run; draws of an item also depend on its key.
        meter: the arm's account.
        solutions: shared by the arms of an experiment; an arm is charged for what it takes from them.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        method: MethodConfig,
        rewiring: Rewiring | None = None,
        *,
        bank: ReferenceBank | None = None,
        embedder: QuestionEmbedder | None = None,
        seed: int = 0,
        meter: Meter | None = None,
        solutions: Solutions | None = None,
    ):
        self.engine, self.tokenizer, self.method, self.rewiring = engine, tokenizer, method, rewiring
        self.bank, self.embedder, self.seed = bank, embedder, seed
        self.meter = meter or Meter()
        self.solutions: Solutions = {} if solutions is None else solutions
        self.mixer = Mixer(engine.family, method.preserve_total_weight)
        if bank is not None:
            self.embeddings = to_tensor(bank.embeddings, engine.device)
            self.pathways = to_tensor(bank.pathways[:, engine.critical.tolist()], engine.device)

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Score all requests of each item at once, or write answers, one item at a time."""
        if items and items[0].kind == TEXT:
            return [self._write(self.tokenizer(item)) for item in items]
        return self._score([self.tokenizer(item) for item in items])

    def _score(self, items: Sequence[TokenizedItem]) -> list[Answer]:
        first = [0, *accumulate(len(item.prompts) for item in items)]
        states = self.engine.read([p for item in items for p in item.prompts], self.meter)
        rows, where = distinct(
            states, [(first[i] + p, c) for i, item in enumerate(items) for p, c in item.rows]
        )
        batch = self.engine.batch(states, rows)
        mixture, details = self._rewire(items, states, first)
        with self.meter.phase("score"), torch.no_grad():
            owner = torch.tensor([s for s, _ in rows], device=self.engine.device)
            scores, greedy = batch.score(mixture, owner)
            self.meter.count("score", batch.flops)
        scored = list(zip(scores.tolist(), greedy.tolist(), strict=True))
        flat = (scored[place] for place in where)
        return [
            Answer(scores=tuple(next(flat) for _ in item.rows), details=details[i])
            for i, item in enumerate(items)
        ]

    def _write(self, item: TokenizedItem) -> Answer:
        """Greedy decoding, the pathway found for the prompt held at its last token, or while the answer is written."""
        engine, tokenizer, ids = self.engine, self.tokenizer, list(item.prompts[0].context)
        most, stops = decoding(item.item)
        ends = tokenizer.end_ids(item.item)
        mixture, details = None, [{}]
        if self.rewiring is not None:
            mixture, details = self._rewire([item], engine.read(item.prompts, self.meter), [0, 1])
        tokens = torch.tensor([ids], device=engine.device)
        cache, written, finished = None, [], False
        with torch.no_grad():
            while len(written) < most and not finished:
                inputs: dict[str, Any] = {"input_ids": tokens, "past_key_values": cache, "logits_to_keep": 1}
                if mixture is not None and (not written or engine.position == "continuation"):
                    last = torch.tensor([tokens.shape[1] - 1], device=engine.device)
                    with override(engine.family, engine.model, engine.layers, last, mixture):
                        out = engine.model(**inputs, use_cache=True)
                else:
                    out = engine.model(**inputs, use_cache=True)
                cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)
                finite(
                    float(out.logits[0, -1].max()),
                    f"a logit of item {item.item.id[1]} of task {item.item.id[0]}",
                )
                if finished := int(tokens) in ends:
                    break
                written.append(int(tokens))
                text = tokenizer.lm.tok_decode(written)
                finished = any(stop in text for stop in stops)
        text = tokenizer.text(item.item, written)
        for stop in stops:
            text = text.split(stop)[0]
        return Answer(text=text, token_ids=tuple(written), finished=finished, details=details[0])

    def _rewire(
        self, items: Sequence[TokenizedItem], states: list[State], first: list[int]
    ) -> tuple[Mixture | None, list[dict[str, Any]]]:
        """What the experts of each prompt are mixed by (None for the model's own routing), and the items' details.

        `first` is the place of each item's first prompt among `states`.
        """
        if self.rewiring is None:
            return None, [{} for _ in items]
        own = self.engine.original_pathways(states)
        core = core_experts(
            selection_scores(self.engine.family, own), self.method.experts, self.engine.family.top_k
        )
        queries, near = self._queries(items, states, first, own, core)
        solution = self._solve(queries)
        mixture = self.mixer(solution.pathway, own, core, self.method.final_mixing)
        moved = movement(self.engine.family, own, solution.pathway, mixture)
        for row, ends in zip(moved, self._loss_ends(queries, solution), strict=False):
            row["surrogate_loss"] = [round(value, 6) for value in ends]
        return mixture, self._details(len(items), first, own, solution, near, moved)

    def _loss_ends(self, queries: Queries, solution: Solution) -> list[list[float]]:
        """The surrogate loss of each query, first and last: [queries][2]; nothing where the arm has no loss.

        An arm that moves as far as another without descending is asked what the loss is at its ends: that
        costs two passes over the neighbors, of the phase `record`.
        """
        assert self.rewiring is not None
        if solution.losses is not None:
            return solution.losses[[0, -1]].T.tolist()
        if self.rewiring.row.solution != "reuse":
            return []
        before = self.meter.spent("optimize")[1]
        with self.meter.phase("record"), torch.no_grad():
            ends = torch.stack([queries.loss(pathway) for pathway in (queries.original, solution.pathway)])
        counted = self.meter.spent("optimize")[1] - before
        self.meter.count("optimize", -counted)
        self.meter.count("record", counted)
        return ends.T.tolist()

    def _solve(self, queries: Queries) -> Solution:
        """The arm's solution: made of another arm's for the same queries where it builds on one and has it."""
        assert self.rewiring is not None
        row, solve, meter, key = self.rewiring.row, self.rewiring.solve, self.meter, tuple(queries.seeds)
        if row.solution == "reuse" and key in self.solutions:
            descent, seconds, flops = self.solutions[key]
            meter.add_cached_cost("optimize", seconds, flops)
            start = time.perf_counter()
            solution = solve(replace(queries, descent=descent))
            meter.add("optimize", time.perf_counter() - start, 0)
            return solution
        before = meter.spent("optimize")
        with meter.phase("optimize"):
            solution = solve(queries)
        if row.solution == "store":
            seconds, flops = (now - then for now, then in zip(meter.spent("optimize"), before, strict=True))
            self.solutions[key] = (solution, seconds, flops)
        return solution

    def _queries(
        self,
        items: Sequence[TokenizedItem],
        states: list[State],
        first: list[int],
        own: torch.Tensor,
        core: torch.Tensor,
    ) -> tuple[Queries, Neighborhood | None]:
        """Everything the solver may see, one query for each prompt."""
        assert self.rewiring is not None
        row, method = self.rewiring.row, self.method
        owner = [i for i, item in enumerate(items) for _ in item.prompts]
        seeds = [item_seed(self.seed, items[i].item.key) for i in owner]
        losses = Losses(self.engine, self.mixer, method, self.meter, own, core)
        near, loss = None, no_loss
        if row.references in ("retrieved", "random"):
            assert self.embedder is not None and self.bank is not None
            vectors = self.embedder([item.item.question for item in items], self.meter)
            vectors = torch.from_numpy(vectors).to(self.engine.device)[owner]
            with self.meter.phase("retrieve"):
                self.meter.count("retrieve", 2 * len(vectors) * self.embeddings.numel())
                if row.references == "random":
                    near = random_draw(method, vectors, self.embeddings, seeds)
                else:
                    near = nearest(method, vectors, self.embeddings)
            loss = losses.of_neighbors(self.bank, near, seeds if row.shuffled_labels else None)
        elif row.references == "own":
            loss = losses.of_items(items, states, first)
        bank = self.pathways if self.bank is not None else own[:0]
        texts = [items[i].item.question for i in owner]
        return Queries(
            *(own, core, near, bank, loss, method, seeds, texts, list(self.engine.layers)),
            score=str(self.engine.family.score),
            top_k=self.engine.family.top_k,
        ), near

    def _details(
        self,
        count: int,
        first: list[int],
        own: torch.Tensor,
        solution: Solution,
        near: Neighborhood | None,
        moved: list[dict[str, list[float]]],
    ) -> list[dict[str, Any]]:
        """What the record keeps of each item: of its first prompt, where there are several."""
        change = (solution.pathway - own).flatten(1).norm(dim=-1).tolist()
        before, after = own.cpu(), solution.pathway.cpu()
        losses = None if solution.losses is None else solution.losses.T.tolist()
        out = []
        for q in first[:count]:
            row: dict[str, Any] = {
                "pathway_layers": list(self.engine.layers),
                "pathway_before": _rounded(before[q]),
                "pathway_after": _rounded(after[q]),
                "pathway_change": round(change[q], 6),
                "movement": moved[q],
            }
            if losses is not None:
                row["losses"] = [round(value, 6) for value in losses[q]]
            if near is not None and self.bank is not None:
                row |= self.bank.details(near, q)
            out.append(row)
        return out


def _rounded(matrix: torch.Tensor) -> list[list[float]]:
    return [[round(v, 4) for v in row] for row in matrix.tolist()]
