"""Start-up: `--help`, and from launch to the first scored item without the model's own loading."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
    from transformers import AutoModelForCausalLM
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
    whole = time.time() - start
    print(whole - loading, whole)
    sys.stdout.flush()
    import os
    os._exit(0)
files.Journal.append = first
from c3po_bench.cli import main
main()
"""


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Medians of the seconds from launch to the first item.

    `seconds` are without the model's loading, which begins with importing the classes of models; `ratio` is
    their share of the bound that we hold ourselves to. `whole_seconds` are with it, so no definition of
    loading moves them. Items are scored one by one. Feedback twice: with the base model's answer still to be
    written, and with it known.
    """
    rounds = 1 if options.quick else options.rounds
    yield record("--help", [_help() for _ in range(rounds)], 0.6)
    if not options.quick:
        cold, warm = zip(*[_feedback() for _ in range(max(1, rounds // 2))], strict=True)
        yield record("first item, feedback, nothing answered yet", cold, 8.0)
        yield record("first item, feedback", warm, 8.0)
    yield record("first item, rewiring", [_first("quickstart") for _ in range(max(1, rounds // 2))], 5.0)


Times = tuple[float, float]
"""Seconds from launch, without the model's loading and with it."""


def record(setting: str, times: Sequence[Times], bound: float) -> dict[str, Any]:
    """One setting."""
    seconds, whole = map(statistics.median, zip(*times, strict=True))
    return {
        "name": "startup",
        "setting": setting,
        "ratio": seconds / bound,
        "max_abs_diff": 0.0,
        "seconds": seconds,
        "whole_seconds": whole,
        "bound": bound,
    }


def _help() -> Times:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "c3po_bench", "--help"], capture_output=True, check=True)
    spent = time.perf_counter() - start
    return spent, spent


def _feedback() -> tuple[Times, Times]:
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (_first("feedback_quick", f"feedback.cache_dir={folder}") for _ in range(2))
    return cold, warm


def _first(experiment: str, *more: str) -> Times:
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
    seconds, whole = map(float, done.stdout.strip().splitlines()[-1].split())
    return seconds, whole
