"""`python -m c3po_bench.sweep submit|status|retry|table|plan|merge|work`.

Sweeps on a cluster, beyond what Hydra offers.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from c3po_bench.errors import INTERRUPTED, OURS, UserError
from c3po_bench.explain import status_of
from c3po_bench.launch import slurm
from c3po_bench.launch.cells import report, run_cells, statuses
from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.merge import merge_shards
from c3po_bench.launch.plan import plan_text
from c3po_bench.launch.sweep_folder import SweepFolder, find_sweeps, freeze
from c3po_bench.runtime import ranks, signals
from c3po_bench.runtime.console import set_up_logging

SWEEP = "the results_dir of a sweep, or a folder in its sweep/"
log = logging.getLogger("c3po_bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: returns the exit status, after one line on standard error for what the user can mend."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt as stopped:
        why = stopped.args[0] if stopped.args else "interrupted"
        sys.stderr.write(f"stopped ({why}): the same command goes on from here\n")
        return INTERRUPTED
    except Exception as error:
        return status_of(error)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m c3po_bench.sweep", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def grouping(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--cells-per-job", type=int, default=1, metavar="N", help="cells run by one job, one model load"
        )
        command.add_argument("--dry-run", action="store_true", help="write the script, do not send it")

    submit = add(
        "submit", submit_command, "freeze a sweep's cells, send them to Slurm as an array job, return at once"
    )
    submit.add_argument(
        "overrides", nargs="+", help="as for c3po_bench -m: +sweep=NAME hydra/launcher=slurm ..."
    )
    grouping(submit)
    retry = add("retry", retry_command, "send again the cells that failed or are missing, and only these")
    retry.add_argument("folder", help=SWEEP)
    retry.add_argument("--local", action="store_true", help="run them here, one after another, not on Slurm")
    grouping(retry)
    status = add("status", status_command, "how far the sweeps of a results_dir are, and why cells failed")
    status.add_argument("folder", help=SWEEP)
    status.add_argument("--json", action="store_true", help="one JSON object a line")
    table = add(
        "table",
        table_command,
        "the sweep's table: settings, accuracy, difference to base; also written as CSV",
    )
    table.add_argument("folder", help=SWEEP)
    planned = add("plan", plan_command, "what a sweep would cost: cells, runs, items, hours, bank, memory")
    planned.add_argument(
        "overrides", nargs="+", help="as for c3po_bench -m: +sweep=NAME [+experiment=NAME] ..."
    )
    merge = add("merge", merge_command, "put the shards (shard=i/n) of a store's runs together")
    merge.add_argument("folder", nargs="+", help="the results_dir that the shards were given")
    work = add("work", work_command, "run cells here (what the array job calls)")
    work.add_argument("folder", help="a folder in a results_dir's sweep/")
    work.add_argument("--cells", type=int, nargs="*", help="numbers of the cells; default: all")
    work.add_argument("--groups", help="file in the folder that lists groups of cells")
    work.add_argument("--group", type=int, help="which group of that file")
    return top


def submit_command(options: argparse.Namespace) -> int:
    """`submit`."""
    grid = compose_grid(options.overrides)
    folder = freeze(grid)
    launcher = grid.launcher if "lurm" in str(grid.launcher.get("_target_")) else {}
    folder.update(launcher=launcher)  # for `retry`
    return send(folder, launcher, options)


def open_cells(folder: SweepFolder) -> list[int]:
    """The cells that are neither done nor on their way."""
    return [status.cell for status in statuses(folder) if status.status in ("failed", "missing")]


def send(folder: SweepFolder, launcher: dict[str, Any], options: argparse.Namespace) -> int:
    """Send the cells that are neither done nor on their way, `cells_per_job` at a time."""
    if options.cells_per_job < 1:
        raise UserError("--cells-per-job must be 1 or more")
    if not options.dry_run:
        slurm.require_cluster()
    chosen = open_cells(folder)
    groups = folder.groups(chosen, options.cells_per_job)
    if not chosen:
        sys.stdout.write(f"{folder.path.name}: nothing to send: every cell is done, running or waiting\n")
    elif options.dry_run:
        path, _ = slurm.write_job(folder, launcher, groups)
        sys.stdout.write(f"{len(chosen)} cells in {len(groups)} jobs, not sent: {path}\n")
    else:
        parts = [groups[i : i + slurm.ARRAY_LIMIT] for i in range(0, len(groups), slurm.ARRAY_LIMIT)]
        jobs = " ".join(slurm.send(folder, launcher, part) for part in parts)
        sys.stdout.write(f"sent {len(chosen)} cells in {len(groups)} jobs: Slurm job {jobs}\n")
        sys.stdout.write(f"status: python -m c3po_bench.sweep status {folder.results_dir}\n")
    return 0


def retry_command(options: argparse.Namespace) -> int:
    """`retry`."""
    worst = 0
    for folder in find_sweeps(options.folder):
        if options.local:
            worst = max(worst, work_here(folder, open_cells(folder)))
        else:
            worst = max(worst, send(folder, folder.record.get("launcher", {}), options))
    return worst


def status_command(options: argparse.Namespace) -> int:
    """`status`."""
    for folder in find_sweeps(options.folder):
        cells = statuses(folder)
        lines = [json.dumps({"sweep": folder.path.name, **asdict(cell)}) for cell in cells]
        sys.stdout.write("\n".join(lines if options.json else [report(folder, cells)]) + "\n")
    return 0


def table_command(options: argparse.Namespace) -> int:
    """`table`."""
    from c3po_bench.launch.table import show_sweep  # with pandas, which no other command waits for

    for folder in find_sweeps(options.folder):
        show_sweep(folder)
    return 0


def plan_command(options: argparse.Namespace) -> int:
    """`plan`."""
    sys.stdout.write(plan_text(compose_grid(options.overrides)) + "\n")
    return 0


def merge_command(options: argparse.Namespace) -> int:
    """`merge`."""
    from c3po_bench.evaluate.run import run  # with torch, which no other command but `work` waits for

    for folder in options.folder:
        for runs in merge_shards(Path(folder), run):
            sys.stdout.write(f"merged: {', '.join(str(run.path) for run in runs)}\n")
    return 0


def work_command(options: argparse.Namespace) -> int:
    """`work`."""
    folder, *others = find_sweeps(options.folder)
    if others:
        raise UserError(f"{options.folder} holds {1 + len(others)} sweeps: name one, like {folder.path}")
    cells = options.cells
    if options.groups is not None:
        groups, number = folder.read(Path(options.groups).name, list[list[int]]), options.group or 0
        if not 0 <= number < len(groups):
            raise UserError(f"--group {number}: {options.groups} has groups 0 to {len(groups) - 1}")
        cells = groups[number]
    for cell in cells or []:
        if not 0 <= cell < len(folder.cells):
            raise UserError(f"--cells {cell}: {folder.path.name} has cells 0 to {len(folder.cells) - 1}")
    return work_here(folder, range(len(folder.cells)) if cells is None else cells)


def work_here(folder: SweepFolder, cells: Iterable[int]) -> int:
    """Run cells in this process.

    When asked to stop by the time limit's signal, put the job back into the queue.
    """
    set_up_logging("info")
    try:
        os.chdir(folder.record["cwd"])
    except OSError as error:
        raise UserError(
            f"{folder.record['cwd']}: {error.strerror}; {folder.path.name}'s relative paths start there"
        ) from error
    ranks.from_srun()
    signals.listen()
    from c3po_bench.evaluate.run import run  # with torch

    try:
        failed = run_cells(folder, cells, run)
    except signals.Stopped as stopped:
        if stopped.args[0] == "SIGUSR2" and slurm.requeue():
            log.info("time is up: back in the queue, to be continued")
        raise
    if failed:
        sys.stderr.write(f"{failed} cells failed: python -m c3po_bench.sweep status {folder.results_dir}\n")
    return OURS if failed else 0


if __name__ == "__main__":
    sys.exit(main())
