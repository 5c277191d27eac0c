"""What `method.tune=reference` may choose of an arm, whose choice an arm takes, and the record of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from c3po_bench.contract import ArmRow, Phase
from c3po_bench.rewiring.arms import ARMS
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.store.schema import Phase as PhaseRecord

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
MIXINGS = ("dense", "hard", "straight_through")
NEIGHBORS = (1, 2, 3, 5, 8, 16)


@dataclass(frozen=True)
class Axis:
    """One thing that is chosen: a dotted key of the method, or `option.NAME` of the arm.

    `values` are tried in turn; numbers in ascending order. Where the best is the least or the largest, the
    next ones by `factor` are tried, too, and where that does not end it, the choice is said to be at the
    edge. It is none at `least` and `most`, beyond which there is nothing.
    """

    key: str
    values: tuple[Any, ...]
    factor: float = 0.0
    least: float = -math.inf
    most: float = math.inf

    def beside(self, value: Any) -> tuple[Any, Any]:
        """The next lower and the next higher number, by `factor`."""
        lower, higher = value / self.factor, value * self.factor
        return (round(lower), round(higher)) if isinstance(value, int) else (lower, higher)

    def edge(self, value: Any, tried: Sequence[Any]) -> str:
        """`lowest` or `highest` where the choice is the outermost number tried; else nothing."""
        if isinstance(value, bool | str) or self.least >= value or value >= self.most:
            return ""
        return "lowest" if value <= min(tried) else "highest" if value >= max(tried) else ""


DESCENT = (
    Axis("learning_rate", RATES, factor=10**0.5),
    Axis("mixing", MIXINGS),
    Axis("preserve_total_weight", (False, True)),
    Axis("loss", ("nll", "choice")),
)
TRAINING = (
    Axis("option.learning_rate", (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03), factor=10**0.5),
    Axis("option.steps", (10, 30, 100), factor=3, least=1),
)
MEANS = (Axis("neighbors.k", NEIGHBORS, factor=2, least=1), Axis("preserve_total_weight", (False, True)))
AXES: dict[str, tuple[Axis, ...]] = {
    "kernel_regression": (*MEANS, Axis("mixing", MIXINGS), Axis("loss", ("nll", "choice"))),
    "mode_finding": (
        *MEANS,
        Axis("option.alpha", (0.0, 0.25, 0.5, 0.75, 0.9), least=0, most=1),
        Axis("option.iterations", (1, 3, 10, 30), factor=3, least=0),
    ),
    "routing_temperature": (
        Axis("option.temperature", (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0), factor=2),
        Axis("preserve_total_weight", (False, True)),
    ),
    "icl": (Axis("option.shots", (1, 2, 3, 5, 8, 12), factor=2, least=1),),
    "knn_vote": (Axis("option.k", (1, 2, 3, 5, 10, 20, 50), factor=2, least=1),),
    "soft_prompt": (*TRAINING, Axis("option.tokens", (4, 8, 16), factor=2, least=1)),
    "prefix_tuning": (*TRAINING, Axis("option.tokens", (4, 8, 16), factor=2, least=1)),
    "router_tuning": TRAINING,
    "sft": (*TRAINING, Axis("option.rank", (4, 8, 16), factor=2, least=1)),
}
"""What is chosen of an arm, by its name or its method's; of other arms that descend it is `DESCENT`."""


class Tuned(TypedDict):
    """A file of `results_dir/tuned`."""

    arm: str
    chosen: dict[str, Any]
    p_gold: dict[str, float]
    interval: list[float]
    gain: list[float]
    edges: list[str]
    held_out: int
    phase: PhaseRecord


@dataclass(frozen=True)
class Tuning:
    """What was chosen for an arm.

    Attributes:
        arm: for which.
        chosen: by the keys of its axes.
        p_gold: mean probability of the right option over the held-out references, by setting; `base` without
        the arm.
        interval: 95%, of the chosen setting's; `gain`: its difference to base, and the bounds of that.
        edges: of the choices at the edge of what was tried, in words.
        held_out: how many references.
        phase: what it cost.
    """

    arm: str
    chosen: dict[str, Any]
    p_gold: dict[str, float]
    interval: list[float]
    gain: list[float]
    edges: list[str]
    held_out: int
    phase: Phase

    def method(self, method: MethodConfig) -> MethodConfig:
        """The shared method with the choices in it."""
        return with_choices(method, self.chosen)

    @property
    def options(self) -> dict[str, Any]:
        """The choices among the arm's own options."""
        return options_among(self.chosen)

    def record(self) -> dict[str, Any]:
        """What the result keeps (`store.schema.Tuning`)."""
        tried = {name: value for name, value in self.p_gold.items() if name != "base"}
        return {
            "arm": self.arm,
            "chosen": self.chosen,
            "settings_tried": len(tried),
            "held_out": self.held_out,
            "p_gold": max(tried.values()),
            "interval": self.interval,
            "p_gold_of_base": self.p_gold["base"],
            "gain": self.gain,
            "edges": self.edges,
        }

    @property
    def note(self) -> str:
        """What a reader of the numbers should know."""
        tried = {name: value for name, value in self.p_gold.items() if name != "base"}
        gain, low, high = self.gain
        words = (
            f"tune=reference: {in_words(self.chosen)}, chosen for {self.arm} on {self.held_out} held-out "
            f"references among {len(tried)} settings by the right option's probability: {max(tried.values()):.3f} "
            f"[{self.interval[0]:.3f}, {self.interval[1]:.3f}], {self.p_gold['base']:.3f} without the arm "
            f"({gain:+.3f} [{low:.3f}, {high:.3f}])"
        )
        if self.edges:
            words += f"; at the edge of what was tried: {', '.join(self.edges)}"
        return f"{words}; of all tried: " + "; ".join(f"{name}: {value:.3f}" for name, value in tried.items())


def chooser(row: ArmRow) -> ArmRow | None:
    """The arm whose choice `row` takes: itself, or the arm that it is made from.

    None where nothing is chosen.
    """
    if row.role == "ceiling":
        return ARMS["ngd"] if row.references == "own" else None
    if row.solution == "reuse" and row.control_of:
        return ARMS[row.control_of]
    return row if axes_of(row) else None


def axes_of(row: ArmRow) -> tuple[Axis, ...]:
    """What is chosen of an arm; a control has the axes of its method."""
    for name in (row.name, row.control_of):
        if name in AXES:
            return AXES[name]
    return DESCENT if row.uses_learning_rate and row.builds == "solver" and row.role != "base" else ()


def with_choices(method: MethodConfig, chosen: dict[str, Any]) -> MethodConfig:
    """`method` with the choices that are keys of it."""
    made = copy.deepcopy(method)
    for key, value in chosen.items():
        if not key.startswith("option."):
            *parents, last = key.split(".")
            section: Any = made
            for parent in parents:
                section = getattr(section, parent)
            setattr(section, last, value)
    return made


def options_among(chosen: dict[str, Any]) -> dict[str, Any]:
    """The choices that are options of an arm, by their names."""
    return {key.removeprefix("option."): value for key, value in chosen.items() if key.startswith("option.")}


def in_words(chosen: dict[str, Any]) -> str:
    """A setting as a reader sees it, such as "learning_rate=0.1, mixing=dense"."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{key.removeprefix('option.')}={text(value)}" for key, value in chosen.items())
