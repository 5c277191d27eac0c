"""The table of rewiring arms: one row a method. A control is a method with one of its inputs replaced.

A method is a function from queries to pathways (`rewiring/methods/`). Its row says what it needs;
`with_controls` makes the rows of its controls. A plugin declares row and function together with the decorator
`method`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from c3po_bench.config import Config
from c3po_bench.contract import CHOICES, ArmRow
from c3po_bench.errors import UserError
from c3po_bench.registry import Registry, checked_options, load, options_of
from c3po_bench.store.versions import arm_version

if TYPE_CHECKING:
    from c3po_bench.tasks.taskset import TaskSet

METHODS = "c3po_bench.rewiring.methods"
BASELINES = "c3po_bench.rewiring.baselines"
ROUTING = ("layers", "experts", "position", "final_mixing", "preserve_total_weight")
NEAR = (*ROUTING, "k", "kernel", "bandwidth")

CONTROLS: dict[str, dict[str, Any]] = {
    "random_neighbors": {
        "references": "random",
        "change": "random neighbors",
        "not_due_to": "retrieval",
        "about": "{title} with references drawn at random",
    },
    "shuffled_labels": {
        "shuffled_labels": True,
        "change": "shuffled labels",
        "not_due_to": "the neighbors' labels",
        "about": "{title} with the neighbors' labels drawn at random",
    },
    "permuted_options": {
        "permuted_options": True,
        "change": "neighbors with permuted options",
        "not_due_to": "the neighbors' answer letters",
        "about": "{title} with the neighbors' options in another order",
    },
}
"""What a control replaces of its method, by the ending of its name."""

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
    "shots": (1, math.inf),
}
"""Least and most of the options of our own arms, by name."""


def solver(
    name: str, title: str, about: str, *, file: str = "", role: str = "method", **fields: Any
) -> ArmRow:
    """The row of an arm that rewires by the function `name` of `rewiring/methods/FILE.py`."""
    fields = {"references": "retrieved", "uses_learning_rate": True, **fields}
    return ArmRow(
        name, title, role, about, factory=f"{METHODS}.{file or name}:{name}", builds="solver", **fields
    )


def baseline(name: str, title: str, about: str, **fields: Any) -> ArmRow:
    """The row of an arm that answers by other means.

    Its factory is called with the backend and its options.
    """
    return ArmRow(name, title, "baseline", about, factory=f"{BASELINES}.{name}:{name}", **fields)


def control(row: ArmRow, ending: str) -> ArmRow:
    """The row of the control of `row` that `CONTROLS` names `ending`."""
    fields = dict(CONTROLS[ending])
    title = f"{row.title} with {fields['change'].removeprefix('neighbors with ')}"
    fields |= {"title": title, "about": fields["about"].format(title=row.title)}
    return replace(
        row, name=f"{row.name}_{ending}", role="control", control_of=row.name, solution="", **fields
    )


def with_controls(row: ArmRow, *endings: str) -> Iterator[ArmRow]:
    """`row`, and a row for each of its controls, the strictest first."""
    yield row
    for place, ending in enumerate(endings):
        yield replace(control(row, ending), place=place)


def _rows() -> Iterator[ArmRow]:
    yield ArmRow("base", "base", "base", "the model as it is", passes=0.0)
    yield ArmRow(
        "base_again",
        "base again",
        "repeat",
        "the model as it is in other batches and another order: what changes is noise",
        factory="c3po_bench.rewiring.base_again:base_again",
        passes=1.0,
        other_batches=True,
    )
    yield solver(
        "mode_finding",
        "mode finding",
        "mean shift among the references' pathways",
        references="all",
        reads=NEAR,
        uses_learning_rate=False,
        passes=0.3,
    )
    yield solver(
        "mode_finding_random_neighbors",
        "mode finding with random neighbors",
        "mode finding towards references drawn at random",
        file="mode_finding",
        role="control",
        control_of="mode_finding",
        change="random neighbors",
        not_due_to="which references are near",
        references="all",
        reads=NEAR,
        uses_learning_rate=False,
        passes=0.3,
    )
    yield from with_controls(
        solver(
            "kernel_regression",
            "kernel regression",
            "kernel mean of the neighbors' pathways, mixed by alpha",
            losses_over="shares",
        ),
        "random_neighbors",
    )
    ngd = solver("ngd", "NGD", "gradient descent on the neighbors' loss", solution="store")
    yield from with_controls(ngd, "random_neighbors", "shuffled_labels")
    yield solver(
        "ngd_permuted_experts",
        "NGD with permuted experts",
        "NGD's own weights of the item, given to other experts",
        file="permuted_experts",
        role="control",
        control_of="ngd",
        change="permuted experts",
        not_due_to="which experts get the weight",
        place=2,
        solution="reuse",
    )
    yield solver(
        "random_pathway",
        "random pathway",
        "a random move as far as ngd's",
        role="control",
        control_of="ngd",
        change="a random pathway",
        not_due_to="where the pathway moves",
        place=3,
        solution="reuse",
    )
    yield replace(control(ngd, "permuted_options"), place=4)


def _ceilings_and_baselines() -> Iterator[ArmRow]:
    yield replace(
        solver("ngd", "oracle", "gradient descent on the item's own true label", role="ceiling"),
        name="oracle",
        kinds=(CHOICES,),
        reads_labels=True,
        references="own",
        passes=0.6,
    )
    yield solver(
        "planted_optimum",
        "planted optimum",
        "the pathway that was planted in the testbed",
        role="ceiling",
        references="none",
        uses_learning_rate=False,
    )
    yield solver(
        "right_expert",
        "right expert",
        "the expert that was trained on the item's skill (model=specialists)",
        role="ceiling",
        references="none",
        uses_learning_rate=False,
    )
    yield solver(
        "routing_temperature",
        "routing temperature",
        "original routing, sharpened",
        role="baseline",
        references="none",
        reads=ROUTING,
        uses_learning_rate=False,
    )
    yield baseline(
        "icl", "ICL", "the nearest references, answered, before the question", references="retrieved"
    )
    yield baseline(
        "knn_vote", "kNN vote", "the neighbors' answers alone", references="retrieved", kinds=(CHOICES,)
    )
    for name, title, about in (
        ("soft_prompt", "soft prompt", "trained embeddings before every prompt"),
        ("prefix_tuning", "prefix tuning", "trained keys and values before every prompt"),
        ("router_tuning", "router tuning", "the routers of the critical layers, trained on the references"),
        ("sft", "SFT", "LoRA on the references"),
    ):
        yield baseline(name, title, about, references="training")


ARMS: Registry[ArmRow] = Registry(
    "arm",
    {row.name: replace(row, version=arm_version(row.name)) for row in (*_rows(), *_ceilings_and_baselines())},
)


def method(
    name: str, *, title: str = "", controls: tuple[str, ...] = (), **fields: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function from queries to pathways as the arm `name`; for plugins.

    Args:
        name: of the arm.
        title: what a reader calls it; by default the name.
        controls: endings of `CONTROLS`; each makes one more arm, such as `NAME_random_neighbors`.
        fields: further fields of its `contract.ArmRow`.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        defaults = {"role": "method", "references": "retrieved", "uses_learning_rate": True}
        row = ArmRow(
            name, title or name.replace("_", " "), factory=function, builds="solver", **defaults | fields
        )
        for each in with_controls(row, *controls):
            ARMS.add(each.name)(replace(each, version=row.version - 1 + arm_version(each.name)))
        return function

    return register


def options(cfg: Config, row: ArmRow) -> dict[str, Any]:
    """The arm's options: its function's defaults with `arm_options.NAME` over them.

    A control takes those of its method, too.

    Raises:
        UserError: for an unknown option, or a value out of its range.
    """
    chosen = dict(cfg.arm_options.get(row.name, {}))
    if row.role == "base":
        if chosen:
            raise UserError("arm_options.base takes no options")
        return {}
    function = load(row.factory)
    if row.control_of:
        known, of_method = options_of(function), cfg.arm_options.get(row.control_of, {})
        chosen = {key: value for key, value in of_method.items() if key in known} | chosen
    found = checked_options(row.name, function, chosen)
    if function.__module__.startswith("c3po_bench."):
        for key, value in found.items():
            least, most = RANGES.get(key, (-math.inf, math.inf))
            if isinstance(value, int | float) and not least <= value <= most:
                bounds = f"between {least:g} and {most:g}" if most < math.inf else f"at least {least:g}"
                raise UserError(f"arm_options.{row.name}.{key}={value}: must be {bounds}")
    return found


def check_arms(cfg: Config) -> None:
    """Refuse unknown arms, and unknown options of arms, in one line."""
    for name in [*cfg.arms, *cfg.arm_options]:
        ARMS.check(name)
    for name in cfg.arm_options:
        options(cfg, ARMS[name])
    if cfg.scoring.permute_options and any(ARMS[name].permuted_options for name in cfg.arms):
        raise UserError(
            "scoring.permute_options=true permutes every prompt already: leave out the arm "
            "ngd_permuted_options, which asks what happens when only the neighbors' options move"
        )


def check_tasks(cfg: Config, tasks: TaskSet) -> None:
    """Refuse in one line an arm that can't answer one of the tasks."""
    written = [name for name, task in tasks.load().items() if task.OUTPUT_TYPE != "multiple_choice"]
    for name in written:
        if (tasks.load()[name].config.generation_kwargs or {}).get("do_sample"):
            raise UserError(
                f"task {name} samples its answers, and arms here write the likeliest: give it do_sample=false"
            )
    unable = [name for name in cfg.arms if ARMS[name].kinds == (CHOICES,)]
    if written and unable:
        raise UserError(
            f"arm {unable[0]} needs choices, and task {written[0]} has written answers: leave one of them out"
        )
