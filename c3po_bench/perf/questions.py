"""Real prompts to measure with: ARC where local data is given, else our own facts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from c3po_bench.config import ModelConfig
from c3po_bench.models.loading import load
from c3po_bench.rewiring.questions import Question, Tokenizer
from c3po_bench.tasks.taskset import TaskSet


def smolmoe(device: str = "auto") -> Any:
    """The embedded model."""
    return load(ModelConfig(device=device))


def tasks(data: Path | None, num_fewshot: int = 0, rule: str = "cloze") -> TaskSet:
    """ARC-Easy, or the facts."""
    return TaskSet(["arc_easy" if data else "facts"], data_root=data, num_fewshot=num_fewshot, rule=rule)


def questions(
    loaded: Any, count: int, data: Path | None, num_fewshot: int = 0, rule: str = "cloze"
) -> list[Question]:
    """The first `count` questions, tokenized, with labels."""
    found, tokenizer = tasks(data, num_fewshot, rule), Tokenizer(loaded.model, loaded.tokenizer)
    made: list[Question] = []
    for task in found.load().values():
        docs: Any = islice(enumerate(task.eval_docs), count - len(made))
        made += [tokenizer.of_item(item) for item in found.items(task, docs)]
    return made[:count]
