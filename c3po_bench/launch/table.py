"""A sweep as one table: its varied settings beside accuracy, the difference to base and the test, a row a run."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from c3po_bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from c3po_bench.launch.folder import SweepFolder
    from c3po_bench.store.reader import Run


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


def show_sweep(folder: SweepFolder) -> bool:
    """Print a sweep's table, write it beside the sweep, and say what is not done. True if every cell is."""
    from rich.console import Console

    from c3po_bench.analysis.ablation import write_table
    from c3po_bench.analysis.tables import sweep_table
    from c3po_bench.launch.status import statuses

    console = Console(width=None if sys.stdout.isatty() else 160)
    counts = Counter(status.status for status in statuses(folder))
    shards = folder.results_dir / "shards"
    if runs_of(folder):
        frame = sweep_frame(folder)
        console.print(sweep_table(frame))
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
