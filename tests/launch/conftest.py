"""A run small enough for tests: the tiny model on a few facts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.sweep_folder import SweepFolder, freeze

GRID = ["+sweep=neighbors", "model=tiny", "method.neighbors.k=1,2", "embedder=minilm,hidden_states"]
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
def whole(warm, tmp_path_factory):
    """The store of an unsharded run."""
    store = tmp_path_factory.mktemp("whole") / "store"
    done = warm(*CELL, f"results_dir={store}")
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A `squeue` that lists these jobs by name and state; of None it fails, as without a cluster."""

    def write(jobs: dict[str, str] | None) -> None:
        lines = [f"echo '{name}|{state}'" for name, state in (jobs or {}).items()]
        program = tmp_path / "bin" / "squeue"
        program.parent.mkdir(exist_ok=True)
        program.write_text("\n".join(["#!/bin/sh", *lines, f"exit {int(jobs is None)}"]))
        program.chmod(0o755)

    write(None)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return write


@pytest.fixture
def folder(tmp_path, queue) -> SweepFolder:
    """A frozen sweep of four cells that no cluster knows."""
    return freeze(compose_grid([*GRID, f"results_dir={tmp_path / 'store'}"]))
