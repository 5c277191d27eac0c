"""The rewiring backend: one model, one engine, one reference bank, many arms."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.console import Progress
from c3po_bench.models.families import family_of
from c3po_bench.models.loading import load
from c3po_bench.rewiring import arms
from c3po_bench.rewiring.bank import ReferenceBank, build_bank
from c3po_bench.rewiring.embedders import load_embedder
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.meter import Meter, peak_memory
from c3po_bench.rewiring.pathway import check_method, critical_layers
from c3po_bench.rewiring.questions import Tokenizer
from c3po_bench.rewiring.rewirer import Rewirer

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from c3po_bench.config import Config
    from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger(__name__)


class RewiringBackend:
    """Builds the arms of a rewiring experiment, and what they share, when first needed."""

    def __init__(self, cfg: Config, tasks: TaskSet):
        self.cfg, self.tasks = cfg, tasks
        self.loaded = load(cfg.model)
        self.model_hash = self.loaded.hash
        self.layers = critical_layers(cfg.method.layers, list(family_of(self.loaded.model).layers))

    @staticmethod
    def check(cfg: Config) -> None:
        """Unknown arms, options and choices."""
        check_method(cfg.method)
        arms.check_arms(cfg)

    def arms(self) -> Iterator[Any]:
        """Base first, then the others in the order given."""
        for name in ["base", *[a for a in self.cfg.arms if a != "base"]]:
            if name in arms.BASELINES:
                yield arms.baseline(name)(self, **arms.options(self.cfg, name))
            else:
                yield RewiringArm(self, name)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Shared by bank and arms."""
        return Tokenizer(self.loaded.model, self.loaded.tokenizer)

    @cached_property
    def engine(self) -> Any:
        """The engine that `cfg.engine` names."""
        return load_engine(self.cfg.engine, self.loaded.model, self.layers, self.cfg.method.position)

    @cached_property
    def embedder(self) -> Any:
        """The embedder that `cfg.embedder` names."""
        return load_embedder(self.cfg.embedder, self.loaded)

    @cached_property
    def reference_items(self) -> tuple[list[Any], list[str]]:
        """Candidate references and notes on where they came from."""
        return self.draw_references()

    def draw_references(self, **changes: Any) -> tuple[list[Any], list[str]]:
        """The same references, rendered otherwise where `changes` (num_fewshot, permute_options) say so."""
        from c3po_bench.tasks.references import reference_items

        cfg = self.cfg
        rendering = {"num_fewshot": cfg.scoring.num_fewshot, "permute_options": cfg.scoring.permute_options} | changes
        return reference_items(
            cfg.references.tasks,
            data_root=cfg.data.root,
            rule=cfg.scoring.rule,
            limit=cfg.references.limit,
            seed=cfg.seed,
            tested=list(self.tasks.load()),
            **rendering,
        )

    @cached_property
    def test_questions(self) -> list[str]:
        """Texts of the questions that are evaluated."""
        found = []
        for task in self.tasks.load().values():
            docs: Any = list(task.eval_docs)[: self.cfg.limit]
            found += [self.tasks.question_text(task, doc) for doc in docs]
        return found

    @cached_property
    def test_hashes(self) -> set[str]:
        """Question hashes of all test items, evaluated or beyond the limit: no reference may have one of them."""
        from c3po_bench.tasks.items import question_hash

        found = set()
        for task in self.tasks.load().values():
            docs: Any = task.eval_docs
            found |= {question_hash(self.tasks.question_text(task, doc)) for doc in docs}
        return found

    @cached_property
    def bank(self) -> ReferenceBank:
        """The reference bank, built or loaded."""
        items, notes = self.reference_items
        for note in notes:
            log.info("references: %s", note)
        progress = Progress()
        bank = build_bank(
            items,
            engine=self.engine,
            tokenizer=self.tokenizer,
            embedder=self.embedder,
            folder=Path(self.cfg.results_dir) / "bank",
            model_hash=self.model_hash,
            test_hashes=self.test_hashes,
            only_correct=self.cfg.references.only_correct,
            progress=progress,
        )
        log.info("%d references, of %d read", len(bank), bank.counts["references_read"])
        return bank


class RewiringArm:
    """Base, a surrogate or a control, on the shared engine."""

    def __init__(self, backend: RewiringBackend, name: str):
        self.backend, self.name = backend, name
        self.meter = Meter()
        self.uses_bank = arms.needs_bank(name)
        self.reads_labels = name != "base" and arms.spec_of(name).neighborhood == "self"

    def identity(self) -> dict[str, Any]:
        """All of the method for a surrogate, nothing of it for base."""
        cfg = self.backend.cfg
        found: dict[str, Any] = {"engine": cfg.engine}
        if self.name != "base":
            found |= {"method": asdict(cfg.method), "options": arms.options(cfg, self.name), "seed": cfg.seed}
        if self.uses_bank:
            found |= {"references": asdict(cfg.references), "embedder": asdict(cfg.embedder)}
        return found

    def settings(self) -> dict[str, Any]:
        """Columns of the ablation table."""
        return method_settings(self.backend.cfg, self.name, self.uses_bank)

    def lm(self) -> LM:
        """The rewired model."""
        from c3po_bench.rewiring.lm import RewiredLM

        backend = self.backend
        rewirer = Rewirer(
            backend.engine,
            backend.cfg.method,
            arms.recipe(backend.cfg, self.name),
            bank=backend.bank if self.uses_bank else None,
            embedder=backend.embedder if self.uses_bank else None,
            seed=backend.cfg.seed,
            meter=self.meter,
        )
        return RewiredLM(rewirer, backend.tokenizer)

    def cost(self) -> dict[str, Any]:
        """Phases of this process so far."""
        return {
            "phases": self.meter.phases(),
            "peak_memory_bytes": peak_memory(),
            "credited_seconds": self.meter.credited,
        }

    def report(self) -> dict[str, Any]:
        """Counts of the references."""
        if not self.uses_bank:
            return {"counts": {}, "curves": {}, "notes": []}
        return {"counts": self.backend.bank.counts, "curves": {}, "notes": self.backend.reference_items[1]}


def method_settings(cfg: Config, arm: str, uses_bank: bool) -> dict[str, Any]:
    """Flat columns that an ablation may vary; empty for base, which none of them touches."""
    if arm == "base":
        return {}
    method = cfg.method
    settings: dict[str, Any] = {
        "layers": method.layers,
        "experts": method.experts,
        "position": method.position,
        "parameterization": method.parameterization,
        "mixing": method.mixing,
        "final_mixing": method.final_mixing,
        "mass": method.mass,
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
            "k": near.k if near.kind == "knn" else None,
            "epsilon": near.epsilon if near.kind == "epsilon" else None,
            "kernel": method.kernel.name,
            "bandwidth": method.kernel.bandwidth,
            "embedder": cfg.embedder.model or cfg.embedder.name,
            "reference_size": cfg.references.limit,
        }
    return settings | {f"option_{k}": v for k, v in arms.options(cfg, arm).items()}
