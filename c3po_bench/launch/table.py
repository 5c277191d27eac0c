"""A sweep as one table: a row for each run, with settings that vary, accuracy and difference to base."""

import sys
from collections import Counter
from pathlib import Path

from rich.console import Console

from c3po_bench.analysis.ablation import ablation_table, write_table
from c3po_bench.analysis.tables import sweep_table
from c3po_bench.errors import DamagedFile
from c3po_bench.launch.cells import statuses
from c3po_bench.launch.sweep_folder import SweepFolder
from c3po_bench.store.reader import Run


def runs_of(folder: SweepFolder) -> list[Run]:
    """The finished runs of a sweep's done cells, each once."""
    states = [folder.state(cell) or {} for cell in range(len(folder.cells))]
    names = dict.fromkeys(name for state in states for name in state.get("runs", []))
    for name in names:
        if ".." in Path(name).parts or Path(name).is_absolute():  # a state is data: it leads nowhere else
            raise DamagedFile(f"{folder.path}/state names {name[:100]!r}, which is no run of this store")
    runs = (Run(folder.results_dir / name) for name in names)
    return [run for run in runs if (run.path / "result.json").exists()]


def show_sweep(folder: SweepFolder) -> bool:
    """Print a sweep's table, write it beside the sweep, and say what is not done. True if every cell is."""
    console = Console(width=None if sys.stdout.isatty() else 160)

    def show(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    counts = Counter(cell.status for cell in statuses(folder))
    if runs := runs_of(folder):
        frame = ablation_table(runs)
        console.print(sweep_table(frame, console.width))
        try:
            csv, parquet = write_table(frame, folder.path / "ablation")
            show(f"table:   {csv} and {parquet.name}")
        except OSError as error:  # a store that can only be read can still be viewed
            show(f"table:   not written: {error.filename or folder.path}: {error.strerror or error}")
    if (folder.results_dir / "shards").is_dir():
        show(f"shards:  python -m c3po_bench.sweep merge {folder.results_dir}")
    left = [f"{count} {name}" for name, count in counts.items() if name != "done"]
    if left:
        later = f"python -m c3po_bench.sweep status {folder.results_dir}, then retry"
        show(f"{', '.join(left)} of {counts.total()} cells: {later}")
    return not left
