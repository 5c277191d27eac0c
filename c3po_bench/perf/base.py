"""Base scoring with shared prefixes against stock lm-eval `hf`, on the same requests of the same loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from c3po_bench.perf.questions import items, smolmoe, stock_requests
from c3po_bench.perf.timing import place, side_by_side
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.rewirer import Rewirer
from c3po_bench.rewiring.tokens import Tokenizer

if TYPE_CHECKING:
    from c3po_bench.perf.__main__ import Options

ITEMS = 32
LONG_ITEMS = 12
"""Fewer where prompts are long: a round of stock scoring takes half a minute."""


def run(options: Options) -> Iterator[dict[str, Any]]:
    """5-shot, then zero-shot."""
    loaded = smolmoe(options.device)
    for shots in (5, 0):
        yield compare(loaded, options, shots)


def compare(loaded: Any, options: Options, shots: int) -> dict[str, Any]:
    """One setting; a fresh engine each round, since an engine remembers what it read."""
    tokenizer = Tokenizer(loaded.model, loaded.tokenizer)
    count = 8 if options.quick else LONG_ITEMS if shots else ITEMS
    asked = items(options.data, count, shots)
    requests = stock_requests(asked)
    stock = tokenizer.lm
    stock.batch_size_per_gpu = 16
    depth = len(loaded.model.model.layers)

    def shared() -> list[tuple[float, bool]]:
        engine = load_engine("suffix", loaded.model, list(range(depth - 5, depth)))
        answers = Rewirer(engine, tokenizer, MethodConfig()).answer(asked)
        return [score for answer in answers for score in answer.scores]

    def plain() -> list[tuple[float, bool]]:
        return stock.loglikelihood(requests, disable_tqdm=True)

    seconds = side_by_side(options.rounds, stock=plain, shared=shared)
    pairs = zip(shared(), plain(), strict=True)
    return {
        "name": "base",
        "setting": f"{shots}-shot",
        "ratio": seconds["stock"] / seconds["shared"],
        "max_abs_diff": max(abs(a[0] - b[0]) for a, b in pairs),
        "stock_ms": 1000 * seconds["stock"] / len(asked),
        "shared_ms": 1000 * seconds["shared"] / len(asked),
        **place(loaded.model.device),
    }
