"""Threads of this process, and others that want the same cores."""

from __future__ import annotations

import os
import time
from pathlib import Path

SPINS = 1_000
LOADAVG = Path("/proc/loadavg")


def sleep_where_shared(threads: int | None = None) -> None:
    """Where other programs want the same cores, have torch's threads wait for each other shortly, then sleep.

    By default a thread of GNU OpenMP waits awake for milliseconds, and so keeps a core from the very thread
    that it waits for. No number depends on it. What the user set is left. Must come before torch is imported,
    which reads it once.

    Args:
        threads: of torch; None = as many as it takes by itself.
    """
    if "OMP_WAIT_POLICY" not in os.environ and others_running() > spare_cores(threads):
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def others_running(looks: int = 5, apart: float = 0.01) -> int:
    """Threads of other programs that run, or could.

    At every look, seconds `apart`, and on average over the last minute.

    The average alone would count a run that has just ended, the looks alone one that soon will.
    0 where Linux doesn't say.
    """
    seen: list[int] = []
    for look in range(looks):
        if look:
            time.sleep(apart)
        try:
            average, _, _, running, _ = LOADAVG.read_text().split()
            seen.append(min(int(running.split("/")[0]) - 1, round(float(average))))  # less this one
        except (OSError, ValueError):
            return 0
        if seen[-1] <= 0:
            return 0
    return min(seen)


def spare_cores(threads: int | None) -> int:
    """Cores of the machine beside those of our threads."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    mine = threads or (int(given) if given.isdigit() else allowed)
    return max(0, (os.cpu_count() or 1) - mine)
