"""The rewiring backend: many arms on one workbench."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from c3po_bench.config import Config
from c3po_bench.contract import Answer, Arm, ArmRow, Cost, Item, MakeTasks, Report, TimedParts
from c3po_bench.errors import UserError
from c3po_bench.models.encoding import ItemRefused
from c3po_bench.registry import load
from c3po_bench.rewiring import arms
from c3po_bench.rewiring.bank import ReferenceBank
from c3po_bench.rewiring.choices import Tuning, chooser
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.embedders import EMBEDDERS
from c3po_bench.rewiring.engines import ENGINES
from c3po_bench.rewiring.kernels import check_kernel
from c3po_bench.rewiring.movement import summary
from c3po_bench.rewiring.pathway import check_method
from c3po_bench.rewiring.rewirer import Rewirer, Rewiring
from c3po_bench.rewiring.tune import protocol, tune
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.meter import Meter
from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger(__name__)


class RewiringBackend(Workbench):
    """Builds the arms of a rewiring experiment over its workbench."""

    def __init__(self, cfg: Config, tasks: TaskSet):
        super().__init__(cfg, tasks)
        self._tunings: dict[str, Tuning] = {}
        arms.check_tasks(cfg, tasks)
        rows = [arms.ARMS[name] for name in cfg.arms]
        tuned = any(self.chooser(row) for row in rows)
        self.uses_references = tuned or any(row.references not in ("none", "own") for row in rows)
        if self.uses_references:
            _ = self.reference_items  # an unknown task among them is refused before anything is scored

    @classmethod
    def open(cls, cfg: Config, make_tasks: MakeTasks) -> RewiringBackend:
        """With the tasks of the config alone."""
        return cls(cfg, make_tasks(None))

    @staticmethod
    def check(cfg: Config) -> None:
        """Refuse unknown arms, options and choices."""
        ENGINES.check(cfg.engine)
        check_method(cfg.method)
        check_kernel(cfg.method.kernel)
        EMBEDDERS.check(cfg.embedder.name)
        arms.check_arms(cfg)

    def check_items(self, items: Iterable[Item]) -> dict[str, tuple[int, int]]:
        """What is evaluated, and the references."""
        virtual = [arms.options(self.cfg, arms.ARMS[name]).get("tokens", 0) for name in self.cfg.arms]
        before = max(virtual, default=0)
        try:
            self.tokenizer.check(self.reference_items[0] if self.uses_references else (), before)
        except ItemRefused as error:
            raise UserError(f"references.tasks: {error}") from error
        return self.tokenizer.check(items, before)

    def timed_parts(self) -> TimedParts:
        """Model, tokenizer and, where an arm needs them, embedder and references."""
        if not self.uses_references:
            return TimedParts(self.loaded.model, self.loaded.tokenizer)
        count = len(self.reference_items[0])
        return TimedParts(self.loaded.model, self.loaded.tokenizer, self.embedder, count)

    def arms(self) -> Iterator[Arm]:
        """Base first, then the others in the order given."""
        for name in dict.fromkeys(["base", *self.cfg.arms]):
            row = arms.ARMS[name]
            if row.builds == "arm" and row.role != "base":
                for seed in (self.cfg.seeds if row.trains else ()) or [self.cfg.seed]:
                    yield TunedBaseline(self, row, seed) if self.chooser(row) else self.baseline(row, seed)
            else:
                yield RewiringArm(self, row)

    def close(self) -> None:
        """Nothing to give back: arms leave the shared model as it was."""

    def baseline(self, row: ArmRow, seed: int, chosen: dict[str, Any] | None = None) -> Arm:
        """A baseline with its options, `chosen` ones among them.

        `seed` is of its training, where it trains.
        """
        arm = load(row.factory)(self, row, **arms.options(self.cfg, row) | (chosen or {}))
        if row.trains:
            arm.seed = seed
        return arm

    def chooser(self, row: ArmRow) -> ArmRow | None:
        """The arm whose choice on held-out references `row` takes, where `method.tune` asks for one."""
        return None if self.cfg.method.tune == "none" else chooser(row)

    def tuning(self, row: ArmRow) -> Tuning:
        """The settings chosen for `row` on held-out references."""
        whose = self.chooser(row)
        assert whose is not None
        if whose.name not in self._tunings:
            self._tunings[whose.name] = tune(self, whose)
        return self._tunings[whose.name]


class RewiringArm(Arm):
    """Base, a method or a control, on the shared engine."""

    def __init__(self, backend: RewiringBackend, row: ArmRow):
        self.backend, self.row = backend, row
        self.options = arms.options(backend.cfg, row)
        self.meter = Meter()
        self.uses_bank = row.references in ("retrieved", "random", "all")
        self.tuned = backend.chooser(row) is not None
        self._rewirer: Rewirer | None = None
        self._movement: dict[str, Any] = {}

    def identity(self) -> dict[str, Any]:
        """What of the method the arm reads (nothing for base), and of the references."""
        cfg = self.backend.cfg
        parts: dict[str, Any] = {"engine": cfg.engine}
        if self.row.role != "base":
            parts |= {"method": asdict(cfg.method), "options": self.options, "seed": cfg.seed}
        if self.uses_bank or self.tuned:
            parts |= self.backend.reference_identity
        if whose := self.backend.chooser(self.row):
            parts["tuned"] = protocol(whose)
        elif self.row.reads is not None:
            read = method_settings(cfg, cfg.method, self.row, self.options, self.uses_bank)
            parts["method"] = [read.get(key) for key in self.row.reads] + [cfg.method.kernel.degree]
            parts.pop("embedder", None)
        return parts

    @property
    def method(self) -> MethodConfig:
        """The shared method, with what was chosen for this arm where `method.tune` asks for it."""
        method = self.backend.cfg.method
        return self.backend.tuning(self.row).method(method) if self.tuned else method

    @property
    def chosen_options(self) -> dict[str, Any]:
        """Its options, with what was chosen among them."""
        return self.options | (self.backend.tuning(self.row).options if self.tuned else {})

    @property
    def bank(self) -> ReferenceBank:
        """The references that this arm sees."""
        return self.backend.permuted_bank if self.row.permuted_options else self.backend.bank

    def settings(self) -> dict[str, Any]:
        """Columns of the ablation table."""
        return method_settings(self.backend.cfg, self.method, self.row, self.chosen_options, self.uses_bank)

    def prepare(self) -> None:
        """Tune and read the references where nobody has."""
        backend, rewiring = self.backend, None
        if self.row.role != "base":
            rewiring = Rewiring(self.row, partial(load(self.row.factory), **self.chosen_options))
        self._rewirer = Rewirer(
            backend.engine,
            backend.tokenizer,
            self.method,
            rewiring,
            bank=self.bank if self.uses_bank else None,
            embedder=backend.question_embedder if self.uses_bank else None,
            seed=backend.cfg.seed,
            meter=self.meter,
            solutions=backend.solutions,
        )

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Under the pathway that is found for each item."""
        assert self._rewirer is not None, "prepare comes first"
        return self._rewirer.answer(items)

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """The rows as they are; how far the arm moved them is part of the report."""
        self._movement = summary(rows)
        return rows, {}

    def cost(self) -> Cost:
        """Phases of this process so far; tuning counts once, whichever process did it."""
        cost = self.meter.cost()
        if self.tuned:
            return replace(cost, phases={**cost.phases, "tune": self.backend.tuning(self.row).phase})
        return cost

    def report(self) -> Report:
        """Counts of the references, and notes that a reader of the numbers needs."""
        counts: dict[str, int] = {}
        notes = list(self.backend.engine.notes)
        if self.uses_bank:
            counts, notes = self.bank.counts, list(self.backend.reference_items[1])
            if counts.get("references_reordered") == 0:
                notes.append(
                    f"{self.row.name}: no reference's prompt lists its options, so this control repeats ngd"
                )
        tuning = self.backend.tuning(self.row) if self.tuned else None
        notes += [tuning.note] if tuning else []
        if self.row.role != "base":
            notes += selects_everything(self.method.experts, self.backend.engine.family.num_experts)
        return Report(counts, {}, notes + self.meter.notes, self._movement, tuning.record() if tuning else {})

    def close(self) -> None:
        """The shared model was never changed: overrides last for a forward pass."""
        self._rewirer = None


