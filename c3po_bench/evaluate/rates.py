"""How fast this machine is with a model, by a few timed passes; and how long the items of tasks are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from c3po_bench.contract import TEXT, Backend, Item
from c3po_bench.evaluate.work import Rates, TaskSize
from c3po_bench.feedback.tasks import SCOPE_OF
from c3po_bench.runtime.meter import synchronize

ROWS, FEW_TOKENS, LOOKED_AT = 4, 8, 12
SLOW_SECONDS = 2.0
"""Where the shortest pass takes longer, no longer one is timed."""
QUESTIONS = ["How many legs does a spider have?", "Which gas do plants take in?"] * 2
LONGEST_ANSWER = 128
"""Tokens that written answers of stock tasks are taken to have at most."""


def task_sizes(backend: Backend) -> list[TaskSize]:
    """The leaf tasks, their lengths from the first items of each."""
    tokenizer = backend.timed_parts().tokenizer
    looked: dict[str, list[tuple[float, float]]] = {}
    for item in backend.tasks.items(LOOKED_AT):
        looked.setdefault(item.id[0], []).append(_tokens(tokenizer, item))
    sizes = []
    for name, task in backend.tasks.load().items():
        read, written = (sum(each) / len(each) for each in zip(*looked.get(name, [(1.0, 0.0)]), strict=True))
        sizes.append(TaskSize(name, len(task.eval_docs), read, written, name in SCOPE_OF))
    return sizes


def _tokens(tokenizer: Any, item: Item) -> tuple[float, float]:
    """Tokens read and written of an item: each prompt once, each option behind it."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    if item.kind == TEXT:
        return count(item.prompt), float(
            min(LONGEST_ANSWER, int(item.decoding.get("max_gen_toks") or LONGEST_ANSWER))
        )
    contexts = {context for context, _ in item.requests}
    return sum(map(count, contexts)) + sum(count(option) for _, option in item.requests), 0.0


def measure(backend: Backend, sizes: list[TaskSize], batch: int) -> Rates:
    """Seconds a token read, a token written and a question embedded.

    Args:
        backend: whose model and embedder are timed; both stay as they are.
        sizes: of its tasks, for passes of the usual length.
        batch: rows that are answered at once.
    """
    parts = backend.timed_parts()
    model, embedder = parts.model, parts.embedder
    length = max(FEW_TOKENS, round(sum(size.read for size in sizes) / max(1, len(sizes))))
    shortest = _once(lambda: _pass(model, 1, FEW_TOKENS))  # also warms up
    read, written = shortest / FEW_TOKENS, 0.0
    if shortest < SLOW_SECONDS:
        read = _once(lambda: _pass(model, ROWS, min(length, 256))) / (ROWS * min(length, 256))
    if any(size.written or size.about_feedback for size in sizes):
        rows = max(1, min(batch, 16))
        written = _timed(lambda: _pass(model, rows, 1)) / rows
    embedded = _timed(lambda: embedder(list(QUESTIONS))) / len(QUESTIONS) if embedder is not None else 0.0
    return Rates(read, written, embedded)


@torch.no_grad()
def _pass(model: Any, rows: int, length: int) -> None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(3, 3 + rows * length).remainder(vocabulary).view(rows, length).to(model.device)
    model(input_ids=ids, use_cache=False)


def _once(work: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the better of two tries; of one, where that is slow."""
    first = _once(work)
    return first if first > SLOW_SECONDS else min(first, _once(work))
