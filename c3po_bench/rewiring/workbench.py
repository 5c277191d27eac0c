"""The workbench of a rewiring experiment: what its arms share, each part made when it is first needed."""

import logging
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from c3po_bench.config import Config
from c3po_bench.contract import Item
from c3po_bench.models.loading import load as load_model
from c3po_bench.models.routing import family_of
from c3po_bench.rewiring.bank import ReferenceBank, build_bank
from c3po_bench.rewiring.embedders import EMBEDDERS, QuestionEmbedder, embedder_identity
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.engines.suffix import SuffixEngine
from c3po_bench.rewiring.pathway import critical_layers
from c3po_bench.rewiring.rewirer import Solutions
from c3po_bench.rewiring.states import VERSION, StateStore
from c3po_bench.rewiring.tokens import Tokenizer
from c3po_bench.runtime.console import Progress
from c3po_bench.store.identity import content_hash
from c3po_bench.tasks.duplicates import question_hash
from c3po_bench.tasks.references import reference_items
from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger(__name__)


class Workbench:
    """One model, one engine, one reference bank.

    Args:
        cfg: the experiment.
        tasks: what is evaluated.
    """

    def __init__(self, cfg: Config, tasks: TaskSet):
        self.cfg, self.tasks = cfg, tasks
        self.loaded = load_model(cfg.model)
        self.model_hash = self.loaded.hash
        self.solutions: Solutions = {}
        self.layers = critical_layers(cfg.method.layers, list(family_of(self.loaded.model).layers))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Shared by bank and arms."""
        return Tokenizer(self.loaded.model, self.loaded.tokenizer)

    @cached_property
    def engine(self) -> Any:
        """The engine that `cfg.engine` names."""
        engine = load_engine(self.cfg.engine, self.loaded.model, self.layers, self.cfg.method.position)
        if isinstance(engine, SuffixEngine):
            key = content_hash([self.model_hash, self.cfg.model.dtype, min(self.layers), VERSION], 16)
            most = int(self.cfg.reference_cache_gb * 2**30)
            engine.store = StateStore(Path(self.cfg.results_dir) / "bank" / f"states-{key}", most)
        return engine

    @cached_property
    def embedder(self) -> Any:
        """The embedder that `cfg.embedder` names."""
        return EMBEDDERS[self.cfg.embedder.name](self.cfg.embedder, self.loaded)

    @cached_property
    def question_embedder(self) -> QuestionEmbedder:
        """The same for test questions, shared by the arms."""
        return QuestionEmbedder(self.embedder)

    @cached_property
    def reference_items(self) -> tuple[list[Item], list[str]]:
        """Candidate references and notes on where they came from."""
        return self.draw_references()

    @cached_property
    def reference_identity(self) -> dict[str, Any]:
        """Which references there are, what they say (another data root may differ), and what finds them."""
        cfg = self.cfg
        content = [[*item.id, item.question, item.requests, item.gold] for item in self.reference_items[0]]
        return {
            "references": asdict(cfg.references),
            "reference_items": content_hash(content, 16),
            "embedder": embedder_identity(cfg.embedder),
        }

    def draw_references(self, **changes: Any) -> tuple[list[Item], list[str]]:
        """The same references, rendered otherwise where `changes` (num_fewshot, permute_options) say so."""
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
        return self._questions(self.cfg.limit)

    @cached_property
    def test_hashes(self) -> set[str]:
        """Question hashes of all test items, evaluated or beyond the limit: no reference may have one of them."""
        return set(map(question_hash, self._questions(None)))

    def _questions(self, limit: int | None) -> list[str]:
        questions = []
        for task in self.tasks.load().values():
            docs: Any = list(task.eval_docs)[:limit]
            questions += [self.tasks.question_text(task, doc) for doc in docs]
        return questions

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
        kept = {entry.item.id: entry.item for entry in self.bank.items}
        items = [item for item in self.draw_references(permute_options=True)[0] if item.id in kept]
        bank = self._bank(items, only_correct=False)
        changed = sum(_contexts(entry.item) != _contexts(kept[entry.item.id]) for entry in bank.items)
        bank.counts = {**self.bank.counts, "references_reordered": changed}
        return bank

    def _bank(self, items: list[Item], only_correct: bool) -> ReferenceBank:
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


def _contexts(item: Item) -> list[str]:
    """An item's contexts, whichever choice is behind each: exchanged ones (WinoGrande) are the same."""
    return sorted(context for context, _ in item.requests)
