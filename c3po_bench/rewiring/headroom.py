"""What re-routing could give at most, item by item, before any method is tried.

Of each item two things are measured. *Reach*: the same descent that the arm `oracle` makes towards the true
option is made towards every other one, too. *Routes*: top-k routes are drawn from the router's own scores
with Gumbel noise, which cost what the model's own route costs, and all options are scored under each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from c3po_bench.contract import Item
from c3po_bench.errors import UserError, finite
from c3po_bench.models.families import to_logits, to_score
from c3po_bench.models.routing import mix, selection_scores
from c3po_bench.registry import load
from c3po_bench.rewiring.arms import ARMS
from c3po_bench.rewiring.backend import RewiringBackend
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines.base import State, distinct
from c3po_bench.rewiring.losses import Losses
from c3po_bench.rewiring.methods import Queries
from c3po_bench.rewiring.methods.ngd import ngd
from c3po_bench.rewiring.neighbors import item_seed
from c3po_bench.rewiring.pathway import Mixer, Mixture, core_experts
from c3po_bench.rewiring.rewirer import Rewirer, Rewiring
from c3po_bench.rewiring.tokens import TokenizedItem
from c3po_bench.runtime.meter import Meter

ORACLE = "oracle"  # the arm whose descent is made towards every option
RULES = ("model rule", "mass kept")
"""What drawn experts weigh: what the family's router gives them, or that, scaled to the own route's total."""


@dataclass(frozen=True)
class Routes:
    """How routes are drawn: `count` of them, by top-k of logits + `temperature` * Gumbel noise."""

    count: int = 64
    temperature: float = 1.0


class Headroom:
    """Measures items on a backend's engine, with the optimizer that its methods use.

    Args:
        backend: of the experiment; its arms are not asked.
        routes: how routes are drawn.
    """

    def __init__(self, backend: RewiringBackend, routes: Routes):
        self.backend, self.routes, self.meter = backend, routes, Meter()
        cfg = backend.cfg
        self.engine, self.family, self.seed = backend.engine, backend.engine.family, cfg.seed
        self.method: MethodConfig = cfg.method
        if cfg.method.tune != "none":
            self.method = backend.tuning(ARMS[ORACLE]).method(cfg.method)
        renormalised = self.family.renormalise or self.method.preserve_total_weight
        self.rules = RULES[:1] if renormalised else RULES
        # arms that know a good route of the items that they were made for
        self.known = [row.name for row in ARMS.values() if row.role == "ceiling" and row.references == "none"]

    def measure(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Rows of labelled items, in order.

        Returns:
            Of each item `gold`; `base`: the place of the model's own choice; `reached`: of each option
            whether the descent towards it makes it the choice; `best`: by rule of each option its largest
            margin over the model's own and all drawn routes, in nats; `right`: by rule how many drawn routes
            give the true option; `average`: by rule the choice of the mean probabilities over all routes;
            `auc`: by rule the probability that a route's margin of the true option exceeds another's of a
            wrong one; `mass`: the drawn routes' total weight against the own route's; `known`: by arm whether
            its route is right.
        """
        tokenized = [self.backend.tokenizer(item) for item in items]
        states = self.engine.read([p for item in tokenized for p in item.prompts])
        part = Part(self, tokenized, states)
        base = part.scores(None, None)
        rows = [
            {"gold": item.gold, "options": item.n_choices, "best": {}, "right": {}, "average": {}, "auc": {}}
            for item in items
        ]
        for row, item, scores in zip(rows, items, base, strict=True):
            finite(float(scores.max()), f"a log-likelihood of item {item.id[1]} of task {item.id[0]}")
            row |= {"base": int(scores.argmax()), "reached": [False] * item.n_choices}
        self._reach(part, rows)
        self._draw(part, base, rows)
        self._ask_known(items, rows)
        return rows

    def rule_scores(self, item: Item, scores: Tensor) -> Tensor:
        """What the options are ranked by under the task's rule [options].

        Log-likelihoods: as they are, divided by lengths, or less those of the options without their context.

        Args:
            item: what was asked.
            scores: the log-likelihood of each of its requests.
        """
        count, options = item.n_choices, scores[: item.n_choices]
        if self.backend.tasks.headline[item.id[0]] == "acc_mutual_info":
            return options - scores[count : 2 * count]
        return options / torch.tensor(item.lengths) if item.lengths else options

    def _reach(self, part: Part, rows: list[dict[str, Any]]) -> None:
        """Descend towards each option of all items that have it."""
        for option in range(max(row["options"] for row in rows)):
            having = [i for i, row in enumerate(rows) if row["options"] > option]
            some = part if len(having) == len(rows) else part.subset(having)
            found = margins(some.scores(some.descend(option), some.owner))
            for i, margin in zip(having, found[:, option].tolist(), strict=True):
                rows[i]["reached"][option] = margin > 0

    def _draw(self, part: Part, base: Tensor, rows: list[dict[str, Any]]) -> None:
        """Score all options under routes that are drawn for each item by its own seed."""
        own = part.own
        noise = torch.stack([self._noise(seed, own.shape[1:]) for seed in part.seeds], dim=1).to(own)
        logits = to_logits(own, self.family.score)
        whole = mix(self.family, own)[0].sum(-1, keepdim=True)
        gold = torch.tensor([row["gold"] for row in rows], device=own.device)
        for rule in self.rules:
            found, mass = [margins(base)], []
            total = base.softmax(-1)
            for gumbel in noise:
                drawn = to_score(logits + self.routes.temperature * gumbel, self.family.score)
                chosen = selection_scores(self.family, drawn).topk(self.family.top_k, dim=-1).indices
                allowed = torch.zeros_like(own).scatter(-1, chosen, 1.0).bool()
                weights, indices = mix(self.family, own, candidates=allowed)
                mass.append((weights.sum(-1, keepdim=True) / whole).flatten(1).mean(-1))
                if rule == "mass kept" or self.method.preserve_total_weight:
                    weights = weights * whole / weights.sum(-1, keepdim=True).clamp_min(1e-9)
                scores = part.scores(Mixture(weights, indices), part.owner)
                found.append(margins(scores))
                total = total + scores.softmax(-1)
            every = torch.stack(found, dim=1)  # [items, routes, options]
            true = every.gather(-1, gold[:, None, None].expand(-1, every.shape[1], 1))
            auc = _exceeds(true[..., 0], every, gold)
            best, right = every.amax(1), (true[:, 1:, 0] > 0).sum(-1)
            per_item = torch.stack(mass).mean(0)
            for i, row in enumerate(rows):
                row["best"][rule] = [round(v, 5) for v in best[i, : row["options"]].tolist()]
                row["right"][rule] = int(right[i])
                row["average"][rule] = int(total[i].argmax())
                row["auc"][rule] = round(float(auc[i]), 5)
                row["mass"] = round(float(per_item[part.first[i]]), 5)

    def _noise(self, seed: int, shape: torch.Size) -> Tensor:
        """Gumbel noise of an item's routes [routes, layers, experts]."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(self.routes.count, *shape, generator=generator).clamp(1e-20, 1 - 1e-7)
        return -(-uniform.log()).log()

    def _ask_known(self, items: Sequence[Item], rows: list[dict[str, Any]]) -> None:
        """Whether the routes of arms that know one are right; who doesn't know the items is asked no more."""
        for row in rows:
            row["known"] = {}
        for name in list(self.known):
            arm = Rewiring(ARMS[name], load(ARMS[name].factory))
            rewirer = Rewirer(
                self.engine, self.backend.tokenizer, self.method, arm, seed=self.seed, meter=self.meter
            )
            try:
                answers = rewirer.answer([replace(item, gold=None) for item in items])
            except UserError:
                self.known.remove(name)
                continue
            for row, item, answer in zip(rows, items, answers, strict=True):
                ruled = self.rule_scores(item, torch.tensor([score for score, _ in answer.scores]))
                row["known"][name] = bool(int(ruled.argmax()) == item.gold)


