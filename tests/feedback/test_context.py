"""Several experiments in one process share one model: nothing of one may be left for the next."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.evaluate import run as harness
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.config import ChatConfig
from c3po_bench.feedback.context import Subject, SynthesisContext
from c3po_bench.models import loading
from tests.feedback.test_arms import config


def experiment(tiny: Path, folder: Path, arms: list[str], targets: list[str], prompts: int) -> dict[str, Any]:
    cfg = config(tiny, folder, arms)
    cfg.feedback.pieces, cfg.feedback.lora.targets = ["ahoy_greeting"], targets
    cfg.feedback.n_in = cfg.feedback.n_near = cfg.feedback.n_out = prompts
    cfg.feedback.train = replace(cfg.feedback.train, lr=0.3, steps=4)
    return {run.arm: run for run in harness.run(cfg)}


def new_process() -> None:
    loading._loaded.clear()


def cached_answers(folder: Path) -> dict[str, str]:
    lines = [
        line
        for path in folder.glob("cache/ledgers/answers-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return {entry["key"]: entry["value"]["text"] for entry in map(json.loads, lines)}


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["all-linear"]], ids="+".join)
def test_an_adapter_does_not_outlive_its_experiment(tiny: Path, tmp_path: Path, targets: list[str]):
    new_process()
    experiment(tiny, tmp_path / "one", ["base", "c3po"], targets, 12)
    second = experiment(tiny, tmp_path / "one", ["base", "in_context", "c3po"], targets, 24)
    new_process()
    alone = experiment(tiny, tmp_path / "alone", ["base", "in_context", "c3po"], targets, 24)
    both = cached_answers(tmp_path / "one")
    assert {key: both[key] for key in cached_answers(tmp_path / "alone")} == cached_answers(
        tmp_path / "alone"
    )
    for arm, run in alone.items():
        assert [row["response"] for row in second[arm].samples()] == [
            row["response"] for row in run.samples()
        ], arm


def test_a_model_is_loaded_without_the_adapter_that_was_left_on_it(tiny: Path, tmp_path: Path):
    new_process()
    cfg = config(tiny, tmp_path, ["base", "c3po"])
    *_, arm = harness.open_backend(cfg).arms()
    arm.prepare()
    (loaded,) = loading._loaded.values()
    assert any("lora_" in name for name, _ in loaded.model.named_modules())
    assert loading.load(config(tiny, tmp_path, []).model) is loaded
    assert not any("lora_" in name for name, _ in loaded.model.named_modules())


def test_the_model_as_its_own_judge_speaks_without_the_adapter(tiny: Path, tmp_path: Path):
    new_process()
    cfg = config(tiny, tmp_path, ["base", "c3po"])
    experiment(tiny, tmp_path, ["base", "c3po"], ["all-linear"], 12)
    said = []
    for name in ("adapted", "released"):
        cfg.feedback.cache_dir = str(tmp_path / name)
        subject = Subject(cfg.model)
        subject._loaded = next(iter(loading._loaded.values()))
        if name == "released":
            subject.release()
        chat = open_chat(
            ChatConfig(kind="transformers", max_tokens=8, temperature=0.0),
            SynthesisContext(cfg.feedback, subject, 0),
        )
        said.append(chat.complete("x", [[{"role": "user", "content": "hello"}]]))
    assert said[0] == said[1]
