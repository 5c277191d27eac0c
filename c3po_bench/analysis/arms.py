"""What analysis and report know of an arm: the facts that its run copied from its backend's table of arms.

Nothing here knows an arm by name but `base`, so arms of plugins are treated like our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

BASE = "base"
METHODS = ("method", "baseline")
"""Roles of arms that try to beat base. Tables, charts and the verdict treat them alike."""
LAST = 1_000_000


class Arm(NamedTuple):
    """An arm's facts.

    Attributes:
        name: what `arms=[...]` calls it.
        title: what a reader calls it.
        role: base, method, baseline, control or ceiling (an arm that sees labels).
        control_of: the arm that it is a control of.
        change: of a control, what it does otherwise than that arm, such as "random neighbors".
        not_due_to: of a control, what a gain that it shares is not due to, such as "retrieval".
        place: its place in its backend's table, which lists the strictest control of an arm first.
        losses_over: what its losses are listed by: `steps` of a descent, or `shares` of the original pathway.
    """

    name: str
    title: str
    role: str
    control_of: str | None = None
    change: str = ""
    not_due_to: str = ""
    place: int = LAST
    losses_over: str = "steps"


def arm_of(run: Run) -> Arm:
    """The facts of the arm of `run`."""
    row = run.result["arm_row"]
    return Arm(**{name: row[name] for name in Arm._fields if name in row})


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


# arm_row fallback: goes with evaluate/bridge, which makes rows of it for a backend without a table.
_TITLES = {
    "c3po": "C3PO",
    "c3po_from_sft": "C3PO from SFT",
    "c3po_kl": "C3PO with KL",
    "c3po_no_near": "C3PO without near scope",
    "c3po_no_out": "C3PO without out of scope",
    "dpo": "DPO",
    "dpo_nll": "DPO + NLL",
    "icl": "ICL",
    "mode_finding_random_neighbors": "mode finding with random neighbors",
    "knn_vote": "kNN vote",
    "kernel_regression_random_neighbors": "kernel regression with random neighbors",
    "in_context_cot": "in context, chain of thought",
    "ngd": "NGD",
    "ngd_permuted_options": "NGD with permuted options",
    "ngd_random_neighbors": "NGD with random neighbors",
    "ngd_shuffled_labels": "NGD with shuffled labels",
    "scd": "SCD",
    "scd_negatives": "SCD with negatives",
    "sft": "SFT",
}
_CONTROLS = {
    "ngd_random_neighbors": ("ngd", "random neighbors", "retrieval"),
    "mode_finding_random_neighbors": ("mode_finding", "random neighbors", "which references are near"),
    "kernel_regression_random_neighbors": ("kernel_regression", "random neighbors", "retrieval"),
    "ngd_shuffled_labels": ("ngd", "shuffled labels", "the neighbors' labels"),
    "random_pathway": ("ngd", "a random pathway", "where the pathway moves"),
    "ngd_permuted_options": ("ngd", "neighbors with permuted options", "the neighbors' answer letters"),
}
_CEILINGS = ("oracle", "planted_optimum", "revised")


def _row_of_today(name: str) -> dict[str, Any]:
    """What the tables of the first form say of an arm, or of a chain such as `c3po_then_ngd`."""
    *_, method = parts = name.split("_then_")
    row: dict[str, Any] = {"name": name, "role": BASE if name == BASE else "method"}
    row["title"] = " then ".join(_TITLES.get(part, part.replace("_", " ")) for part in parts)
    if method in _CONTROLS:
        of, row["change"], row["not_due_to"] = _CONTROLS[method]
        row |= {"role": "control", "control_of": name.removesuffix(method) + of}
        row["place"] = list(_CONTROLS).index(method)
    elif method in _CEILINGS:
        row["role"] = "ceiling"
    if name.startswith("kernel_regression"):
        row["losses_over"] = "shares"
    return row
