"""Tiny models, prompts and whole experiments in memory, for the tests of the rewiring room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from c3po_bench.config import Config
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer
from c3po_bench.rewiring.tokens import Tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models() -> Callable[[str], Any]:
    """Tiny models by family, built once."""
    built: dict[str, Any] = {}

    def get(kind: str = "olmoe") -> Any:
        if kind not in built:
            built[kind] = tiny_model(kind)
        return built[kind]

    return get


@pytest.fixture(scope="session")
def tokenizer(models: Callable[[str], Any]) -> Tokenizer:
    """The tokenizer that arms share, over the tiny OLMoE."""
    return Tokenizer(models("olmoe"), tiny_tokenizer())


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Config]:
    """Configs of experiments on the tiny model and our own facts: nothing to download."""

    def make(**changes: Any) -> Config:
        cfg = Config(
            name="tiny", results_dir=str(tmp_path / "results"), limit=4, batch_size=4, log_level="error"
        )
        cfg.tracking.mode = "disabled"
        cfg.model.name = cfg.model.kind = "tiny"
        cfg.model.path, cfg.model.device = "olmoe", "cpu"
        cfg.tasks = ["facts_capitals"]
        cfg.references.tasks, cfg.references.limit = ["facts_capitals"], 24
        cfg.embedder.name = "hidden_states"
        cfg.method.layers, cfg.method.experts, cfg.method.steps = "last:2", "top:5", 3
        cfg.method.neighbors.max_similarity = 0.9999  # to a random model all questions look much alike
        for path, value in changes.items():
            *parents, last = path.split("__")
            section: Any = cfg
            for parent in parents:
                section = getattr(section, parent)
            assert hasattr(section, last), path
            setattr(section, last, value)
        return cfg

    return make


@pytest.fixture(autouse=True)
def no_environment_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval ends each evaluation with a `pip list` of two seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
