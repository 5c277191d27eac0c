"""Versions of what makes numbers. A published number belongs to the code that made it.

Every arm, scoring rule and metric has a version, 1 at first, which is part of its runs' identity. Whoever
changes one so that its numbers can change raises its version here, in the same commit, and says why. Records
of another version than today's are marked and leave headline tables until they are made again.
`tests/versions` holds small fixed numbers of every arm against this table: they must not change without it.
"""

from collections.abc import Mapping
from typing import Any

ARMS: dict[str, int] = {
    "base_again": 2,  # reads with an engine of its own, not what base has read
    "knn_vote": 2,  # votes relative to the largest, and a guess only where nobody votes
    "random_pathway": 2,  # moves within each layer's core, as far as NGD moved there
    "sft": 2,  # the adapter is outside routers and experts: PEFT's all-linear took them, too
}
"""Arms whose version is not 1. Those of a plugin declare their own (`ArmRow.version`)."""

CONTROLS: dict[str, int] = {
    "random_neighbors": 2,  # as many as were retrieved, with their weights
}
"""Endings of controls whose version is not 1.

A control also has the raises of the arm that it is a control of.
"""

SCORERS: dict[str, int] = {"cloze": 1, "letters": 1, "length_normalized": 1}
METRICS: dict[str, int] = {"acc": 1, "acc_norm": 1, "p_gold": 1, "score": 1, "drift": 1, "similarity": 1}
METRICS |= {"degeneration": 1}
CONTROL_ENDINGS = ("random_neighbors", "shuffled_labels", "permuted_options", "permuted_experts")
THEN, ENDINGS = "_then_", ("_joint", "_mix")


def arm_version(name: str) -> int:
    """The version of our own arm `name`: 1, and one more for every raise of it and of what it is made of.

    A chain (RECIPE_then_METHOD) is made of both, a control of its arm, RECIPE_joint of its recipe.
    """
    return 1 + sum(map(_raises, name.split(THEN)))


def _raises(name: str) -> int:
    if name in ARMS:
        return ARMS[name] - 1
    for ending in ENDINGS:
        if name.endswith(ending):
            return _raises(name.removesuffix(ending))
    for ending in CONTROL_ENDINGS:
        if name.endswith(f"_{ending}"):
            return CONTROLS.get(ending, 1) - 1 + _raises(name.removesuffix(f"_{ending}"))
    return 0


def shared_versions(rule: str, metrics: Any) -> dict[str, int]:
    """The versions of a scoring rule and of `metrics` (names), by name; 1 for what lm-eval alone defines."""
    return {rule: SCORERS.get(rule, 1)} | {name: METRICS.get(name, 1) for name in sorted(set(metrics))}


def outdated(result: Mapping[str, Any], plugins: bool = False) -> str:
    """What of a run has another version today, in words: "recorded with version 1, now 2"; nothing if all is the same.

    Args:
        result: of the run (`store.schema.Result`). One without versions is older than these: all were 1.
        plugins: whether plugins ran: their arms count their versions themselves, from 1 on.
    """
    recorded = result.get("versions", {})
    own, now = int(recorded.get("arm", 1)), arm_version(result["arm"])
    notes = [] if own == now or plugins and own > now else [f"recorded with version {own}, now {now}"]
    for name, version in recorded.items():
        today = (SCORERS | METRICS).get(name, version)
        if name != "arm" and version != today:
            notes.append(f"{name} recorded with version {version}, now {today}")
    return "; ".join(notes)
