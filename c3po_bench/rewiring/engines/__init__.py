"""Engines: how the model is run under another pathway. `naive` is the definition; `suffix` must equal it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from c3po_bench.errors import unknown

if TYPE_CHECKING:
    from c3po_bench.rewiring.engines.base import Engine

ENGINES = {"naive": "NaiveEngine", "suffix": "SuffixEngine"}


def load_engine(name: str, model: Any, layers: list[int], position: str = "last") -> Engine:
    """The engine called `name` for `model`, overriding decoder layers `layers`."""
    import importlib

    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    module = importlib.import_module(f"{__name__}.{name}")
    return getattr(module, ENGINES[name])(model, layers, position)
