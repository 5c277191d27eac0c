"""Which of a store's runs the report puts side by side, and what it says of the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from c3po_bench.analysis.compare import records
from c3po_bench.analysis.roles import BASE
from c3po_bench.analysis.verdict import summary_rows

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

MOST_RUNS = 24  # shown side by side; of larger stores the best of each arm
BEST = 3


@dataclass(frozen=True)
class Selection:
    """The runs shown, their rows of the comparison, and a sentence on what was left out."""

    runs: list[Run]
    rows: pd.DataFrame
    note: str


def select(runs: Sequence[Run], compared: pd.DataFrame) -> Selection:
    """All runs of an experiment.

    Of a sweep each arm's best cells and the bases, said to be picked afterwards.
    """
    known = set(compared["run_id"])
    shown = [run for run in runs if run.run_id in known]
    if len(shown) <= MOST_RUNS:
        return Selection(shown, compared, "")
    picked = _picked(records(compared))
    kept = [run for run in shown if run.run_id in picked]
    where = " (of feedback: in scope)" if any(compared["scope"]) else ""
    note = (
        f"{len(kept)} of {len(shown)} runs are shown here: the bases and each arm's {BEST} largest differences{where}. They "
        "were picked after the scores were known, so expect less of them on new items; the ablation table has every run."
    )
    return Selection(kept, compared.loc[[run_id in picked for run_id in compared["run_id"]]], note)


def _picked(rows: list[dict[str, Any]]) -> set[str]:
    """Each arm's best runs with their bases, the best of every arm first, then other bases while there is room."""
    followed: dict[str, dict[str, Any]] = {}  # of feedback the row in scope, where a run has one
    for row in rows:
        if row["scope"] == "in" or (row["scope"] and row["run_id"] not in followed):
            followed[row["run_id"]] = row
    ranked: list[tuple[int, dict[str, Any]]] = []
    for told in (summary_rows(rows), followed.values()):
        by_arm: dict[str, list[dict[str, Any]]] = {}
        for row in told:
            if row["arm"] != BASE:
                by_arm.setdefault(row["arm"], []).append(row)
        for found in by_arm.values():
            found.sort(
                key=lambda row: -row["difference"] if row["difference"] == row["difference"] else math.inf
            )
            ranked += enumerate(found[:BEST])
    wanted = [[row["base_run_id"], row["run_id"]] for _, row in sorted(ranked, key=lambda pair: pair[0])]
    wanted += [[row["run_id"]] for row in rows if row["arm"] == BASE]
    picked: set[str] = set()
    for ids in wanted:
        if len(picked.union(ids)) <= 4 * MOST_RUNS:
            picked.update(ids)
    return picked


def commands(experiments: Sequence[dict[str, Any]], runs: Sequence[Run]) -> list[str]:
    """The commands that made the store, each once: those of its experiments, else of its runs."""
    found = [str(e["command"]) for e in experiments if e.get("command")]
    found = found or [str(run.provenance["command"]) for run in runs if run.provenance.get("command")]
    return list(dict.fromkeys(found))


def name_of(experiments: Sequence[dict[str, Any]], fallback: str) -> str:
    """The experiment's name, or how many there are."""
    names = list(dict.fromkeys(str(e.get("name")) for e in experiments if e.get("name")))
    if not names:
        return fallback
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
