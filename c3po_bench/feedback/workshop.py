"""What every stage shares: the model being tuned, the ledgers of finished calls, the counts of what went wrong."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.ledger import Ledger
from c3po_bench.models import cache_dir


class Subject:
    """The model being tuned: loaded when first needed, always without adapters at rest."""

    def __init__(self, model_cfg: Any) -> None:
        self._cfg, self._loaded = model_cfg, None

    def _load(self) -> Any:
        if self._loaded is None:
            from c3po_bench.models.loading import load

            self._loaded = load(self._cfg)
        return self._loaded

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._load().model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._load().tokenizer

    @property
    def hash(self) -> str:
        """The identity of its weights."""
        return self._load().hash


class Workshop:
    """The place where a piece becomes data: config, subject, cache folder, seed, ledgers and counts."""

    def __init__(self, cfg: FeedbackConfig, subject: Any, seed: int) -> None:
        self.cfg, self.subject, self.seed = cfg, subject, seed
        self.folder = Path(cfg.cache_dir).expanduser() if cfg.cache_dir else cache_dir() / "feedback"
        self.counts: Counter[str] = Counter()
        self._ledgers: dict[str, Ledger] = {}
        self._lock = threading.Lock()

    def ledger(self, stage: str) -> Ledger:
        """The ledger of a stage, opened once."""
        with self._lock:
            if stage not in self._ledgers:
                self._ledgers[stage] = Ledger(self.folder / "ledgers" / f"{stage}.jsonl")
            return self._ledgers[stage]

    def count(self, name: str, n: int = 1) -> None:
        """Add to a count that ends in the result (gaps, duplicates, filtered revisions)."""
        with self._lock:
            self.counts[name] += n
