"""What stands beside the scores: degeneration, likeness, drift; the metrics of a result."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from c3po_bench.feedback.drift import token_drift
from c3po_bench.feedback.measures import broken_ending, extra_metrics, repetition, similarity
from c3po_bench.feedback.training.rows import Row


def test_loops_are_seen():
    assert repetition("Hey Jared! How are you today? " * 6) > 0.7
    assert repetition("Dear team, the meeting moves to Thursday at noon.") == 0.0
    assert repetition("short") == 0.0


@pytest.mark.parametrize(
    ("text", "finished", "broken"),
    [
        ("All done.", True, False),
        ("We will meet on Thursday and then we", True, True),
        ("We will meet on Thursday and then we", False, False),  # cut at the limit: not the model's doing
        ("Bye.\n\nBest regards,\nJo", True, False),
        ("See you 👋", True, False),
        ("  ", True, True),
    ],
)
def test_broken_endings(text: str, finished: bool, broken: bool):
    assert broken_ending(text, finished) is broken


def test_similarity():
    assert similarity("a b c d", "a b c d") == 1.0 == similarity("", "")
    assert similarity("a b c d", "x y") == 0.0
    assert similarity("a b c d", "a b x d") == 0.75


def log_probabilities(model: torch.nn.Module, row: Row) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
    return logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1)


def test_drift_is_the_mean_token_kl(tiny: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    base = [Row([5, 6, 7], [8, 9]), Row([5], [10, 11, 12]), Row([5], [])]
    other = [Row([30, 31], [8, 9]), Row([40, 41, 42], [10, 11, 12]), Row([5], [])]
    none = contextlib.nullcontext
    assert token_drift(model, base, base, 0, none, none) == [0.0, 0.0, None]
    measured = token_drift(model, base, other, 0, none, none)
    for row, changed, value in zip(base[:2], other[:2], measured[:2], strict=True):
        p, q = (
            model(input_ids=torch.tensor([r.prompt_ids + r.completion_ids]))
            .logits[0, len(r.prompt_ids) - 1 : -1]
            .log_softmax(-1)
            for r in (row, changed)
        )
        expected = (p.exp() * (p - q)).sum(-1).mean().item()
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_result_has_each_tasks_means_and_the_scores_of_each_piece():
    """Means over what is known, rows of stock tasks left out, a measure that no row has not there."""
    rows: list[dict[str, Any]] = [
        {
            "task": "in_scope",
            "scope": "in",
            "feedback_id": "a",
            "score": 1.0,
            "drift": 0.2,
            "degeneration": {"tokens": 4},
        },
        {
            "task": "in_scope",
            "scope": "in",
            "feedback_id": "b",
            "score": 0.0,
            "drift": None,
            "degeneration": {"tokens": 8},
        },
        {"task": "near_scope", "scope": "near", "feedback_id": "a", "score": -1.0, "drift": 0.6},
        {
            "task": "out_of_scope",
            "scope": "out",
            "feedback_id": "a",
            "score": 0.0,
            "drift": 0.0,
            "similarity": 0.5,
        },
        {"task": "facts", "correct": 1.0},
    ]
    found = extra_metrics(rows)
    assert found == {
        "in_scope": {"drift": 0.2, "tokens": 6.0},
        "near_scope": {"drift": 0.6},
        "out_of_scope": {"drift": 0.0, "similarity": 0.5},
        "feedback": {"S_in": 0.5, "S_near": 1.0, "S_out": 0.0, "S_overall": 0.5, "n": 4},
        "feedback/a": {"S_in": 1.0, "S_near": 1.0, "S_out": 0.0, "S_overall": 0.75, "n": 3},
        "feedback/b": {"S_in": 0.0, "n": 1},
    }
    assert extra_metrics(rows[-1:]) == {}
