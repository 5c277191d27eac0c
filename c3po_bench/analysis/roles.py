"""What an arm is for in a comparison: a method, a control that must not gain, a ceiling that saw labels."""

from __future__ import annotations

from typing import NamedTuple

BASE = "base"
THEN = "_then_"  # RECIPE_then_METHOD rewires a tuned model
CEILINGS = ("oracle", "planted_optimum", "revised")
TITLES = {
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


class Control(NamedTuple):
    """A control arm: of which arm, what it does in words, and what a gain is not due to if the control has it, too."""

    of: str
    title: str
    ingredient: str


CONTROLS = {
    "ngd_random_neighbors": Control("ngd", "random neighbors", "retrieval"),
    "mode_finding_random_neighbors": Control("mode_finding", "random neighbors", "which references are near"),
    "kernel_regression_random_neighbors": Control("kernel_regression", "random neighbors", "retrieval"),
    "ngd_shuffled_labels": Control("ngd", "shuffled labels", "the neighbors' labels"),
    "random_pathway": Control("ngd", "a random pathway", "where the pathway moves"),
    "ngd_permuted_options": Control(
        "ngd", "neighbors with permuted options", "the neighbors' answer letters"
    ),
}


def role(arm: str) -> str:
    """One of base, control, ceiling, method."""
    if arm == BASE:
        return BASE
    if method(arm) in CONTROLS:
        return "control"
    return "ceiling" if method(arm) in CEILINGS else "method"


def method(arm: str) -> str:
    """The arm, or the last of a chain: what a model tuned before is rewired by."""
    return arm.rpartition(THEN)[2]


def controls_of(arm: str) -> list[str]:
    """The names of the controls of `arm`, the strictest first; those of a chain are tuned as it is."""
    tuned = arm.removesuffix(method(arm))
    return [tuned + name for name, control in CONTROLS.items() if control.of == method(arm)]


def title(arm: str) -> str:
    """The arm's name as a reader says it."""
    return " then ".join(TITLES.get(part, part.replace("_", " ")) for part in arm.split(THEN))
