"""The planted testbed read out: what share of a gap that is known to be there each arm recovers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from c3po_bench.analysis.paired import DRAWS
from c3po_bench.models.embedded.planted_world import distance

if TYPE_CHECKING:
    from rich.table import Table

    from c3po_bench.store.reader import Run

OPTIMUM = "planted_optimum"


def share_recovered(runs: Sequence[Run], *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """(arm - base) / (optimum - base) over all items, with a paired bootstrap interval.

    Items are drawn together for arm, base and optimum; where few items leave draws without a gap, a bound may
    be infinite, and where there is no gap at all there is no share (NaN). `distance` is the mean total
    variation between the arm's pathways and the planted ones, 0 (the same) to 1 (disjoint).
    """
    rows = {run.arm: {(r["task"], r["doc_id"]): r for r in run.samples()} for run in runs}
    keys = sorted(rows["base"])
    correct = {arm: np.array([found[key]["correct"] for key in keys]) for arm, found in rows.items()}
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(keys), (draws, len(keys)), dtype=np.int32)
    means = {
        arm: np.concatenate([values[p].mean(axis=1) for p in np.array_split(picks, 20)])
        for arm, values in correct.items()
    }
    table = []
    for arm, values in correct.items():
        whole = correct[OPTIMUM].mean() - correct["base"].mean()
        share = (values.mean() - correct["base"].mean()) / whole if whole else float("nan")
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = (means[arm] - means["base"]) / (means[OPTIMUM] - means["base"])
        low, high = _bounds(drawn[~np.isnan(drawn)]) if whole else (float("nan"), float("nan"))
        far = [_distance(rows[arm][key]) for key in keys]
        known = [value for value in far if value is not None]
        table.append(
            {
                "arm": arm,
                "n": len(keys),
                "accuracy": values.mean(),
                "share": share,
                "low": low,
                "high": high,
                "distance": float(np.mean(known)) if known else float("nan"),
            }
        )
    return pd.DataFrame(table)


def _bounds(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975], method="linear" if np.isfinite(drawn).all() else "nearest")
    return float(low), float(high)


def _distance(row: dict[str, Any]) -> float | None:
    if "pathway_after" not in row:
        return None
    return distance(row["pathway_after"], row["pathway_layers"], row["question"])


def gap_table(frame: pd.DataFrame) -> Table:
    """The shares as a console table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="share of the planted gap recovered")
    for name in ("arm", "n", "accuracy", "share", "95% interval", "distance to planted"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in frame.to_dict("records"):
        far = "" if np.isnan(row["distance"]) else f"{row['distance']:.3f}"
        share = "" if np.isnan(row["share"]) else f"{row['share']:.2f}"
        interval = "" if np.isnan(row["low"]) else f"[{row['low']:.2f}, {row['high']:.2f}]"
        table.add_row(
            *map(Text, (str(row["arm"]), str(row["n"]), f"{row['accuracy']:.3f}", share, interval, far))
        )
    return table
