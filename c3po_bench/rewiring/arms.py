"""The table of rewiring arms. A registered surrogate is an arm by itself.

Controls are surrogates with other inputs.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError, unknown
from c3po_bench.rewiring.rewirer import Recipe
from c3po_bench.rewiring.surrogates import SURROGATES, checked_options, load_surrogate

if TYPE_CHECKING:
    from c3po_bench.config import Config
    from c3po_bench.tasks.taskset import TaskSet


@dataclass(frozen=True)
class ArmSpec:
    """How an arm is made from a surrogate.

    neighborhood: embedding (retrieved), random, self (the item itself: the oracle) or none.
    labels: true, or shuffled (drawn at random from each neighbor's choices).
    options: own, or permuted: each neighbor's prompt lists its options in another order.
    of: the arm whose `arm.NAME` options it takes over.
    """

    surrogate: str
    neighborhood: str = "embedding"
    labels: str = "true"
    options: str = "own"
    kind: str = "surrogate"  # surrogate, baseline, control or oracle: how tables and the verdict speak of it
    of: str = ""
    about: str = ""


ARMS: dict[str, ArmSpec] = {
    "mode_finding": ArmSpec("mode_finding", "none", about="mean shift among the references' pathways"),
    "kernel_regression": ArmSpec(
        "kernel_regression", about="kernel mean of the neighbors' pathways, mixed by alpha"
    ),
    "ngd": ArmSpec("ngd", about="gradient descent on the neighbors' loss"),
    "oracle": ArmSpec("ngd", "self", kind="oracle", about="gradient descent on the item's own true label"),
    "planted_optimum": ArmSpec(
        "planted_optimum", "none", kind="oracle", about="the planted testbed's own pathway"
    ),
    "ngd_random_neighbors": ArmSpec(
        "ngd", "random", kind="control", of="ngd", about="ngd with references drawn at random"
    ),
    "ngd_shuffled_labels": ArmSpec(
        "ngd",
        labels="shuffled",
        kind="control",
        of="ngd",
        about="ngd with the neighbors' labels drawn at random",
    ),
    "ngd_permuted_options": ArmSpec(
        "ngd",
        options="permuted",
        kind="control",
        of="ngd",
        about="ngd with the neighbors' options in another order",
    ),
    "kernel_regression_random_neighbors": ArmSpec(
        "kernel_regression",
        "random",
        kind="control",
        of="kernel_regression",
        about="kernel regression over references drawn at random",
    ),
    "mode_finding_random_neighbors": ArmSpec(
        "mode_finding_random_neighbors",
        "none",
        kind="control",
        of="mode_finding",
        about="mode finding towards references drawn at random",
    ),
    "random_pathway": ArmSpec("random_pathway", kind="control", about="a random move as far as ngd's"),
    "routing_temperature": ArmSpec(
        "routing_temperature", "none", kind="baseline", about="own routing, sharpened"
    ),
}
MODES = ("mode_finding", "mode_finding_random_neighbors")  # read the references' pathways, and no loss

BASELINES: dict[str, str] = {
    name: f"c3po_bench.rewiring.baselines.{name}:{name}"
    for name in ("icl", "knn_vote", "soft_prompt", "prefix_tuning", "router_tuning", "sft")
}
"""Arms that are not rewirings.

Name -> `module:factory`, called with the backend's workbench and the arm's options.
"""


def arm_names() -> list[str]:
    """Every arm of the rewiring backend."""
    return ["base", *dict.fromkeys([*ARMS, *SURROGATES, *BASELINES])]


def spec_of(name: str) -> ArmSpec:
    """The spec of a surrogate arm; a surrogate without a row in `ARMS` uses retrieved neighbors."""
    if name in ARMS:
        return ARMS[name]
    if name in SURROGATES:
        return ArmSpec(name)
    raise unknown("arm", name, arm_names())


def needs_bank(name: str) -> bool:
    """Whether the arm learns from the reference set."""
    if name == "base" or name in BASELINES:
        return False
    spec = spec_of(name)
    return spec.neighborhood in ("embedding", "random") or spec.surrogate in MODES


def learns_a_rate(name: str) -> bool:
    """Whether `method.tune` concerns the arm: it descends, or evaluates the loss that NGD descends."""
    return (
        name != "base"
        and name not in BASELINES
        and spec_of(name).surrogate not in (*MODES, "routing_temperature")
    )


def options(cfg: Config, name: str) -> dict[str, Any]:
    """The arm's options: its function's defaults with `arm.NAME` over them.

    A control has those of the arm it is of, too.
    """
    given = dict(cfg.arm.get(name, {}))
    if name == "base":
        if given:
            raise UserError("arm.base takes no options")
        return {}
    if name in ARMS and ARMS[name].of:
        given = dict(cfg.arm.get(ARMS[name].of, {})) | given
    return checked_options(
        name, baseline(name) if name in BASELINES else load_surrogate(spec_of(name).surrogate), given
    )


def baseline(name: str) -> Any:
    """The factory of a baseline arm."""
    module, attribute = BASELINES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def recipe(cfg: Config, name: str) -> Recipe | None:
    """How the arm rewires; None for base."""
    chosen = options(cfg, name)
    if name == "base":
        return None
    spec = spec_of(name)
    descent = {"ngd": "kept", "random_pathway": "wanted"}.get(name, "")
    return Recipe(
        functools.partial(load_surrogate(spec.surrogate), **chosen), spec.neighborhood, spec.labels, descent
    )


def check_arms(cfg: Config) -> None:
    """One-line errors for unknown arms and options of arms."""
    for name in cfg.arms:
        if name not in arm_names():
            raise unknown("arm", name, arm_names())
    for name in cfg.arm:
        if name not in arm_names():
            raise unknown("arm", name, arm_names())
        options(cfg, name)
    if cfg.scoring.permute_options and any(n in ARMS and ARMS[n].options == "permuted" for n in cfg.arms):
        raise UserError(
            "scoring.permute_options=true permutes every prompt already: leave out the arm ngd_permuted_options, "
            "which asks what happens when only the neighbors' options move"
        )


def check_tasks(cfg: Config, tasks: TaskSet) -> None:
    """One line where an arm can't answer a task."""
    written = [name for name, task in tasks.load().items() if task.OUTPUT_TYPE != "multiple_choice"]
    for name in written:
        if (tasks.load()[name].config.generation_kwargs or {}).get("do_sample"):
            raise UserError(
                f"task {name} samples its answers, and arms here write the likeliest: give it do_sample=false"
            )
    unable = [
        name for name in cfg.arms if name in ARMS and ARMS[name].neighborhood == "self" or name == "knn_vote"
    ]
    if written and unable:
        raise UserError(
            f"arm {unable[0]} needs choices, and task {written[0]} has written answers: leave one of them out"
        )
