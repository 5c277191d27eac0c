"""The rewiring backend: one model, one engine, one reference bank, many arms."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import unknown
from c3po_bench.models.families import family_of
from c3po_bench.models.loading import load
from c3po_bench.rewiring import arms
from c3po_bench.rewiring.bank import ReferenceBank, build_bank
from c3po_bench.rewiring.embedders import QuestionEmbedder, check_embedder, embedder_identity, load_embedder
from c3po_bench.rewiring.engines import ENGINES, load_engine
from c3po_bench.rewiring.kernels import check_kernel
from c3po_bench.rewiring.meter import Meter, peak_memory
from c3po_bench.rewiring.pathway import check_method, critical_layers
from c3po_bench.rewiring.questions import Tokenizer
from c3po_bench.rewiring.rewirer import Descents, Rewirer
from c3po_bench.rewiring.states import VERSION, StateStore
from c3po_bench.rewiring.tune import Tuning, tune
from c3po_bench.runtime.console import Progress
from c3po_bench.store.identity import content_hash

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from c3po_bench.config import Config
    from c3po_bench.rewiring.config import MethodConfig
    from c3po_bench.tasks.items import Item
    from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger(__name__)
ROUTING = ("layers", "experts", "position", "final_mixing", "mass")
READ = {"routing_temperature": ROUTING} | dict.fromkeys(arms.MODES, (*ROUTING, "k", "kernel", "bandwidth"))
"""What of the method an arm reads, where that is not all of it.

