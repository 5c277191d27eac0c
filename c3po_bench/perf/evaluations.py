"""Whole evaluations against stock lm-eval `hf`, on the same requests of the same loaded model."""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from c3po_bench.config import Config
from c3po_bench.contract import Item
from c3po_bench.perf import Options
from c3po_bench.perf.workload import (
    embedded,
    first_items,
    last_layers,
    place,
    side_by_side,
    stock_requests,
    tasks,
)
from c3po_bench.rewiring.backend import RewiringBackend
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.rewirer import Rewirer
from c3po_bench.rewiring.tokens import Tokenizer

ITEMS = 32
LONG_ITEMS = 12
"""Fewer where prompts are long: a round of stock scoring takes half a minute."""


def base(options: Options) -> Iterator[dict[str, Any]]:
    """Base scoring with shared prefixes: 5-shot, then zero-shot."""
    loaded = embedded(options)
    tokenizer = Tokenizer(loaded.model, loaded.tokenizer)
    tokenizer.lm.batch_size_per_gpu = 16
    for shots, count in ((5, LONG_ITEMS), (0, ITEMS)):
        items = first_items(options.data, 8 if options.quick else count, shots)
        yield compare_base(tokenizer, loaded.model, items, f"{shots}-shot", options.rounds)


def compare_base(
    tokenizer: Tokenizer, model: Any, items: Sequence[Item], setting: str, rounds: int
) -> dict[str, Any]:
    """One setting; a fresh engine each round, since an engine remembers what it read."""
    requests = stock_requests(items)

    def shared() -> list[tuple[float, bool]]:
        engine = load_engine("suffix", model, last_layers(model))
        answers = Rewirer(engine, tokenizer, MethodConfig()).answer(items)
        return [score for answer in answers for score in answer.scores]

    def stock() -> list[tuple[float, bool]]:
        return tokenizer.lm.loglikelihood(requests, disable_tqdm=True)

    seconds = side_by_side(rounds, stock=stock, shared=shared)
    return {
        "name": "base",
        "setting": setting,
        "ratio": seconds["stock"] / seconds["shared"],
        "max_abs_diff": max(abs(a[0] - b[0]) for a, b in zip(shared(), stock(), strict=True)),
        **_each(seconds, items),
        **place(model.device),
    }


def overhead(options: Options) -> Iterator[dict[str, Any]]:
    """What NGD costs a user: a whole rewired evaluation, with letters, then with cloze answers."""
    for rule in ("letters", "cloze"):
        with tempfile.TemporaryDirectory() as folder:
            yield compare_overhead(options, rule, folder)


def compare_overhead(options: Options, rule: str, folder: str) -> dict[str, Any]:
    """One setting. `ratio` is rewired over stock: what the evaluation costs, in stock runs.

    Embedding, retrieval, optimization and scoring are included; the reference bank is built before.
    """
    cfg = Config(results_dir=folder, arms=["base", "ngd"])
    cfg.data.root = str(options.data) if options.data else None
    cfg.model.device, cfg.scoring.rule = options.device, rule
    cfg.references.tasks = ["openbookqa"] if options.data else ["facts"]
    cfg.references.limit, cfg.references.only_correct = 64, False
    backend = RewiringBackend(cfg, tasks(options.data, rule=rule))
    items = first_items(options.data, 8 if options.quick else ITEMS, rule=rule)
    requests, stock = stock_requests(items), backend.tokenizer.lm
    stock.batch_size_per_gpu = 16
    (arm,) = [arm for arm in backend.arms() if arm.row.name == "ngd"]
    arm.prepare()

    def rewired() -> None:
        backend.engine.forget()
        backend.question_embedder.forget()
        for start in range(0, len(items), cfg.batch_size):
            arm.answer(items[start : start + cfg.batch_size])

    seconds = side_by_side(
        options.rounds, stock=lambda: stock.loglikelihood(requests, disable_tqdm=True), rewired=rewired
    )
    return {
        "name": "overhead",
        "setting": rule,
        "ratio": seconds["rewired"] / seconds["stock"],
        "max_abs_diff": 0.0,
        **_each(seconds, items),
        "phases": {name: round(phase.seconds, 3) for name, phase in arm.cost().phases.items()},
        **place(backend.engine.device),
    }


def _each(seconds: dict[str, float], items: Sequence[Item]) -> dict[str, float]:
    """Milliseconds an item."""
    return {f"{name}_ms": 1000 * taken / len(items) for name, taken in seconds.items()}
