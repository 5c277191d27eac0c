"""A run small enough for tests: the tiny model on a few facts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CELL = [
    "model=tiny",
    "tasks=[facts_foods,facts_french,facts_plurals]",
    "limit=6",
    "batch_size=4",
    "references.tasks=[facts_spanish]",
    "references.limit=20",
    "references.only_correct=false",
    "arms=[base,ngd]",
    "method.neighbors.k=2",
    "method.steps=2",
    "tracking.mode=disabled",
]


@pytest.fixture(scope="session")
def bench():
    """Run `python ARGUMENTS` here; fails with what it said unless it exits with `expect`."""

    def run(*arguments: str, expect: int = 0, env: dict[str, str] | None = None, cwd: Path | None = None):
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=cwd, timeout=300
        )
        assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def whole(bench, tmp_path_factory):
    """The store of an unsharded run."""
    store = tmp_path_factory.mktemp("whole") / "store"
    bench("-m", "c3po_bench", *CELL, f"results_dir={store}")
    return store
