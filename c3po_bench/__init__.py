"""c3po_bench: expert rewiring and verbal feedback for language models, compared fairly."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
_LATE = {"load_runs": "c3po_bench.analysis.harnesses", "compare_runs": "c3po_bench.analysis.matching"}


def __getattr__(name: str) -> Any:
    """`load_runs` and `compare_runs`, whose libraries are only imported when they are asked for."""
    if name not in _LATE:
        raise AttributeError(f"module 'c3po_bench' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
