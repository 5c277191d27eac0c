"""Base scoring with shared prefixes against stock lm-eval `hf`, on the same requests of the same loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance

from c3po_bench.perf.questions import smolmoe, tasks
from c3po_bench.perf.timing import place, side_by_side
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.lm import RewiredLM
from c3po_bench.rewiring.questions import Tokenizer
from c3po_bench.rewiring.rewirer import Rewirer

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


def requests_of(options: Options, shots: int, rule: str = "cloze", count: int = ITEMS) -> list[Instance]:
    """The first items as lm-eval asks them, without their documents."""
    found = tasks(options.data, shots, rule)
    made = []
    for task in found.load().values():
        docs: Any = enumerate(task.eval_docs)
        made += found.items(task, islice(docs, count - len(made)))
    return [
        Instance("loglikelihood", {"question": item.question, "key": str(n)}, pair, i, ("t", n, 1))
        for n, item in enumerate(made[:count])
        for i, pair in enumerate(item.pairs)
    ]


def compare(loaded: Any, options: Options, shots: int) -> dict[str, Any]:
    """One setting; a fresh engine each round, since an engine remembers what it read."""
    from c3po_bench.rewiring.config import MethodConfig

    tokenizer = Tokenizer(loaded.model, loaded.tokenizer)
    count = 8 if options.quick else LONG_ITEMS if shots else ITEMS
    asked = requests_of(options, shots, count=count)
    stock = tokenizer.lm
    stock.batch_size_per_gpu = 16
    depth = len(loaded.model.model.layers)

    def shared() -> list[tuple[float, bool]]:
        engine = load_engine("suffix", loaded.model, list(range(depth - 5, depth)))
        return RewiredLM(Rewirer(engine, MethodConfig(), None), tokenizer).loglikelihood(asked)

    def plain() -> list[tuple[float, bool]]:
        return stock.loglikelihood(asked, disable_tqdm=True)

    seconds = side_by_side(options.rounds, stock=plain, shared=shared)
    pairs = zip(shared(), plain(), strict=True)
    return {
        "name": "base",
        "setting": f"{shots}-shot",
        "ratio": seconds["stock"] / seconds["shared"],
        "max_abs_diff": max(abs(a[0] - b[0]) for a, b in pairs),
        "stock_ms": 1000 * seconds["stock"] / (len(asked) / 4),
        "shared_ms": 1000 * seconds["shared"] / (len(asked) / 4),
        **place(loaded.model.device),
    }
