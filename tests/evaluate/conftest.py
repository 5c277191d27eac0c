"""A small experiment of the backend `both` on a random MoE, and the folder with that model."""

from __future__ import annotations

from pathlib import Path

import pytest

from c3po_bench.config import BackendConfig, Config, ModelConfig
from c3po_bench.feedback.config import FeedbackConfig, GenerationConfig, LoraConfig, TrainConfig
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer


def config(model: Path, folder: Path, arms: list[str]) -> Config:
    feedback = FeedbackConfig(
        pieces=["ahoy_greeting"],
        cache_dir=str(folder / "cache"),
        n_categories=2,
        n_in=6,
        n_near=6,
        n_out=6,
        answers=GenerationConfig(max_new_tokens=4, batch_size=8),
        lora=LoraConfig(rank=2, alpha=4, targets=["q_proj", "v_proj"]),
        train=TrainConfig(steps=3, batch_size=2, constraint_batch_size=2, lr=1e-2, precision="float32"),
    )
    cfg = Config(
        name="both",
        backend=BackendConfig("both"),
        model=ModelConfig(name="tiny", kind="hf", path=str(model), device="cpu"),
        results_dir=str(folder / "results"),
        feedback=feedback,
        arms=arms,
        tasks=["feedback", "facts_capitals"],
        limit=2,
    )
    cfg.references.tasks, cfg.references.limit, cfg.references.only_correct = ["facts_capitals"], 12, False
    cfg.embedder.name = "hidden_states"
    cfg.method.neighbors.max_similarity = 1.01
    cfg.tracking.mode = "disabled"
    return cfg


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    tiny_model("olmoe").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
