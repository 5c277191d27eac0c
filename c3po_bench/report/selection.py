"""Which of a store's runs the report puts side by side, and what it says of the rest."""

from __future__ import annotations

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
    """All runs of an experiment; of a sweep the bases and each arm's best cells, said to be picked afterwards."""
    known = set(compared["run_id"])
    shown = [run for run in runs if run.run_id in known]
    if len(shown) <= MOST_RUNS:
        return Selection(shown, compared, "")
    best: dict[str, list[dict[str, Any]]] = {}
    rows = records(compared)
    told = summary_rows(rows) or rows
    for row in sorted(told, key=lambda r: -r["difference"] if r["difference"] == r["difference"] else 0.0):
        best.setdefault(row["arm"], []).append(row)
    picked = {row["run_id"] for arm, found in best.items() for row in found[: None if arm == BASE else BEST]}
    picked = set(sorted(picked)[: 4 * MOST_RUNS])
    kept = [run for run in shown if run.run_id in picked]
    note = (
        f"{len(kept)} of {len(shown)} runs are shown here: the bases and each arm's {BEST} largest differences. They were "
        "picked after the scores were known, so expect less of them on new items; the ablation table has every run."
    )
    return Selection(kept, compared.loc[[run_id in picked for run_id in compared["run_id"]]], note)


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
