"""The task group `feedback`: in_scope, near_scope and out_of_scope, as lm-eval ``generate_until`` tasks.

A document is a synthesized test prompt. Its score compares the answer with the base model's, the baseline,
which is written when an arm first needs it: signed in scope (S_in), absolute elsewhere (S_near, S_out), so
that everywhere a larger number means more of the feedback's effect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.synthesis import FeedbackDataset

GROUP = "feedback"
TASKS = {"in": "in_scope", "near": "near_scope", "out": "out_of_scope"}
SCOPE_OF = {task: scope for scope, task in TASKS.items()}
METRIC = "score"
Scorer = Callable[[Sequence[dict[str, Any]]], list[float | None]]
"""Signed scores of rows (documents with a ``response``); None where a judgement could not be had."""


class FeedbackTask(ConfigurableTask):
    """Puts the id of a document's feedback into the request, beside lm-eval's own generation settings."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._scorer: Scorer = config["scorer"]
        super().__init__(
            config={key: value for key, value in config.items() if key not in ("class", "scorer")}
        )

    def apply_filters(self) -> Any:
        """lm-eval's; then all answers are judged at once, since a judge's calls run side by side."""
        kept = super().apply_filters()
        self._scorer([_row(i.doc, answer) for i in self.instances for answer in i.filtered_resps.values()])
        return kept

    def construct_requests(self, doc: dict, ctx: Any, **kwargs: Any) -> Instance:  # type: ignore[override]
        """One request; the answering model must know whose feedback it is."""
        request = super().construct_requests(doc, ctx, **kwargs)
        assert isinstance(request, Instance)
        prompt, settings = request.arguments
        request.arguments = (prompt, {**settings, "feedback": doc["feedback_id"], "scope": doc["scope"]})
        return request


def settings_of(request: Instance) -> dict[str, Any]:
    """The generation settings of a request, with the feedback's id and scope on feedback tasks."""
    arguments: Any = request.args
    return arguments[1]


def documents(datasets: Sequence[FeedbackDataset], scope: str) -> list[dict[str, Any]]:
    """The test documents of a scope.

    The pieces take turns, so that `limit` leaves every piece its share.
    """
    turns = itertools.zip_longest(*([(d.feedback.id, e) for e in d.select(scope, "test")] for d in datasets))
    examples = [example for turn in turns for example in turn if example is not None]
    return [
        {"feedback_id": feedback_id, "scope": scope, "category": e.category, "prompt": e.prompt}
        for feedback_id, e in examples
    ]


def _row(doc: dict[str, Any], response: str) -> dict[str, Any]:
    return {**doc, "response": response}


def _prompt(doc: dict[str, Any]) -> str:
    return doc["prompt"]


def _no_target(_doc: dict[str, Any]) -> str:
    return ""


def task_configs(
    load: Callable[[], Sequence[FeedbackDataset]], scorer: Scorer, cfg: FeedbackConfig, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """lm-eval configs of the named tasks. The prompts (`load`) are written when a task is first loaded."""
    return {name: _config(name, load, scorer, cfg) for name in names}


def _config(
    name: str, load: Callable[[], Sequence[FeedbackDataset]], scorer: Scorer, cfg: FeedbackConfig
) -> dict[str, Any]:
    scope = SCOPE_OF[name]

    def dataset(**_: Any) -> dict[str, Any]:
        return {"test": Dataset.from_list(documents(load(), scope))}

    def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        signed = (
            scorer([_row(doc, results[0])])[0] or 0.0
        )  # lm-eval needs a number; the row's own score says None
        return {METRIC: signed if scope == "in" else abs(signed)}

    return {
        "task": name,
        "class": FeedbackTask,
        "scorer": scorer,
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
        "process_results": process_results,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": scope == "in"}],
    }
