"""A whole rewired evaluation against the stock lm-eval run on the same items: what NGD costs a user.

Embedding, retrieval, optimization and scoring are included; the reference bank is built before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from c3po_bench.config import Config
from c3po_bench.perf.base import ITEMS
from c3po_bench.perf.questions import items, stock_requests, tasks
from c3po_bench.perf.timing import place, side_by_side
from c3po_bench.rewiring.backend import RewiringBackend

if TYPE_CHECKING:
    from c3po_bench.perf.__main__ import Options


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Letters, then cloze answers."""
    for rule in ("letters", "cloze"):
        yield compare(options, rule)


def compare(options: Options, rule: str) -> dict[str, Any]:
    """One setting. `ratio` is rewired over stock: what the evaluation costs, in stock runs."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = Config(results_dir=folder, arms=["base", "ngd"])
        cfg.data.root = str(options.data) if options.data else None
        cfg.model.device, cfg.scoring.rule = options.device, rule
        cfg.references.tasks = ["openbookqa"] if options.data else ["facts"]
        cfg.references.limit = 64
        cfg.references.only_correct = False
        backend = RewiringBackend(cfg, tasks(options.data, rule=rule))
        asked = items(options.data, 8 if options.quick else ITEMS, rule=rule)
        requests = stock_requests(asked)
        stock = backend.tokenizer.lm
        stock.batch_size_per_gpu = 16
        (arm,) = [arm for arm in backend.arms() if arm.row.name == "ngd"]
        arm.prepare()

        def rewired() -> None:
            backend.engine.forget()
            backend.question_embedder.forget()
            for start in range(0, len(asked), cfg.batch_size):
                arm.answer(asked[start : start + cfg.batch_size])

        seconds = side_by_side(
            options.rounds, stock=lambda: stock.loglikelihood(requests, disable_tqdm=True), rewired=rewired
        )
        return {
            "name": "overhead",
            "setting": rule,
            "ratio": seconds["rewired"] / seconds["stock"],
            "max_abs_diff": 0.0,
            "stock_ms": 1000 * seconds["stock"] / len(asked),
            "rewired_ms": 1000 * seconds["rewired"] / len(asked),
            "phases": {name: round(phase.seconds, 3) for name, phase in arm.cost().phases.items()},
            **place(backend.engine.device),
        }
