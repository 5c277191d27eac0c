"""Performance comparisons, each measured side by side in one process.

`python -m c3po_bench.perf NAME [--json]`.
"""

PERFS = {
    "suffix": "c3po_bench.perf.suffix:run",
    "base": "c3po_bench.perf.base:run",
    "overhead": "c3po_bench.perf.overhead:run",
    "floor": "c3po_bench.perf.floor:run",
    "bank": "c3po_bench.perf.bank:run",
    "startup": "c3po_bench.perf.startup:run",
    "growth": "c3po_bench.perf.growth:run",
    "feedback_step": "c3po_bench.feedback.perf_step:run",
}
"""Comparisons by name: each `run(options) -> Iterator[dict]` yields a record a setting, the headline one last."""
