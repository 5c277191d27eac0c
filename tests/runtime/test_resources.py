"""How torch's threads wait for each other, and how often garbage is looked for."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from c3po_bench.errors import UserError
from c3po_bench.runtime import resources
from c3po_bench.runtime.resources import (
    SPINS,
    in_halves,
    others_running,
    rare_collections,
    sleep_where_shared,
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Four cores, all ours; what is written to the file is what runs."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(resources, "LOADAVG", tmp_path / "loadavg")
    monkeypatch.setattr(os, "environ", {})
    return tmp_path / "loadavg"


@pytest.mark.parametrize(
    ("average", "running", "given", "asked", "expected"),
    [
        (1.2, 2, {}, None, str(SPINS)),
        (1.2, 1, {}, None, None),  # what ran has ended
        (0.3, 2, {}, None, None),  # what runs has just begun
        (1.2, 2, {}, 3, None),
        (2.2, 3, {}, 3, str(SPINS)),
        (1.2, 2, {"OMP_NUM_THREADS": "3"}, None, None),
        (1.2, 2, {"GOMP_SPINCOUNT": "7"}, None, "7"),
        (1.2, 2, {"OMP_WAIT_POLICY": "active"}, None, None),
    ],
)
def test_sleeps_where_others_want_its_cores(
    average: float,
    running: int,
    given: dict[str, str],
    asked: int | None,
    expected: str | None,
    machine: Path,
):
    machine.write_text(f"{average} 1.98 2.29 {running}/77 18334\n")
    os.environ.update(given)
    sleep_where_shared(asked)
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_counts_those_that_run_at_every_look(machine: Path, monkeypatch: pytest.MonkeyPatch):
    counts = iter([4, 2, 3])
    machine.write_text("4.26 1.98 2.29 5/77 18334\n")
    monkeypatch.setattr(
        resources.time, "sleep", lambda _: machine.write_text(f"4.26 1.98 2.29 {next(counts)}/77 18334\n")
    )
    assert others_running(looks=4) == 1


@pytest.mark.parametrize("text", [None, "", "nothing to see", "a b c d/e f"])
def test_takes_cores_for_free_where_the_system_does_not_say(text: str | None, machine: Path):
    if text is not None:
        machine.write_text(text)
    sleep_where_shared()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("module", ["c3po_bench.cli", "c3po_bench.evaluate.run", "c3po_bench.perf.__main__"])
def test_comes_before_torch(module: str):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_collections_are_rare_within_only():
    """However it ends."""
    usual = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), rare_collections():
        assert gc.get_threshold()[0] > 10 * usual[0] and gc.get_threshold()[1:] == usual[1:]
        _ = 1 / 0
    assert gc.get_threshold() == usual


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_what_memory_does_not_suffice_for_is_done_in_halves(error: Exception, caplog):
    done: list[int] = []

    def work(items):
        if len(items) > 3:
            raise error
        done.append(len(items))
        return [item * 10 for item in items]

    assert in_halves(work, range(10), "numbers") == [item * 10 for item in range(10)]
    assert done == [3, 2, 3, 2] and "10 numbers at once" in caplog.text


def test_where_memory_does_not_suffice_for_one_its_size_is_said():
    def work(items):
        raise MemoryError("Unable to allocate 7.45 GiB")

    with pytest.raises(UserError, match=r"one of the prompts \(5 tokens\): Unable to allocate 7.45 GiB"):
        in_halves(work, ["a"] * 4, "the prompts", lambda _: "5 tokens")
    with pytest.raises(ZeroDivisionError):
        in_halves(lambda items: [1 / 0 for _ in items], [1], "numbers")
