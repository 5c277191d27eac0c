"""`method.tune=reference`: an arm's settings chosen on held-out reference items, never on the test.

The paper names no protocol for its choices, and all its ablations are on the test benchmarks. Here some
references play the test: their labels are hidden from the arm and used only to compare settings, by the
probability that they have among the options under the task's scoring rule. Methods, controls and baselines
each choose for themselves, by the same search with the same budget: a method that beats controls at the
method's own best setting may only have been tuned. Arms that are defined by another's pathway
(`random_pathway`) or are a ceiling for it (`oracle`) take its choice.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from c3po_bench.contract import Answer, Arm, ArmRow, Item, Phase
from c3po_bench.errors import UserError
from c3po_bench.registry import load
from c3po_bench.rewiring.arms import options
from c3po_bench.rewiring.bank import ReferenceBank
from c3po_bench.rewiring.choices import Axis, Tuned, Tuning, axes_of, in_words, options_among, with_choices
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.embedders import embedder_identity
from c3po_bench.rewiring.rewirer import Rewirer, Rewiring
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.console import Progress
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.runtime.meter import Meter
from c3po_bench.store.identity import content_hash
from c3po_bench.store.records import read_sealed, write_sealed
from c3po_bench.tasks.duplicates import question_hash

log = logging.getLogger(__name__)
HELD_OUT = 300
"""References that play the test, where there are twice as many; else half of them."""
BUDGET = 20
"""Settings that are tried of an arm at most."""


def protocol(row: ArmRow) -> dict[str, Any]:
    """What decides, beside config and references, what is chosen for an arm: part of what names its runs."""
    axes = {axis.key: list(axis.values) for axis in axes_of(row)}
    return {"arm": row.name, "criterion": "p_gold", "held_out": HELD_OUT, "budget": BUDGET, "axes": axes}


def tune(backend: Workbench, row: ArmRow) -> Tuning:
    """Choose the settings of an arm; the result is kept in `results_dir/tuned`.

    Raises:
        UserError: where there are too few references to hide some.
    """
    cfg = backend.cfg
    items = [
        item for item in backend.reference_items[0] if question_hash(item.question) not in backend.test_hashes
    ]
    if len(items) < 5:
        raise UserError(
            "method.tune=reference needs at least 5 references, of which it hides some; there are "
            f"{len(items)}"
        )
    drawn = sorted(items, key=lambda i: hashlib.sha256(f"{cfg.seed}:{i.id[0]}:{i.id[1]}".encode()).digest())
    held_out = drawn[: min(HELD_OUT, len(items) // 2)]
    data = [[*item.id, item.question, item.requests, item.gold, item.lengths] for item in items]
    identity = [
        *(protocol(row), options(cfg, row)),
        backend.model_hash,
        cfg.model.dtype,
        asdict(cfg.method),
        asdict(cfg.references),
        embedder_identity(cfg.embedder),
        data,
    ]
    path = Path(cfg.results_dir) / "tuned" / f"{row.name}-{content_hash([*identity, cfg.seed])}.json"
    with exclusive_lock(path.parent, f"{path.name}.lock"):
        found = read_sealed(path, Tuned)
        if found is None:
            found = asdict(Search(backend, row, held_out).run())
            write_sealed(path, found)
    phase = Phase(**found["phase"])
    kept = {name: found[name] for name in Tuned.__annotations__ if name != "phase"}
    return Tuning(**kept, phase=phase)


@dataclass
class Search:
    """Coordinate search: the values of each axis in turn, at the best found so far; then beside the first's.

    Args:
        backend: the workbench of the experiment.
        row: of the arm.
        held_out: the references that play the test.
    """

    backend: Workbench
    row: ArmRow
    held_out: Sequence[Item]
    meter: Meter = field(default_factory=Meter)
    answering: Meter = field(default_factory=Meter)
    tried: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings by their words
    arms: list[Arm] = field(default_factory=list)  # baselines that were made ready
    found: dict[str, np.ndarray] = field(default_factory=dict)  # p_gold of each held-out reference

    def run(self) -> Tuning:
        """Try settings, and say which is best."""
        trial = without_held_out(self.backend, self.held_out)
        self.progress, axes = Progress(), axes_of(self.row)
        with self.meter.phase("tune"):
            base = self._p_gold(trial, Rewirer(trial.engine, trial.tokenizer, trial.cfg.method).answer)
            best = {axis.key: self._current(axis.key) for axis in axes}
            self._score(trial, best)
            for axis in axes:
                best = self._along(trial, axis, best, axis.values)
            first = axes[0]
            if len(axes) > 1 and first.factor:
                tried = [setting[first.key] for setting in self.tried.values()]
                for value in first.beside(best[first.key]):
                    if min(tried) <= value <= max(tried):
                        best = self._better(trial, best, best | {first.key: value})
            self.meter.count("tune", sum(self.answering.flops.values()) - self.answering.cached_flops)
            phases = [phase for arm in self.arms for phase in arm.cost().phases.values()]
            self.meter.count("tune", sum(math.nan if p.flops is None else p.flops for p in phases))
        values = self.found[in_words(best)]
        edges = [
            f"{in_words({axis.key: best[axis.key]})} ({side})"
            for axis in axes
            if (side := self._edge(axis, best))
        ]
        p_gold = {"base": base} | self.found
        log.info("%s: tuned on %d held-out references: %s", self.row.name, len(self.held_out), in_words(best))
        return Tuning(
            self.row.name,
            best,
            {name: round(float(each.mean()), 6) for name, each in p_gold.items()},
            interval(values)[1:],
            interval(values - base),
            edges,
            len(self.held_out),
            self.meter.cost().phases["tune"],
        )

    def _along(
        self, trial: Workbench, axis: Axis, best: dict[str, Any], values: Sequence[Any]
    ) -> dict[str, Any]:
        """The best setting along an axis, those beyond its ends included where the best lies there."""
        for value in values:
            best = self._better(trial, best, best | {axis.key: value})
        for _ in range(2):
            side = self._edge(axis, best)
            if not axis.factor or not side:
                break
            beyond = axis.beside(best[axis.key])[side == "highest"]
            best = self._better(trial, best, best | {axis.key: beyond})
        return best

    def _better(self, trial: Workbench, best: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """The better of two settings; the first where they are alike, or the budget is spent."""
        if in_words(other) not in self.found and len(self.found) >= BUDGET:
            return best
        return other if self._score(trial, other) > self._score(trial, best) else best

    def _edge(self, axis: Axis, best: dict[str, Any]) -> str:
        return axis.edge(best[axis.key], [setting[axis.key] for setting in self.tried.values()])

    def _current(self, key: str) -> Any:
        """What the config says."""
        if key.startswith("option."):
            return options(self.backend.cfg, self.row)[key.removeprefix("option.")]
        value: Any = self.backend.cfg.method
        for name in key.split("."):
            value = getattr(value, name)
        return value

    def _score(self, trial: Workbench, setting: dict[str, Any]) -> float:
        """Mean p_gold of a setting to six digits, computed once."""
        name = in_words(setting)
        if name not in self.found:
            method = with_choices(self.backend.cfg.method, setting)
            chosen = options(self.backend.cfg, self.row) | options_among(setting)
            try:
                self.found[name] = self._p_gold(trial, self._answering(trial, method, chosen))
            except UserError as error:  # such as a training that diverges at this rate
                log.warning("%s: %s: %s", self.row.name, name, error)
                self.found[name] = np.zeros(len(self.held_out))
            self.tried[name] = setting
            self.progress(f"{self.row.name}: tuning on held-out references", len(self.found), BUDGET)
        return round(float(self.found[name].mean()), 6)  # as it is recorded

    def _answering(
        self, trial: Workbench, method: MethodConfig, chosen: dict[str, Any]
    ) -> Callable[[Sequence[Item]], list[Answer]]:
        """What answers items as the arm does under a setting."""
        row = self.row
        if row.builds == "arm":
            own = copy.copy(trial)
            own.cfg = replace(trial.cfg, method=method)
            arm = load(row.factory)(own, row, **chosen)
            arm.prepare()
            self.arms.append(arm)
            return arm.answer
        uses_bank = row.references in ("retrieved", "random", "all")
        return Rewirer(
            trial.engine,
            trial.tokenizer,
            method,
            Rewiring(row, partial(load(row.factory), **chosen)),
            bank=(trial.permuted_bank if row.permuted_options else trial.bank) if uses_bank else None,
            embedder=trial.question_embedder if uses_bank else None,
            seed=trial.cfg.seed,
            meter=self.answering,
        ).answer

    def _p_gold(self, trial: Workbench, answer: Callable[[Sequence[Item]], list[Answer]]) -> np.ndarray:
        """The right option's probability of each held-out reference, its label hidden from who answers."""
        unlabelled = [replace(item, gold=None, key=question_hash(item.question)) for item in self.held_out]
        found = []
        for some, labelled in zip(_chunks(unlabelled, trial), _chunks(self.held_out, trial), strict=True):
            found += [p_gold(item, each) for item, each in zip(labelled, answer(some), strict=True)]
        return np.array(found)


