"""`make soak`: many runs in one store, in one process. Memory must stay flat, no file or process be left, views stay fast.

`python -m tests.soak 2000` prints the figures as JSON and as a line; exit status 1 where one is beyond its bound.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from c3po_bench import cli, compare
from c3po_bench.config import Config, conf_dir
from c3po_bench.evaluate.run import run
from c3po_bench.report.build import write_report
from c3po_bench.store.reader import load_runs

WORDS = [
    "model=tiny",
    "tasks=[facts_capitals]",
    "limit=4",
    "arms=[base,ngd]",
    "method.steps=1",
    "batch_size=4",
]
WORDS += ["references.tasks=[facts_capitals]", "references.limit=12", "references.only_correct=false"]
WORDS += [
    "embedder=hidden_states",
    "method.neighbors.max_similarity=1.01",
    "tracking=disabled",
    "log_level=error",
]
WARM_UP = 0.1  # of the runs: what is read and compiled once
GROWTH_BYTES = 64 << 20  # from there to the end
VIEW_SECONDS = 60.0


def config(number: int, folder: Path) -> Config:
    """A run's config: one that no other has, over one base."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = [*WORDS, f"method.learning_rate={0.05 + number * 1e-4:.4f}", f"results_dir={folder}"]
        return cli.to_config(compose("config", overrides=words))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held() -> dict[str, int]:
    """Open files, and processes that this one started."""
    pid = os.getpid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {"files": len(os.listdir("/proc/self/fd")), "processes": len(children)}


def timed(work: Any) -> float:
    """Seconds of `work`, its output left out."""
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.monotonic() - started


def soak(runs: int, folder: Path) -> dict[str, Any]:
    """The figures of so many runs beside their base."""
    sizes, first, started = [], {}, time.monotonic()
    for number in range(runs):
        run(config(number, folder))
        if number % 10 == 9 or number == runs - 1:
            gc.collect()
            sizes.append(resident())
        if number == max(1, int(runs * WARM_UP)):
            first = held()
    seconds = (time.monotonic() - started) / runs
    names = [one.run_id for one in load_runs(folder)]
    last = next(name for name in reversed(names) if name.startswith("ngd"))
    base = next(name for name in names if name.startswith("base"))
    after, warm = held(), sizes[int(len(sizes) * WARM_UP)]
    views = {
        "report": timed(lambda: write_report(folder)),
        "compare": timed(lambda: compare.main([f"{folder}:{base}", f"{folder}:{last}"])),
    }
    return {
        "runs": len(names),
        "seconds_a_run": round(seconds, 3),
        "memory_mib": [round(size / 2**20) for size in (warm, sizes[-1])],
        "growth_mib": round((sizes[-1] - warm) / 2**20, 1),
        "files_left": after["files"] - first.get("files", after["files"]),
        "processes_left": after["processes"] - first.get("processes", 0),
        "view_seconds": {name: round(each, 1) for name, each in views.items()},
    }


def wrong(figures: dict[str, Any]) -> list[str]:
    """What is beyond its bound."""
    found = []
    if figures["growth_mib"] > GROWTH_BYTES / 2**20:
        found.append("memory grows")
    if figures["files_left"] > 0 or figures["processes_left"] > 0:
        found.append("files or processes are left")
    if max(figures["view_seconds"].values()) > VIEW_SECONDS:
        found.append("a view is slow")
    return found


def main(runs: int) -> int:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(runs, Path(folder))
    found = wrong(figures)
    sys.stdout.write(json.dumps(figures) + "\n")
    views = ", ".join(f"{name} {seconds} s" for name, seconds in figures["view_seconds"].items())
    sys.stdout.write(
        f"{figures['runs']} runs, memory {figures['memory_mib'][0]} to {figures['memory_mib'][1]} MiB, "
        f"{figures['files_left']} files and {figures['processes_left']} processes left, {views}"
        f"{': ' + ', '.join(found) if found else ''}\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