A sweep over other keys need not run it again.
"""


class RewiringBackend:
    """Builds the arms of a rewiring experiment, and what they share, when first needed."""

    def __init__(self, cfg: Config, tasks: TaskSet):
        self.cfg, self.tasks = cfg, tasks
        self.loaded = load(cfg.model)
        self.model_hash = self.loaded.hash
        self.descents: Descents = {}
        self.layers = critical_layers(cfg.method.layers, list(family_of(self.loaded.model).layers))
        arms.check_tasks(cfg, tasks)
        tuned = cfg.method.tune != "none" and any(map(arms.learns_a_rate, cfg.arms))
        if tuned or any(name in arms.BASELINES or arms.needs_bank(name) for name in cfg.arms):
            _ = self.reference_items  # an unknown task among them is refused before anything is scored

    @staticmethod
    def check(cfg: Config) -> None:
        """Unknown arms, options and choices."""
        if cfg.engine not in ENGINES:
            raise unknown("engine", cfg.engine, ENGINES)
        check_method(cfg.method)
        check_kernel(cfg.method.kernel)
        check_embedder(cfg.embedder)
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
        engine = load_engine(self.cfg.engine, self.loaded.model, self.layers, self.cfg.method.position)
        if self.cfg.engine == "suffix":
            key = content_hash([self.model_hash, self.cfg.model.dtype, min(self.layers), VERSION], 16)
            most = int(self.cfg.bank_gb * 2**30)
            engine.store = StateStore(Path(self.cfg.results_dir) / "bank" / f"states-{key}", most)
        return engine

    @cached_property
    def embedder(self) -> Any:
        """The embedder that `cfg.embedder` names."""
        return load_embedder(self.cfg.embedder, self.loaded)

    @cached_property
    def question_embedder(self) -> QuestionEmbedder:
        """The same for test questions, shared by the arms."""
        return QuestionEmbedder(self.embedder)

    @cached_property
    def reference_items(self) -> tuple[list[Any], list[str]]:
        """Candidate references and notes on where they came from."""
        return self.draw_references()

    @cached_property
    def reference_identity(self) -> dict[str, Any]:
        """Which references there are, what they say (another data root may say other things), and what finds them."""
        cfg = self.cfg
        said = [
            [item.task, item.doc_id, item.question, item.pairs, item.gold] for item in self.reference_items[0]
        ]
        return {
            "references": asdict(cfg.references),
            "reference_items": content_hash(said, 16),
            "embedder": embedder_identity(cfg.embedder),
        }

    def draw_references(self, **changes: Any) -> tuple[list[Any], list[str]]:
        """The same references, rendered otherwise where `changes` (num_fewshot, permute_options) say so."""
        from c3po_bench.tasks.references import reference_items

        cfg = self.cfg
        rendering = {
            "num_fewshot": cfg.scoring.num_fewshot,
            "permute_options": cfg.scoring.permute_options,
        } | changes
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
        """Question hashes of all test items, evaluated or beyond the limit.

        No reference may have one of them.
        """
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
        bank = self._bank(items, self.cfg.references.only_correct)
        log.info("%d references, of %d read", len(bank), bank.counts["references_read"])
        return bank

    @cached_property
    def permuted_bank(self) -> ReferenceBank:
        """The references of `bank`, no others, their prompts listing the options in another order."""
        kept = {(item.task, item.doc_id): item for item in self.bank.items}
        items = [
            item for item in self.draw_references(permute_options=True)[0] if (item.task, item.doc_id) in kept
        ]
        bank = self._bank(items, only_correct=False)
        changed = sum(_prompts(item) != _prompts(kept[item.task, item.doc_id]) for item in bank.items)
        bank.counts = {**self.bank.counts, "references_reordered": changed}
        return bank

    def _bank(self, items: list[Any], only_correct: bool) -> ReferenceBank:
        return build_bank(
            items,
            engine=self.engine,
            tokenizer=self.tokenizer,
            embedder=self.embedder,
            folder=Path(self.cfg.results_dir) / "bank",
            model_hash=self.model_hash,
            test_hashes=self.test_hashes,
            only_correct=only_correct,
            progress=Progress(),
        )

    @cached_property
    def tuning(self) -> Tuning:
        """The learning rate and mixing chosen on held-out references."""
        return tune(self)


class RewiringArm:
    """Base, a surrogate or a control, on the shared engine."""

    def __init__(self, backend: RewiringBackend, name: str):
        self.backend, self.name = backend, name
        self.meter = Meter()
        self.uses_bank = arms.needs_bank(name)
        self.tuned = backend.cfg.method.tune != "none" and arms.learns_a_rate(name)
        self.reads_labels = name != "base" and arms.spec_of(name).neighborhood == "self"

    def identity(self) -> dict[str, Any]:
        """What of the method the arm reads (nothing for base), and of the references."""
        cfg = self.backend.cfg
        found: dict[str, Any] = {"engine": cfg.engine}
        if self.name != "base":
            found |= {"method": asdict(cfg.method), "options": arms.options(cfg, self.name), "seed": cfg.seed}
        if self.uses_bank or self.tuned:
            found |= self.backend.reference_identity
        if self.name in READ:
            found["method"] = [self.settings().get(key) for key in READ[self.name]] + [
                cfg.method.kernel.degree
            ]
            found.pop("embedder", None)
        return found

    @property
    def method(self) -> MethodConfig:
        """The shared method, its rate and mixing tuned where `method.tune` asks for it."""
        return self.backend.tuning.method if self.tuned else self.backend.cfg.method

    @property
    def bank(self) -> ReferenceBank:
        """The references that this arm sees."""
        return (
            self.backend.permuted_bank if arms.spec_of(self.name).options == "permuted" else self.backend.bank
        )

    def settings(self) -> dict[str, Any]:
        """Columns of the ablation table."""
        return method_settings(self.backend.cfg, self.method, self.name, self.uses_bank)

    def lm(self) -> LM:
        """The rewired model."""
        from c3po_bench.rewiring.lm import RewiredLM

        backend = self.backend
        rewirer = Rewirer(
            backend.engine,
            self.method,
            arms.recipe(backend.cfg, self.name),
            bank=self.bank if self.uses_bank else None,
            embedder=backend.question_embedder if self.uses_bank else None,
            seed=backend.cfg.seed,
            meter=self.meter,
            descents=backend.descents,
        )
        return RewiredLM(rewirer, backend.tokenizer)

    def cost(self) -> dict[str, Any]:
        """Phases of this process so far; tuning counts once, whichever process did it."""
        phases = self.meter.phases()
        if self.tuned:
            phases["tune"] = self.backend.tuning.phase
        return {
            "phases": phases,
            "peak_memory_bytes": peak_memory(),
            "credited_seconds": self.meter.cached_seconds,
        }

    def report(self) -> dict[str, Any]:
        """Counts of the references, and notes that a reader of the numbers needs."""
        counts: dict[str, int] = {}
        notes: list[str] = []
        if self.uses_bank:
            counts, notes = self.bank.counts, list(self.backend.reference_items[1])
            if counts.get("references_reordered") == 0:
                notes.append(
                    f"{self.name}: no reference's prompt lists its options, so this control repeats ngd"
                )
        if self.tuned:
            notes.append(self.backend.tuning.note)
        notes += self.meter.notes
        return {"counts": counts, "curves": {}, "notes": notes}


def _prompts(item: Item) -> list[str]:
    """An item's prompts, whichever choice is behind each: exchanged ones (WinoGrande) are the same."""
    return sorted(context for context, _ in item.pairs)


def method_settings(cfg: Config, method: MethodConfig, arm: str, uses_bank: bool) -> dict[str, Any]:
    """Flat columns that an ablation may vary; empty for base, which none of them touches."""
    if arm == "base":
        return {}
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
            "k": near.k if near.kind == "knn" or arm in READ else None,
            "epsilon": near.epsilon if near.kind == "epsilon" else None,
            "kernel": method.kernel.name,
            "bandwidth": method.kernel.bandwidth,
            "embedder": cfg.embedder.model or cfg.embedder.name,
            "reference_size": cfg.references.limit,
        }
    if arm in READ:
        settings = {key: value for key, value in settings.items() if key in (*READ[arm], "reference_size")}
    return settings | {f"option_{k}": v for k, v in arms.options(cfg, arm).items()}
