"""What a tuned arm's adapter and run are known by: everything that changes its numbers, and nothing of it twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from c3po_bench.config import Config
from c3po_bench.evaluate import run as harness
from c3po_bench.feedback import backend
from c3po_bench.feedback.config import ChatConfig, FeedbackConfig
from c3po_bench.feedback.training.recipes import make_plan
from tests.feedback.test_arms import config


def identity(arm: str, **train: Any) -> dict[str, Any]:
    cfg = FeedbackConfig()
    return make_plan(arm, replace(cfg, train=replace(cfg.train, **train))).identity()


@pytest.mark.parametrize(
    ("arm", "one", "two"),
    [
        ("c3po_from_sft", {"sft_lr": 5e-5}, {"sft_lr": 1e-3}),
        ("c3po_from_sft", {"sft_steps": 5}, {"sft_steps": 500}),
        ("c3po_from_sft", {"sft_steps": 0, "epochs": 1.0}, {"sft_steps": 0, "epochs": 5.0}),
        ("scd", {"sft_steps": 0, "epochs": 1.0}, {"sft_steps": 0, "epochs": 5.0}),
    ],
)
def test_whatever_trains_is_in_the_identity(arm: str, one: dict[str, Any], two: dict[str, Any]):
    assert identity(arm, **one) != identity(arm, **two)


def test_what_is_not_trained_by_is_not_in_the_identity():
    assert identity("c3po", sft_lr=1e-3) == identity("c3po", sft_lr=5e-5)
    assert identity("scd", sft_steps=5, epochs=5.0) == identity("scd", sft_steps=5, epochs=1.0)


def arm_identity(cfg: Config) -> dict[str, Any]:
    """Of the last arm."""
    *_, arm = harness.open_backend(cfg).arms()
    return arm.identity()


def test_the_ceiling_is_known_by_its_revisions(tiny: Path, tmp_path: Path):
    cfg = config(tiny, tmp_path, ["revised"])
    backend = harness.open_backend(cfg)
    *_, arm = backend.arms()
    rules, (first, *others) = arm.identity(), backend.session.datasets
    assert arm.identity() == rules
    otherwise = [replace(e, revised=f"{e.revised}!") if e.revised else e for e in first.examples]
    backend.session.datasets[:] = [replace(first, examples=tuple(otherwise)), *others]
    assert arm.identity() != rules


@pytest.mark.parametrize(
    "changes",
    [{"base_url": "http://b/v1"}, {"model": "n"}, {"temperature": 1.0}, {"top_p": 0.5}, {"max_tokens": 5}],
    ids=str,
)
def test_a_run_is_known_by_its_judge(tiny: Path, tmp_path: Path, changes: dict[str, Any]):
    cfg = config(tiny, tmp_path, ["in_context"])
    cfg.feedback.judge.kind = "openai"
    cfg.feedback.judge.chat = ChatConfig("openai", "m", "http://a/v1", temperature=0.0)
    one = arm_identity(cfg)
    cfg.feedback.judge.chat = replace(cfg.feedback.judge.chat, concurrency=1, retries=0)
    assert arm_identity(cfg) == one
    cfg.feedback.judge.chat = replace(cfg.feedback.judge.chat, **changes)
    assert arm_identity(cfg) != one


def test_a_run_is_known_by_what_its_judge_is_asked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cfg = config(tiny, tmp_path, ["in_context"])
    cfg.feedback.judge.kind = "openai"
    cfg.feedback.judge.chat = ChatConfig("openai", "m", "http://a/v1", temperature=0.0)
    one = arm_identity(cfg)
    before = backend.ask_judge
    monkeypatch.setattr(
        backend, "ask_judge", lambda *parts: [*before(*parts), {"role": "user", "content": "Be strict."}]
    )
    assert arm_identity(cfg) != one


@pytest.mark.parametrize("arm", ["c3po", "c3po_from_sft", "scd"])
def test_a_run_is_known_by_the_precision_that_it_was_trained_in(
    tiny: Path, tmp_path: Path, arm: str, monkeypatch: pytest.MonkeyPatch
):
    """As its adapters are: a store that moves to another machine must not take one precision's run for the other's."""
    known = {}
    for able in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        for precision in ("auto", "float32", "bfloat16"):
            cfg = config(tiny, tmp_path, [arm])
            cfg.feedback.train = replace(cfg.feedback.train, precision=precision)
            known[able, precision] = arm_identity(cfg)
    assert known[True, "auto"] == known[True, "bfloat16"] == known[False, "bfloat16"]
    assert known[False, "auto"] == known[False, "float32"] == known[True, "float32"] != known[True, "auto"]
