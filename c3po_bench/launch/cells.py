"""The cells of a frozen sweep: running them, writing down how each is, and telling how far a sweep has come.

Cells run one after another in one process, so that model, tasks and bank are loaded once. How far they are is
read from the sweep's folder and, where there is one, Slurm's queue; no accounting is needed.
"""

import logging
import os
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c3po_bench.config import Config
from c3po_bench.errors import UserError
from c3po_bench.evaluate.budget import SweepPlace
from c3po_bench.launch.slurm import queue
from c3po_bench.launch.sweep_folder import SweepFolder
from c3po_bench.runtime import ranks
from c3po_bench.store.reader import Run

log = logging.getLogger("c3po_bench")
BEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0
STATES = ("done", "running", "waiting", "failed", "missing")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED")


@contextmanager
def watched(folder: SweepFolder, cell: int) -> Iterator[list[Run]]:
    """Write down that a cell is running, give signs of life, and write down how it ended.

    Yields a list to put the cell's runs into. Of several ranks, the first writes.
    """
    runs: list[Run] = []
    if ranks.rank() > 0:
        yield runs
        return
    attempt = (folder.state(cell) or {}).get("attempt", 0) + 1
    folder.set_state(cell, "running", attempt=attempt)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            folder.beat(cell)

    pulse = threading.Thread(target=beat, daemon=True)
    pulse.start()
    ended: dict[str, Any] = {}
    try:
        yield runs
        names = [str(run.path.resolve().relative_to(folder.results_dir)) for run in runs]
        ended = {"status": "done", "runs": names}
    except KeyboardInterrupt as stopped:
        ended = {"status": "stopped", "error": f"stopped by {stopped.args[0] if stopped.args else 'SIGINT'}"}
        raise
    except BaseException as error:
        line = (str(error).strip().splitlines() or [""])[-1]
        if isinstance(error, UserError):
            ended = {"status": "failed", "error": line[:500]}
        else:
            ended = {"status": "failed", "error": f"{type(error).__name__}: {line}"[:500]}
            ended["traceback"] = traceback.format_exc()
        raise
    finally:
        over.set()
        pulse.join()
        folder.set_state(cell, attempt=attempt, **ended)


def place_of(folder: SweepFolder, cell: int) -> SweepPlace:
    """Where a cell stands in its sweep."""
    numbers = range(len(folder.cells))
    return SweepPlace(cell, len(numbers), lambda: [folder.config(number) for number in numbers])


def run_cells(
    folder: SweepFolder, cells: Iterable[int], run: Callable[[Config, SweepPlace], Sequence[Run]]
) -> int:
    """Run cells that are not done by `run`, whatever happens to the others. Returns the number that failed.

    Raises:
        KeyboardInterrupt: after a signal (`runtime.signals`); the cells left are as they were.
    """
    failed = 0
    for cell in cells:
        if (folder.state(cell) or {}).get("status") == "done":
            continue
        try:
            with watched(folder, cell) as runs:
                log.info("cell %d: %s", cell, " ".join(folder.cells[cell]))
                # what the run's provenance gives as its command
                sys.argv = ["c3po_bench", *folder.cells[cell]]
                runs += run(folder.config(cell), place_of(folder, cell))
        except (Exception, SystemExit) as error:  # a plugin or a task's function may call sys.exit
            failed += 1
            ours = None if isinstance(error, UserError) else error
            log.error("cell %d failed: %s", cell, error, exc_info=ours)
    return failed


@dataclass(frozen=True)
class CellStatus:
    """How a cell is: done, running, waiting (queued), failed (with the reason) or missing (never started)."""

    cell: int
    overrides: list[str]
    status: str
    reason: str = ""


def statuses(folder: SweepFolder) -> list[CellStatus]:
    """The status of every cell, by number."""
    jobs, clock, sent = queue(), folder.clock(), _jobs_of_cells(folder)
    return [
        CellStatus(cell, overrides, *_status(folder, cell, jobs, (jobs or {}).get(sent.get(cell, "")), clock))
        for cell, overrides in enumerate(folder.cells)
    ]


def _status(
    folder: SweepFolder, cell: int, jobs: dict[str, str] | None, queued: str | None, clock: float
) -> tuple[str, str]:
    """A cell's status and the reason for it, from its state and, `queued`, that of its job in the queue."""
    state = folder.state(cell)
    if state is None:
        return ("waiting" if queued else "missing"), ""
    if state["status"] == "done":
        return "done", ""
    silent = clock - state["seen"]
    running = state["status"] == "running"
    if running and not _dead(state, jobs, silent):
        return "running", ""
    if queued in WAITING or (not running and queued not in (None, "RUNNING")):
        return "waiting", "to be continued"
    if not running:
        return "failed", state["error"]
    silence = f"ended without a word, {silent:.0f} s ago (killed, or out of memory)"
    return "failed", _last_words(folder, state) or silence


def _dead(state: dict[str, Any], jobs: dict[str, str] | None, silent: float) -> bool:
    """Whether the process that wrote that it was running is gone."""
    here = state["host"] == socket.gethostname() and os.path.isdir("/proc/self")
    if here and not Path(f"/proc/{state['pid']}").exists():
        return True
    if jobs is not None and state["job"]:
        return jobs.get(state["job"]) not in ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED")
    return silent > SILENT_SECONDS


def _last_words(folder: SweepFolder, state: dict[str, Any]) -> str:
    """The last line of the job's log that speaks of an error, where there is one."""
    log = folder.path / "logs" / f"{state['job']}.log"
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    words = (line.strip() for line in reversed(lines))
    return next((line for line in words if "error" in line.lower() or "kill" in line.lower()), "")[:300]


def _jobs_of_cells(folder: SweepFolder) -> dict[int, str]:
    """The array task that each cell was last given to."""
    tasks: dict[int, str] = {}
    for job in folder.record["jobs"]:
        groups = folder.path / str(job.get("groups"))
        if job.get("job") and groups.is_file():
            for number, cells in enumerate(folder.read(groups.name, list[list[int]])):
                tasks |= dict.fromkeys(cells, f"{job['job']}_{number}")
    return tasks


def report(folder: SweepFolder, cells: list[CellStatus]) -> str:
    """A line of counts, then the cells that are not done, with the last line of each failure."""
    counts = Counter(cell.status for cell in cells)
    shown = [name for name in STATES if counts[name] or name in ("done", "failed", "missing")]
    summary = ", ".join(f"{counts[name]} {name}" for name in shown)
    code = f"(code {folder.record['code_version']}, {folder.record['git_commit']})"
    lines = [f"{folder.path.name}: {len(cells)} cells: {summary}  {code}"]
    shared = set.intersection(*(set(cell.overrides) for cell in cells)) if len(cells) > 1 else set()
    for cell in cells:
        if cell.status != "done":
            point = " ".join(text for text in cell.overrides if text not in shared)
            lines.append(f"  {cell.cell:4d} {cell.status:8s} {point}  {cell.reason}".rstrip())
    return "\n".join(lines)
