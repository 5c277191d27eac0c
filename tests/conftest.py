"""What every room's tests share: where optional data is, one torch thread, a small experiment that takes a second."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import warm_process

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


def folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, ROOT.parent / "shared" / default))


@pytest.fixture(scope="session")
def data_root() -> Path:
    found = folder("C3PO_DATA_DIR", "data")
    if not found.is_dir():
        pytest.skip(f"no local benchmark data in {found} (set C3PO_DATA_DIR)")
    return found


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    found = folder("C3PO_GOLDEN_DIR", "golden")
    if not found.is_dir():
        pytest.skip(f"no golden cases in {found} (set C3PO_GOLDEN_DIR)")
    return found


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_logger():
    """What a run in this process did to our logger is undone, so that every test sees its own log lines."""
    import logging

    logger = logging.getLogger("c3po_bench")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def command(
    *arguments: str, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python -m c3po_bench ...` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "c3po_bench", *arguments],
        cwd=cwd or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def c3po():
    return command


@pytest.fixture(scope="session")
def warm():
    """The same in a fork of a process that has imported everything: for tests of what is said, not of starting."""
    with warm_process() as run:
        yield run


TINY = (
    "+experiment=quickstart",
    "model=tiny",
    "embedder=hidden_states",
    "tasks=[facts_capitals,facts_plurals]",
    "references.tasks=[facts_capitals]",
    "references.limit=24",
    "references.only_correct=false",
    "method.neighbors.max_similarity=1.01",
    "tracking=disabled",
    "limit=4",
)
"""A whole experiment on a random model: seconds."""


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    return TINY
