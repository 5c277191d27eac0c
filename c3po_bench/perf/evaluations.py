"""Whole evaluations against stock lm-eval `hf`, on the same requests of the same loaded model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from lm_eval.api.instance import Instance

from c3po_bench.config import Config
from c3po_bench.perf import Options
from c3po_bench.perf.workload import first_items, last_layers, place, side_by_side, smolmoe, tasks
from c3po_bench.rewiring.backend import RewiringBackend
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.lm import RewiredLM
from c3po_bench.rewiring.questions import Tokenizer
from c3po_bench.rewiring.rewirer import Rewirer

ITEMS = 32
LONG_ITEMS = 12
"""Fewer where prompts are long: a round of stock scoring takes half a minute."""


def requests_of(options: Options, shots: int, count: int, rule: str = "cloze") -> list[Instance]:
    """The first items as lm-eval asks them, without their documents."""
    items = first_items(tasks(options.data, shots, rule), 8 if options.quick else count)
    return [
        Instance("loglikelihood", {"question": item.question, "key": str(n)}, pair, i, ("t", n, 1))
        for n, item in enumerate(items)
        for i, pair in enumerate(item.pairs)
    ]


def base(options: Options) -> Iterator[dict[str, Any]]:
    """Base scoring with shared prefixes: 5-shot, then zero-shot."""
    loaded = smolmoe(options.device)
    tokenizer = Tokenizer(loaded.model, loaded.tokenizer)
    tokenizer.lm.batch_size_per_gpu = 16
    for shots, count in ((5, LONG_ITEMS), (0, ITEMS)):
        yield compare_base(tokenizer, loaded.model, requests_of(options, shots, count), shots, options.rounds)


def compare_base(
    tokenizer: Tokenizer, model: Any, asked: list[Instance], shots: int, rounds: int
) -> dict[str, Any]:
    """One setting; a fresh engine each round, since an engine remembers what it read."""

    def shared() -> list[tuple[float, bool]]:
        engine = load_engine("suffix", model, last_layers(model))
        return RewiredLM(Rewirer(engine, MethodConfig(), None), tokenizer).loglikelihood(asked)

    def stock() -> list[tuple[float, bool]]:
        return tokenizer.lm.loglikelihood(asked, disable_tqdm=True)

    seconds = side_by_side(rounds, stock=stock, shared=shared)
    return {
        "name": "base",
        "setting": f"{shots}-shot",
        "ratio": seconds["stock"] / seconds["shared"],
        "max_abs_diff": max(abs(a[0] - b[0]) for a, b in zip(shared(), stock(), strict=True)),
        **_each(seconds, asked),
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
    asked = requests_of(options, 0, ITEMS, rule)
    stock = backend.tokenizer.lm
    stock.batch_size_per_gpu = 16
    (arm,) = [arm for arm in backend.arms() if arm.name == "ngd"]
    lm, step = arm.lm(), 4 * cfg.batch_size

    def rewired() -> None:
        backend.engine.forget()
        backend.question_embedder.forget()
        for start in range(0, len(asked), step):
            lm.loglikelihood(asked[start : start + step])
        lm.pop_details()

    seconds = side_by_side(
        options.rounds, stock=lambda: stock.loglikelihood(asked, disable_tqdm=True), rewired=rewired
    )
    return {
        "name": "overhead",
        "setting": rule,
        "ratio": seconds["rewired"] / seconds["stock"],
        "max_abs_diff": 0.0,
        **_each(seconds, asked),
        "phases": {k: round(v["seconds"], 3) for k, v in arm.cost()["phases"].items()},
        **place(backend.engine.device),
    }


def _each(seconds: dict[str, float], asked: list[Instance]) -> dict[str, float]:
    """Milliseconds an item of four choices."""
    return {f"{name}_ms": 4000 * taken / len(asked) for name, taken in seconds.items()}
