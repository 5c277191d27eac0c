"""Tasks about feedback: which example a document is of, and answers that are judged together, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from c3po_bench.config import Config
from c3po_bench.feedback.backend import FeedbackArm
from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.sentences import find_feedback
from c3po_bench.feedback.session import FeedbackSession
from c3po_bench.feedback.synthesis import Example, FeedbackDataset
from c3po_bench.feedback.tasks import FeedbackTask, task_config


def test_a_document_knows_its_example():
    """Pieces take turns, and two of them may share a prompt."""
    pieces = find_feedback(["ahoy_greeting", "hashtag_tweets"])
    prompts = (["a", "b", "c"], ["a", "d"])
    datasets = [
        FeedbackDataset(piece, tuple(Example("in", "c", "test", p) for p in own))
        for piece, own in zip(pieces, prompts, strict=True)
    ]
    task = FeedbackTask(task_config("in_scope", lambda: datasets, FeedbackConfig()))
    docs = list(task.eval_docs)
    assert [doc["prompt"] for doc in docs] == ["a", "a", "b", "d", "c"]
    by_id = {dataset.feedback.id: dataset for dataset in datasets}
    for number, doc in enumerate(docs):
        found = task.item_metadata(number)
        assert found["feedback"] == doc["feedback_id"] and found["scope"] == "in"
        assert by_id[found["feedback"]].select("in", "test")[found["example_id"]].prompt == doc["prompt"]


def test_the_answers_of_an_arm_are_judged_together_and_once(tmp_path: Path):
    """One by one, a judge model would have two calls in flight, whatever its concurrency."""
    cfg = Config()
    cfg.feedback.pieces, cfg.feedback.cache_dir = ["ahoy_greeting"], str(tmp_path)
    cfg.feedback.judge.kind = "rule"
    session = FeedbackSession(cfg)
    asked: list[int] = []

    class Counting:
        def scores(self, cases: Sequence[Any]) -> list[float | None]:
            asked.append(len(cases))
            return [None if case.prompt == "prompt 0" else -float(case.response == "Ahoy!") for case in cases]

    session._judges["rule"] = Counting()  # type: ignore[assignment]
    arm = FeedbackArm(SimpleNamespace(cfg=cfg, session=session), "base")  # type: ignore[arg-type]
    rows = [
        {
            "task": "in_scope",
            "feedback_id": "ahoy_greeting",
            "scope": "in" if i < 3 else "out",
            "category": "c",
            "prompt": f"prompt {i}",
            "response": "Ahoy!",
            "baseline_response": "Hello",
            "doc_hash": str(i),
            "correct": 0.5,
        }
        for i in range(5)
    ]
    judged, _ = arm.finish(rows)
    assert asked == [5]
    assert [row["score"] for row in judged] == [None, -1.0, -1.0, -1.0, -1.0]
    assert [row["correct"] for row in judged] == [0.0, -1.0, -1.0, 1.0, 1.0]
