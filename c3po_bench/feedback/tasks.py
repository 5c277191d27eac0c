"""The task group `feedback`: in_scope, near_scope and out_of_scope, as lm-eval ``generate_until`` tasks.

A document is a synthesized test prompt. What an answer to it is worth is judged once, when all are there
(`FeedbackArm.finish`): against the base model's answer, signed in scope (S_in), absolute elsewhere (S_near,
S_out), so that everywhere a larger number means more of the feedback's effect.
"""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from more_itertools import interleave_longest

from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.synthesis import Example, FeedbackDataset

GROUP = "feedback"
TASKS = {"in": "in_scope", "near": "near_scope", "out": "out_of_scope"}
SCOPE_OF = {task: scope for scope, task in TASKS.items()}
METRIC = "score"


class FeedbackTask(ConfigurableTask):
    """Says of each document whose feedback it is about, and which example of it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._examples: list[tuple[str, int, Example]] = config["examples"]
        super().__init__(
            config={key: value for key, value in config.items() if key not in ("class", "examples")}
        )

    def item_metadata(self, number: int) -> dict[str, Any]:
        """What an arm must know of document `number` besides its prompt.

        `example_id` is the example's place among the test examples of its scope (`FeedbackDataset.select`).
        """
        feedback, place, example = self._examples[number]
        return {
            "feedback": feedback,
            "scope": example.scope,
            "category": example.category,
            "example_id": place,
        }


def in_turn(datasets: Sequence[FeedbackDataset], scope: str) -> list[tuple[str, int, Example]]:
    """(feedback, place, example) of the test examples of a scope.

    One piece after the other in turn, so that `limit` leaves every piece its share.
    """
    pieces = ([(d.feedback.id, n, e) for n, e in enumerate(d.select(scope, "test"))] for d in datasets)
    return list(interleave_longest(*pieces))


def _prompt(doc: dict[str, Any]) -> str:
    return doc["prompt"]


def _no_target(_doc: dict[str, Any]) -> str:
    return ""


def _not_judged_yet(_doc: dict[str, Any], _results: list[str]) -> dict[str, float]:
    """lm-eval needs a number at once; the row gets its own when all answers are there."""
    return {METRIC: 0.0}


def task_config(
    name: str, load: Callable[[], Sequence[FeedbackDataset]], cfg: FeedbackConfig
) -> dict[str, Any]:
    """lm-eval's config of a task. The prompts (`load`) are written when it is first loaded."""
    scope, examples = SCOPE_OF[name], []

    def dataset(**_: Any) -> dict[str, Any]:
        examples[:] = in_turn(load(), scope)
        documents = [
            {"feedback_id": feedback, "scope": e.scope, "category": e.category, "prompt": e.prompt}
            for feedback, _, e in examples
        ]
        return {"test": Dataset.from_list(documents)}

    return {
        "task": name,
        "class": FeedbackTask,
        "examples": examples,
        "custom_dataset": dataset,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": _prompt,
        "doc_to_target": _no_target,
        "generation_kwargs": {
            "until": [],
            "max_gen_toks": cfg.answers.max_new_tokens,
            "do_sample": cfg.answers.temperature > 0,
            "temperature": cfg.answers.temperature,
        },
        "process_results": _not_judged_yet,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": scope == "in"}],
    }
