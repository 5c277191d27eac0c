"""Start-up: `--help`, and from launch to the first scored item without the model's own loading."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from c3po_bench.perf import Options

FIRST_ITEM = """
import sys, time
start = float(sys.argv.pop(1))
from c3po_bench.runtime.resources import rare_collections
with rare_collections():  # as the command imports them
    import transformers, torch
    before = time.time()
    import transformers.modeling_utils  # the classes of models: part of loading one, wherever a file imports them
    loading = time.time() - before
    import c3po_bench.models.loading as loading_module
plain = loading_module._load
def load(cfg):
    global loading
    before = time.time()
    found = plain(cfg)
    loading += time.time() - before
    return found
loading_module._load = load
import c3po_bench.store.files as files
append = files.Journal.append
def first(self, rows):
    append(self, rows)
    if self.path.name != "journal.jsonl":  # the cache of calls
        return
    print(time.time() - start - loading)
    sys.stdout.flush()
    import os
    os._exit(0)
files.Journal.append = first
from c3po_bench.cli import main
main()
"""


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Seconds; `ratio` is of the bound that we hold ourselves to.

    Items are scored one by one. Feedback twice: with the base model's answer still to be written, and with it
    known.
    """
    rounds = 1 if options.quick else options.rounds
    yield record("--help", statistics.median(_help() for _ in range(rounds)), 0.6)
    if not options.quick:
        pairs = [_feedback() for _ in range(max(1, rounds // 2))]
        yield record(
            "first item, feedback, nothing answered yet", statistics.median(cold for cold, _ in pairs), 8.0
        )
        yield record("first item, feedback", statistics.median(warm for _, warm in pairs), 8.0)
    yield record(
        "first item, rewiring",
        statistics.median(_first("quickstart") for _ in range(max(1, rounds // 2))),
        5.0,
    )


def _feedback() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (_first("feedback_quick", f"feedback.cache_dir={folder}") for _ in range(2))
    return cold, warm


def record(setting: str, seconds: float, bound: float) -> dict[str, Any]:
    """One setting."""
    return {
        "name": "startup",
        "setting": setting,
        "ratio": seconds / bound,
        "max_abs_diff": 0.0,
        "seconds": seconds,
        "bound": bound,
    }


def _help() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "c3po_bench", "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


def _first(experiment: str, *more: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-c",
            FIRST_ITEM,
            str(time.time()),
            f"+experiment={experiment}",
            "tracking=disabled",
            f"results_dir={folder}",
            "arms=[base]",
            "log_level=error",
            "batch_size=1",
            *more,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])
