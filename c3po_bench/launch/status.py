"""How far a sweep is, from its folder and, where there is one, the queue; no accounting needed."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from c3po_bench.launch.folder import SweepFolder
from c3po_bench.launch.slurm import queue

STATES = ("done", "running", "waiting", "failed", "missing")
SILENT_SECONDS = 120.0


@dataclass(frozen=True)
class CellStatus:
    """A cell: done, running, waiting (in the queue), failed (with the last line of why) or missing (never started)."""

    cell: int
    overrides: list[str]
    status: str
    reason: str = ""


def statuses(folder: SweepFolder) -> list[CellStatus]:
    """The status of every cell, by number."""
    jobs = queue()
    clock = folder.clock()
    sent = _jobs_of_cells(folder)
    found = []
    for cell, overrides in enumerate(folder.cells):
        job = sent.get(cell)
        queued = jobs.get(job) if jobs is not None and job else None
        found.append(CellStatus(cell, overrides, *_status(folder, cell, jobs, job, queued, clock)))
    return found


def _status(
    folder: SweepFolder,
    cell: int,
    jobs: dict[str, str] | None,
    job: str | None,
    queued: str | None,
    clock: float,
) -> tuple[str, str]:
    state = folder.state(cell)
    waiting = queued in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED")
    if state is None:
        return ("waiting", "") if queued else ("missing", "")
    if state["status"] == "done":
        return "done", ""
    if state["status"] == "running":
        silent = clock - state["seen"]
        if not _dead(state, jobs, silent):
            return "running", ""
        if waiting:
            return "waiting", "to be continued"
        return "failed", _last_words(
            folder, state
        ) or f"ended without a word, {silent:.0f} s ago (killed, or out of memory)"
    if waiting or (queued and queued != "RUNNING"):
        return "waiting", "to be continued"
    return "failed", state.get("error", "")


def _dead(state: dict, jobs: dict[str, str] | None, silent: float) -> bool:
    """Whether the process that said it was running is gone."""
    if (
        state["host"] == socket.gethostname()
        and not Path(f"/proc/{state['pid']}").exists()
        and os.path.isdir("/proc/self")
    ):
        return True
    if jobs is not None and state.get("job"):
        return jobs.get(state["job"]) not in ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED")
    return silent > SILENT_SECONDS


def _last_words(folder: SweepFolder, state: dict) -> str:
    """The last line of the job's log, where there is one."""
    log = folder.path / "logs" / f"{state.get('job')}.log"
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line.lower() or "kill" in line.lower()), "")[
        :300
    ]


def _jobs_of_cells(folder: SweepFolder) -> dict[int, str]:
    """The array task that each cell was last given to."""
    found: dict[int, str] = {}
    for job in folder.record["jobs"]:
        groups = folder.path / str(job.get("groups"))
        if job.get("job") and groups.is_file():
            for number, cells in enumerate(json.loads(groups.read_text(encoding="utf-8"))):
                found |= dict.fromkeys(cells, f"{job['job']}_{number}")
    return found


def report(folder: SweepFolder, found: list[CellStatus]) -> str:
    """A line of counts, then the cells that are not done, with the last line of each failure."""
    counts = Counter(status.status for status in found)
    record = folder.record
    summary = ", ".join(
        f"{counts[name]} {name}" for name in STATES if counts[name] or name in ("done", "failed", "missing")
    )
    lines = [
        f"{folder.path.name}: {len(found)} cells: {summary}  (code {record['code_version']}, {record['git_commit']})"
    ]
    shared = set.intersection(*(set(status.overrides) for status in found)) if len(found) > 1 else set()
    for status in found:
        if status.status != "done":
            point = " ".join(text for text in status.overrides if text not in shared)
            lines.append(
                f"  {status.cell:4d} {status.status:8s} {point}{'  ' + status.reason if status.reason else ''}"
            )
    return "\n".join(lines)
