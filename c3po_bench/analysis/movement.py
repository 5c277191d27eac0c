"""How far arms moved pathways, beside how far the items' own pathways lie apart: columns, rows, sentences.

An arm that shifts less of the routing weight than `STILL` cannot change what the model says, whatever it is
meant to do: a null of it says nothing about the method. One that moves many natural spreads leaves the
pathways that the model knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from c3po_bench.analysis.arms import columns_of
from c3po_bench.analysis.frames import known
from c3po_bench.store.reader import Run

STILL = 0.02
"""Share of the routing weight (total variation, mean over critical layers) below which nothing is moved."""


def movement_columns(run: Run) -> dict[str, float]:
    """`moved` and `natural_spread` of a run, means over its layers; NaN where nothing was moved or measured.

    The spread is that of two items of one task, or of two tasks where each has but one item.
    """
    found = run.result.get("movement", {})
    spread = found.get("spread") or found.get("spread_between_tasks")
    return {"moved": _mean(found.get("total_variation")), "natural_spread": _mean(spread)}


def movement_rows(runs: Sequence[Run], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row a run that moved pathways: means over layers, NaN where there is nothing.

    Args:
        runs: of one store.
        labels: of the runs, by id; runs without one are left out.
    """
    rows = []
    for run in runs:
        found = run.result.get("movement")
        if not found or run.run_id not in labels:
            continue
        row: dict[str, Any] = (
            columns_of(run) | {"label": labels[run.run_id], "run_id": run.run_id} | movement_columns(run)
        )
        for name in ("mass_before", "mass_after", "kept", "entropy_before", "entropy_after"):
            row[name] = _mean(found[name])
        for name in ("loss_first", "loss_last", "similarity"):
            row[name] = math.nan if found[name] is None else found[name]
        rows.append(row | {"still": row["moved"] < STILL, "times": times(row)})
    return rows


def times(row: Mapping[str, Any]) -> float:
    """How many natural spreads a row moved; NaN where the spread is not known, or 0."""
    return row["moved"] / row["natural_spread"] if row["natural_spread"] > 0 else math.nan


def times_text(row: Mapping[str, Any]) -> str:
    """The same in words, such as "55 times the natural spread"."""
    value = times(row)
    return f"{value:.2g} times the natural spread" if value < 10 else f"{value:,.0f} times the natural spread"


def movement_sentences(rows: Sequence[Mapping[str, Any]], name: Any) -> list[str]:
    """What a reader must know of rows of `compare` before a null or a gain is read.

    Args:
        rows: of methods, one for each arm or setting.
        name: gives what a reader calls the arm of a row.
    """
    moved = [row for row in rows if known(row["moved"])]
    still = [row for row in moved if row["moved"] < STILL]
    far = [
        row
        for row in moved
        if row["moved"] >= STILL and known(row["natural_spread"]) and row["natural_spread"] > 0
    ]
    out = []
    if still:
        shifts = ", ".join(f"{name(row)} ({row['moved']:.3f} of the routing weight)" for row in still)
        spread = next((row["natural_spread"] for row in still if known(row["natural_spread"])), None)
        apart = "" if spread is None else f"; items' own pathways lie {spread:.3f} apart"
        out.append(
            f"Hardly moved this model's routing: {shifts}{apart}. That such an arm gains nothing says nothing of the method."
        )
    if far:
        shifts = ", ".join(f"{name(row)} moves {row['moved']:.2f} ({times_text(row)})" for row in far)
        out.append(
            f"Of the routing weight, {shifts}; that spread is how far two items' own pathways lie apart."
        )
    return out


def _mean(values: Sequence[float] | None) -> float:
    return math.fsum(values) / len(values) if values else math.nan