class TunedBaseline(Arm):
    """A baseline whose options are chosen on held-out references before it is made ready."""

    def __init__(self, backend: RewiringBackend, row: ArmRow, seed: int):
        self.backend, self.row, self.seed = backend, row, seed
        self.inner = backend.baseline(row, seed)

    def identity(self) -> dict[str, Any]:
        """What the baseline is at the options given, and that they are chosen, by what."""
        tuned = {"method": asdict(self.backend.cfg.method), "tuned": protocol(self.row)}
        return self.inner.identity() | tuned

    def settings(self) -> dict[str, Any]:
        """The baseline's, with what was chosen."""
        return self.inner.settings()

    def prepare(self) -> None:
        """Choose, and make the baseline ready that was chosen."""
        self.inner = self.backend.baseline(self.row, self.seed, self.backend.tuning(self.row).options)
        self.inner.prepare()

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """As the baseline does."""
        return self.inner.answer(items)

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """As the baseline does."""
        return self.inner.finish(rows)

    def cost(self) -> Cost:
        """The baseline's, and that of choosing, where it is done."""
        cost = self.inner.cost()
        return replace(cost, phases=cost.phases | {"tune": self.backend.tuning(self.row).phase})

    def report(self) -> Report:
        """The baseline's, and what was chosen."""
        report, tuning = self.inner.report(), self.backend.tuning(self.row)
        return replace(report, notes=[*report.notes, tuning.note], tuning=tuning.record())

    def close(self) -> None:
        """As the baseline does."""
        self.inner.close()


def selects_everything(experts: str, count: int) -> list[str]:
    """A note where `method.experts` names no fewer experts than the model has."""
    most = experts.removeprefix("top:")
    if not most.isdigit() or int(most) < count:
        return []
    return [f"method.experts={experts} selects everything: this model has {count} experts a layer"]


def method_settings(
    cfg: Config, method: MethodConfig, row: ArmRow, options: dict[str, Any], uses_bank: bool
) -> dict[str, Any]:
    """Flat columns that an ablation may vary; empty for base, which none of them touches."""
    if row.role == "base":
        return {}
    settings: dict[str, Any] = {
        "layers": method.layers,
        "experts": method.experts,
        "position": method.position,
        "parameterization": method.parameterization,
        "mixing": method.mixing,
        "final_mixing": method.final_mixing,
        "preserve_total_weight": method.preserve_total_weight,
        "optimizer": method.optimizer,
        "lr": method.learning_rate,
        "schedule": method.schedule,
        "steps": method.steps,
        "loss": method.loss,
    }
    if uses_bank:
        near = method.neighbors
        settings |= {
            "neighborhood": near.kind,
            "k": near.k if near.kind == "knn" or row.reads is not None else None,
            "epsilon": near.epsilon if near.kind == "epsilon" else None,
            "kernel": method.kernel.name,
            "bandwidth": method.kernel.bandwidth,
            "embedder": cfg.embedder.model or cfg.embedder.name,
            "reference_size": cfg.references.limit,
        }
    if row.reads is not None:
        settings = {key: value for key, value in settings.items() if key in (*row.reads, "reference_size")}
    return settings | {f"option_{k}": v for k, v in options.items()}
