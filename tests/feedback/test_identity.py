"""What a tuned arm's adapter and run are known by: everything that changes its numbers, and nothing of it twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.training.recipes import make_plan


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
