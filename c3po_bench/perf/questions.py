"""Real prompts to measure with: ARC where local data is given, else our own facts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from c3po_bench.config import ModelConfig
from c3po_bench.contract import Item
from c3po_bench.models.loading import load
from c3po_bench.rewiring.tokens import TokenizedItem, Tokenizer
from c3po_bench.tasks.taskset import TaskSet


def smolmoe(device: str = "auto") -> Any:
    """The embedded model."""
    return load(ModelConfig(device=device))


def tasks(data: Path | None, num_fewshot: int = 0, rule: str = "cloze") -> TaskSet:
    """ARC-Easy, or the facts."""
    return TaskSet(["arc_easy" if data else "facts"], data_root=data, num_fewshot=num_fewshot, rule=rule)


def items(data: Path | None, count: int, num_fewshot: int = 0, rule: str = "cloze") -> list[Item]:
    """The first `count` items, with labels."""
    found, made = tasks(data, num_fewshot, rule), []
    for name, task in found.load().items():
        docs: Any = islice(enumerate(task.eval_docs), count - len(made))
        made += found.references(name, docs)
    return made


def stock_requests(items: Sequence[Item]) -> list[Instance]:
    """The same as lm-eval asks its own models."""
    return [
        Instance("loglikelihood", {}, pair, i, (*item.id, 1))
        for item in items
        for i, pair in enumerate(item.requests)
    ]


def questions(loaded: Any, count: int, data: Path | None, num_fewshot: int = 0) -> list[TokenizedItem]:
    """The first `count` items in tokens."""
    tokenizer = Tokenizer(loaded.model, loaded.tokenizer)
    return [tokenizer(item) for item in items(data, count, num_fewshot)]
