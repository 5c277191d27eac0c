"""Performance comparisons, each measured side by side in one process.

`python -m c3po_bench.perf NAME [--json]`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c3po_bench.registry import Registry


@dataclass(frozen=True)
class Options:
    """What the command line says.

    rounds: of which the median is taken.
    data: a folder with local copies of stock data; without one, questions are taken from our own `facts`.
    quick: measure small settings only, for tests.
    device: as `model.device`: auto takes a GPU where there is one.
    model: of `base` and `suffix`: smolmoe or specialists.
    """

    rounds: int = 5
    data: Path | None = None
    quick: bool = False
    device: str = "auto"
    model: str = "smolmoe"


PERFS: Registry[Callable[[Options], Iterator[dict[str, Any]]]] = Registry(
    "performance comparison",
    {
        "suffix": "c3po_bench.perf.steps:suffix",
        "floor": "c3po_bench.perf.steps:floor",
        "base": "c3po_bench.perf.evaluations:base",
        "overhead": "c3po_bench.perf.evaluations:overhead",
        "bank": "c3po_bench.perf.bank:run",
        "startup": "c3po_bench.perf.startup:run",
        "growth": "c3po_bench.perf.growth:run",
        "feedback_step": "c3po_bench.feedback.perf_step:run",
    },
)
"""Comparisons by name: each `run(options) -> Iterator[dict]` yields a record a setting, the main one last."""