def _chunks(items: Sequence[Item], backend: Workbench) -> Iterator[Sequence[Item]]:
    size = backend.cfg.batch_size
    return (items[start : start + size] for start in range(0, len(items), size))


def p_gold(item: Item, answer: Answer) -> float:
    """exp(s_gold) / sum_c exp(s_c) over the options, s the scores that the task's rule ranks them by."""
    assert item.gold is not None
    scores = torch.tensor([score for score, _ in answer.scores[: item.n_choices]], dtype=torch.float64)
    if item.lengths:
        scores = scores / torch.tensor(item.lengths, dtype=torch.float64)
    return float(scores.softmax(-1)[item.gold])


def interval(values: np.ndarray) -> list[float]:
    """Mean, and the bounds of its 95% t interval; without an item to vary from, the mean itself."""
    mean, n = float(values.mean()), len(values)
    half = float(stdtrit(n - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return [round(number, 6) for number in (mean, mean - half, mean + half)]


def without_held_out(backend: Workbench, held_out: Sequence[Item]) -> Workbench:
    """The workbench as it is where the held-out references are the test.

    They are no references then, and nothing is trained on that is like them.
    """
    hidden = {item.id for item in held_out}
    trial = copy.copy(backend)
    items, notes = backend.reference_items
    shared = ("tokenizer", "engine", "embedder", "question_embedder")
    made = {name: getattr(backend, name) for name in shared}
    made |= {
        "reference_items": ([item for item in items if item.id not in hidden], notes),
        "bank": without(backend.bank, hidden),
        "test_questions": [*backend.test_questions, *(item.question for item in held_out)],
        "solutions": {},
    }
    trial.__dict__.pop("permuted_bank", None)
    trial.__dict__.update(made)
    return trial


def without(bank: ReferenceBank, hidden: set[tuple[str, int]]) -> ReferenceBank:
    """The bank less some of its items."""
    kept = [i for i, entry in enumerate(bank.items) if entry.item.id not in hidden]
    return replace(
        bank,
        items=[bank.items[i] for i in kept],
        embeddings=bank.embeddings[kept],
        pathways=bank.pathways[kept],
    )
