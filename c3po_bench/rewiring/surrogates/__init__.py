"""Surrogates: what stands in for the unknown label (paper section 3).

A surrogate is a function `f(problem: Problem, *, option=default, ...) -> Solution`; its keyword options are
its config (`arm.NAME.option`). Adding one is writing it in a file of this folder and adding a line to
`SURROGATES`, or, outside the package, decorating it with `@surrogate("name")` in a module named in `plugins`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from c3po_bench.errors import UserError, unknown
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.neighbors import Neighborhood

SURROGATES: dict[str, str | Callable[..., Solution]] = {
    "mode_finding": "c3po_bench.rewiring.surrogates.mode_finding:mode_finding",
    "mode_finding_random_neighbors": "c3po_bench.rewiring.surrogates.mode_finding:mode_finding_random_neighbors",
    "kernel_regression": "c3po_bench.rewiring.surrogates.kernel_regression:kernel_regression",
    "ngd": "c3po_bench.rewiring.surrogates.ngd:ngd",
    "planted_optimum": "c3po_bench.rewiring.surrogates.planted_optimum:planted_optimum",
    "random_pathway": "c3po_bench.rewiring.surrogates.random_pathway:random_pathway",
    "routing_temperature": "c3po_bench.rewiring.surrogates.routing_temperature:routing_temperature",
}

RANGES = {
    "alpha": (0, 1),
    "iterations": (0, math.inf),
    "points": (1, math.inf),
    "temperature": (1e-6, math.inf),
    "steps": (0, math.inf),
    "batch_size": (1, math.inf),
    "learning_rate": (0, math.inf),
    "rank": (1, math.inf),
    "tokens": (1, math.inf),
    "k": (1, math.inf),
}
"""Least and most of the options of our own arms, by name."""


@dataclass(frozen=True)
class Problem:
    """What a surrogate is given: `queries` test prompts at once, each independent of the others.

    original: the model's own pathways [queries, layers, experts].
    core: which experts may carry weight, boolean, same shape.
    neighborhood: neighbors of each query; None where the arm has none.
    references: pathways of the whole bank [references, layers, experts].
    loss: pathways [queries, layers, experts] -> surrogate loss [queries], differentiable (eq. 4's L).
    method: the shared options.
    seeds: one per query, for anything drawn.
    texts: the question of each query.
    layers: the critical decoder layers.
    descent: what NGD found on this very problem, where an arm before this one has solved it.
    """

    original: Tensor
    core: Tensor
    neighborhood: Neighborhood | None
    references: Tensor
    loss: Callable[[Tensor], Tensor]
    method: MethodConfig
    seeds: list[int]
    texts: list[str] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    descent: Solution | None = None


@dataclass(frozen=True)
class Solution:
    """The new pathways [queries, layers, experts], and the loss by step [steps, queries] if there is one."""

    pathway: Tensor
    losses: Tensor | None = None


def surrogate(name: str) -> Callable[[Callable[..., Solution]], Callable[..., Solution]]:
    """Register a function as the surrogate, and so the arm, called `name`."""

    def add(function: Callable[..., Solution]) -> Callable[..., Solution]:
        SURROGATES[name] = function
        return function

    return add


def load_surrogate(name: str) -> Callable[..., Solution]:
    """The function registered as `name`."""
    if name not in SURROGATES:
        raise unknown("surrogate", name, SURROGATES)
    entry = SURROGATES[name]
    if callable(entry):
        return entry
    module, attribute = entry.split(":")
    return getattr(importlib.import_module(module), attribute)


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword options of a method with their defaults: its config."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def checked_options(arm: str, function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Defaults updated with `given`.

    Raises:
        UserError: for an unknown option or a value of another type than the default's.
    """
    options = options_of(function)
    for key, value in given.items():
        if key not in options:
            raise unknown(f"option of arm {arm}", key, options)
        default = options[key]
        fits = (
            default is None
            or isinstance(value, type(default))
            or (isinstance(default, float) and isinstance(value, int))
        )
        if not fits or (isinstance(value, bool) and not isinstance(default, bool)):
            raise UserError(f"arm.{arm}.{key}={value!r}: {type(default).__name__} expected, like {default!r}")
        options[key] = value
    for key, value in options.items():
        least, most = RANGES.get(key, (-math.inf, math.inf))
        if (
            function.__module__.startswith("c3po_bench.")
            and isinstance(value, int | float)
            and not least <= value <= most
        ):
            allowed = f"between {least:g} and {most:g}" if most < math.inf else f"at least {least:g}"
            raise UserError(f"arm.{arm}.{key}={value}: must be {allowed}")
    return options