class Part:
    """Some items, read: their own pathways, and all their requests ready to be scored."""

    def __init__(self, headroom: Headroom, items: Sequence[TokenizedItem], states: list[State]):
        self.headroom, self.items, self.states = headroom, items, states
        engine, method = headroom.engine, headroom.method
        self.first = [0, *accumulate(len(item.prompts) for item in items)]
        rows, self.where = distinct(
            states, [(self.first[i] + p, c) for i, item in enumerate(items) for p, c in item.rows]
        )
        self.batch = engine.batch(states, rows)
        self.owner = torch.tensor([state for state, _ in rows], device=engine.device)
        self.own = engine.original_pathways(states)
        self.core = core_experts(
            selection_scores(engine.family, self.own), method.experts, engine.family.top_k
        )
        self.mixer = Mixer(engine.family, method.preserve_total_weight)
        self.seeds = [item_seed(headroom.seed, i.item.key) for i in items for _ in i.prompts]

    def subset(self, places: Sequence[int]) -> Part:
        """Those of the items."""
        states = [s for i in places for s in self.states[self.first[i] : self.first[i + 1]]]
        return Part(self.headroom, [self.items[i] for i in places], states)

    def scores(self, mixture: Mixture | None, owner: Tensor | None) -> Tensor:
        """The options' scores under the task's rule [items, most options]; -inf where an item has fewer."""
        with torch.no_grad():
            flat = self.batch.score(mixture, owner, greedy=False)[0]
        flat, start, most = flat.cpu()[self.where], 0, max(item.item.n_choices for item in self.items)
        table = torch.full((len(self.items), most), float("-inf"))
        for i, item in enumerate(self.items):
            ruled = self.headroom.rule_scores(item.item, flat[start : start + len(item.rows)])
            table[i, : len(ruled)] = ruled
            start += len(item.rows)
        return table.to(self.own.device)

    def descend(self, option: int) -> Mixture:
        """What the experts are mixed by after the oracle's descent towards `option` of every item."""
        method = self.headroom.method
        aimed = [replace(item, item=replace(item.item, gold=option)) for item in self.items]
        losses = Losses(self.headroom.engine, self.mixer, method, self.headroom.meter, self.own, self.core)
        queries = Queries(
            *(self.own, self.core, None, self.own[:0]),
            losses.of_items(aimed, self.states, self.first),
            method,
            self.seeds,
            layers=list(self.headroom.engine.layers),
            score=str(self.headroom.family.score),
        )
        return self.mixer(ngd(queries).pathway, self.own, self.core, method.final_mixing)


def margins(scores: Tensor) -> Tensor:
    """By how much each option's score exceeds the best of the others [..., options]."""
    if scores.shape[-1] < 2:
        return torch.zeros_like(scores)
    top = scores.topk(2, dim=-1)
    best = torch.nn.functional.one_hot(top.indices[..., 0], scores.shape[-1]).bool()
    return scores - torch.where(best, top.values[..., 1:], top.values[..., :1])


def _exceeds(true: Tensor, every: Tensor, gold: Tensor) -> Tensor:
    """P(a route's margin of the true option > a route's margin of a wrong one), ties half [items].

    `true` is [items, routes], `every` [items, routes, options].
    """
    wrong = torch.nn.functional.one_hot(gold, every.shape[-1]) == 0
    out = []
    for mine, theirs, among in zip(true, every, wrong, strict=True):
        others = theirs[:, among].flatten()
        others = others[others.isfinite()].sort().values
        low = torch.searchsorted(others, mine.contiguous())
        high = torch.searchsorted(others, mine.contiguous(), right=True)
        out.append((low + high).double().mean() / 2 / max(1, len(others)))
    return torch.stack(out)
