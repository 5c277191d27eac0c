"""The tasks that lm-eval scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.synthesis import Example, FeedbackDataset
from c3po_bench.feedback.tasks import FeedbackTask, task_configs
from tests.feedback.stub_server import PIECE


def test_the_answers_of_a_task_are_judged_together():
    """One by one, a judge model would have two calls in flight, whatever its concurrency."""
    examples = tuple(Example("in", "c", "test", f"prompt {i}") for i in range(5))
    asked: list[int] = []

    def scorer(rows: Sequence[dict[str, Any]]) -> list[float | None]:
        asked.append(len(rows))
        return [None if row["prompt"] == "prompt 0" else float(row["response"] == "Ahoy!") for row in rows]

    material = [FeedbackDataset(PIECE, examples)]
    task = FeedbackTask(task_configs(lambda: material, scorer, FeedbackConfig(), ["in_scope"])["in_scope"])
    task.build_all_requests()
    for instance in task.instances:
        instance.resps = ["Ahoy!"]
    task.apply_filters()
    assert asked == [5]
    scores = [task.process_results(i.doc, [i.filtered_resps["none"]])["score"] for i in task.instances]
    assert sorted(scores) == [0.0, 1.0, 1.0, 1.0, 1.0]
