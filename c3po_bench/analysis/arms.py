"""What analysis and report know of an arm: the facts that its run copied from its backend's table of arms.

Nothing here knows an arm by name but `base`, so arms of plugins are treated like our own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from c3po_bench.store.reader import Run
from c3po_bench.store.versions import outdated

BASE = "base"
METHODS = ("method", "baseline")
"""Roles of arms that try to beat base. Tables, charts and the verdict treat them alike."""


class Arm(NamedTuple):
    """An arm's facts.

    Attributes:
        name: what `arms=[...]` calls it.
        title: what a reader calls it.
        role: base, method, baseline, control, ceiling (an arm that sees labels) or repeat (base once more).
        control_of: the arm that it is a control of.
        change: of a control, what it does otherwise than that arm, such as "random neighbors".
        not_due_to: of a control, what a gain that it shares is not due to, such as "retrieval".
        place: of a control, its place among those of its arm, the strictest first.
        losses_over: what its losses are listed by: `steps` of a descent, or `shares` of the original pathway.
    """

    name: str
    title: str
    role: str
    control_of: str | None = None
    change: str = ""
    not_due_to: str = ""
    place: int = 0
    losses_over: str = "steps"
    about: str = ""


REPEAT = "repeat"
"""Role of the base model asked once more in other batches: what it changes is the noise of everybody's numbers."""


def arm_of(run: Run) -> Arm:
    """The facts of the arm of `run`."""
    row = run.result["arm_row"]
    return Arm(**{name: row[name] for name in Arm._fields if name in row})


def prompt_differs(run: Run) -> bool:
    """Whether the run declares that its prompts are not the base's by nature (in-context feedback)."""
    return bool(run.result["settings"].get("prompt_differs"))


def outdated_of(run: Run, other: Run) -> str:
    """What of two runs that are compared has another version today; empty where nothing has."""
    notes = {
        one.arm: outdated(one.result, "plugins" in one.provenance["identity"])
        for one in dict.fromkeys((run, other))
    }
    named = [text if arm == run.arm else f"{arm} {text}" for arm, text in notes.items() if text]
    return "; ".join(named)


def columns_of(run: Run) -> dict[str, str]:
    """The columns about the arm that a table's rows on `run` carry: name, title and role."""
    arm = arm_of(run)
    return {"arm": arm.name, "title": arm.title, "role": arm.role}


def display_name(row: Mapping[str, Any]) -> str:
    """A table's row as a reader calls it: the arm's title, and what its label says besides the arm's name."""
    return row["title"] + settings_text(row)


def settings_text(row: Mapping[str, Any]) -> str:
    """What a row's label says besides the arm's name: " (k=3)", " [e8d54f]", or nothing."""
    return row["label"][len(row["arm"]) :]
