"""One test cluster for all tests, and a sweep that takes seconds a cell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, lacking

ROOT = Path(__file__).resolve().parents[2]
CELL = [
    "model=tiny",
    "tasks=[facts_foods,facts_french,facts_plurals]",
    "limit=6",
    "batch_size=4",
    "references.tasks=[facts_spanish]",
    "references.limit=20",
    "references.only_correct=false",
    "arms=[base,ngd]",
    "tracking.mode=disabled",
]
GRID = ["method.neighbors.k=1,2,3", "method.steps=1,2,3,4"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The cluster, or a skip that says what is missing."""
    if why := lacking():
        pytest.skip(why)
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        started.env["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests' / 'slurm' / 'plugins'}"
        yield started


@pytest.fixture
def watched(cluster, tmp_path):
    """Watch items and banks: a function that gives the lines noted so far; `cluster.env` says how slow."""
    log = tmp_path / "watched.log"
    cluster.env |= {"WATCHED_LOG": str(log), "WATCHED_SECONDS": "0"}
    yield lambda: log.read_text().splitlines() if log.exists() else []
    del cluster.env["WATCHED_LOG"], cluster.env["WATCHED_SECONDS"]


@pytest.fixture
def bench(cluster, tmp_path):
    """Run `python -m MODULE ARGUMENTS` on the cluster's login node, in a folder that is not the repository."""

    def run(module: str, *arguments: str, check: bool = True):
        return cluster.run(sys.executable, "-m", module, *arguments, check=check, cwd=tmp_path)

    return run
