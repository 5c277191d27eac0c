"""Engines: how the model is run under another pathway. `naive` is the definition; `suffix` must equal it."""

from typing import Any

from c3po_bench.registry import Registry
from c3po_bench.rewiring.engines.base import Engine
from c3po_bench.rewiring.engines.naive import NaiveEngine
from c3po_bench.rewiring.engines.suffix import SuffixEngine

ENGINES: Registry[type[Engine]] = Registry("engine", {"naive": NaiveEngine, "suffix": SuffixEngine})


def load_engine(name: str, model: Any, layers: list[int], position: str = "last") -> Engine:
    """The engine called `name` for `model`, overriding decoder layers `layers`.

    Raises:
        UserError: for an unknown name.
    """
    return ENGINES[name](model, layers, position)
