"""A sweep as one table: its varied settings beside accuracy, the difference to base and the test, a row a run."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from c3po_bench.launch.folder import SweepFolder
    from c3po_bench.store.reader import Run

OVERALL = ("mean of tasks", "all items")


def runs_of(folder: SweepFolder) -> list[Run]:
    """The finished runs of a sweep's done cells, each once."""
    from c3po_bench.store.reader import Run

    names = []
    for cell in range(len(folder.cells)):
        names += (folder.state(cell) or {}).get("runs", [])
    paths = [
        Path(name) if Path(name).is_absolute() else folder.results_dir / name for name in dict.fromkeys(names)
    ]
    return [Run(path) for path in paths if (path / "result.json").exists()]


def sweep_frame(folder: SweepFolder) -> pd.DataFrame:
    """The ablation table of a sweep; see `analysis.ablation`.

    Raises:
        UserError: while no cell is done.
    """
    from c3po_bench.analysis.ablation import ablation_table

    runs = runs_of(folder)
    if not runs:
        raise UserError(
            f"{folder.path.name}: no cell is done yet: python -m c3po_bench.sweep status {folder.results_dir}"
        )
    return ablation_table(runs)


def overall_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each run over all its tasks.

    Where a run has no such row, of each task, many of one benchmark as one.
    """
    shown: Any = frame[(frame["metric"] == "acc") & (frame["group"].fillna("") == "")]
    for overall in OVERALL:
        summed_up = shown["run_id"].isin(shown.loc[shown["task"] == overall, "run_id"])
        shown = shown[~summed_up | (shown["task"] == overall)]
    return shown[shown["run_id"].notna() | shown["task"].isin(shown.loc[shown["run_id"].notna(), "task"])]


def console_rows(frame: pd.DataFrame) -> Table:
    """A row a run (see `overall_rows`), settings that vary as columns, and the task where there are several."""
    from rich.table import Table
    from rich.text import Text

    from c3po_bench.analysis.ablation import axes, shown
    from c3po_bench.analysis.verdict import amount, p_text

    varied, chosen = axes(frame), overall_rows(frame)
    tasks = list(dict.fromkeys(chosen["task"].dropna()))
    named = ["task"] if len(tasks) > 1 else []
    table = Table(
        caption=Text(f"accuracy: {tasks[0]}" if tasks and not named else "accuracy"), caption_justify="left"
    )
    for name in [*varied, *named, "arm"]:
        table.add_column(name, no_wrap=True)
    for name in ("n", "accuracy", "difference", "95% paired", "p", "s/item"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in shown(chosen, varied):
        cells = ["" if _lacks(row[name]) else str(row[name]) for name in [*varied, *named]]
        cells += [str(row["arm"]), _number(row["n"], "{:.0f}"), _number(row["value"], "{:.1%}")]
        points = _lacks(row["difference"])
        cells.append("" if points else f"{row['difference'] * 100:+.1f}")
        between = (
            ""
            if points or _lacks(row["diff_low"])
            else f"[{row['diff_low'] * 100:.1f}, {row['diff_high'] * 100:.1f}]"
        )
        cells += [between, "" if _lacks(row["p"]) else p_text(row["p"])]
        cells.append("" if _lacks(row["seconds_per_item"]) else amount(row["seconds_per_item"]))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def show_sweep(folder: SweepFolder) -> bool:
    """Print a sweep's table, write it beside the sweep, and say what is not done. True if every cell is."""
    from rich.console import Console

    from c3po_bench.analysis.ablation import write_table
    from c3po_bench.launch.status import statuses

    console = Console(width=None if sys.stdout.isatty() else 160)
    counts = Counter(status.status for status in statuses(folder))
    shards = folder.results_dir / "shards"
    if runs_of(folder):
        frame = sweep_frame(folder)
        console.print(console_rows(frame))
        csv, parquet = write_table(frame, folder.path / "ablation")
        console.print(f"table:   {csv} and {parquet.name}", highlight=False, markup=False, soft_wrap=True)
    if shards.is_dir():
        console.print(
            f"shards:  python -m c3po_bench.sweep merge {folder.results_dir}", highlight=False, markup=False
        )
    left = {name: count for name, count in counts.items() if name != "done"}
    if left:
        said = ", ".join(f"{count} {name}" for name, count in left.items())
        console.print(
            f"{said} of {counts.total()} cells: python -m c3po_bench.sweep status {folder.results_dir}, then retry",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return not left


def _lacks(value: Any) -> bool:
    import pandas as pd

    return bool(pd.isna(value))


def _number(value: Any, form: str) -> str:
    return "" if _lacks(value) else form.format(value)
