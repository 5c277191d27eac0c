"""Sweeps on a real Slurm: same numbers as here, and only what is lost is done again."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from c3po_bench.analysis.ablation import ablation_table
from c3po_bench.launch.sweep_folder import find_sweeps
from c3po_bench.launch.table import runs_of
from tests.slurm.conftest import CELL, GRID, SLURM

pytestmark = pytest.mark.slurm
SUBMIT = ("c3po_bench.sweep", "submit", "+sweep=neighbors")


def samples(results_dir: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in results_dir.glob("runs/*/samples.jsonl")}


def table(results_dir: Path) -> pd.DataFrame:
    """Without timings, and without the runs' names, which tell a run with a plugin from one without."""
    frame = ablation_table(runs_of(find_sweeps(results_dir)[0]))
    timings = [c for c in frame.columns if "seconds" in c or "flops" in c]
    return (
        frame.drop(columns=[*timings, "run_id"])
        .sort_values(["label", "task", "metric"])
        .reset_index(drop=True)
    )


def states(results_dir: Path) -> list[dict]:
    (folder,) = find_sweeps(results_dir)
    return [folder.state(cell) or {} for cell in range(len(folder.cells))]


def statuses(bench, results_dir: Path) -> dict[int, str]:
    lines = bench("c3po_bench.sweep", "status", str(results_dir), "--json").stdout.splitlines()
    return {row["cell"]: row["status"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """The same sweep of 12 cells in one process here."""
    import subprocess
    import sys

    store = tmp_path_factory.mktemp("basic") / "store"
    command = [
        sys.executable,
        "-m",
        "c3po_bench",
        "-m",
        "+sweep=neighbors",
        *CELL,
        *GRID,
        f"results_dir={store}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=cluster.env)
    assert done.returncode == 0, done.stderr
    return store


def test_twelve_cells_through_slurm_equal_the_basic_launcher(bench, tmp_path, undisturbed):
    store = tmp_path / "store"
    done = bench("c3po_bench", "-m", "+sweep=neighbors", *CELL, *GRID, *SLURM, f"results_dir={store}")
    assert "accuracy" in done.stdout  # one ablation table
    assert len(list(store.glob("runs/ngd-*/result.json"))) == 12
    assert samples(store) == samples(undisturbed)
    pd.testing.assert_frame_equal(table(store), table(undisturbed))
    assert set(statuses(bench, store).values()) == {"done"}


def test_cancelled_and_killed_cells_are_named_and_only_they_run_again(
    cluster, bench, watched, tmp_path, undisturbed
):
    store = tmp_path / "store"
    cluster.env["WATCHED_SECONDS"] = "2"
    bench(*SUBMIT, *CELL, *GRID, *SLURM, f"results_dir={store}", "plugins=[watched_items]")
    cluster.wait(
        lambda: sum(s.get("status") == "running" for s in states(store)) >= 2, 120, "two running cells"
    )
    running = [cell for cell, s in enumerate(states(store)) if s.get("status") == "running"]
    jobs = {int(name.rpartition("_")[2]): name for name in cluster.queue()}
    killed, cancelled = running[0], [running[1], 10, 11]
    os.kill(states(store)[killed]["pid"], signal.SIGKILL)
    cluster.run("scancel", *(jobs[cell] for cell in cancelled))
    cluster.env["WATCHED_SECONDS"] = "0"
    cluster.idle()
    lost = {cell for cell, status in statuses(bench, store).items() if status in ("failed", "missing")}
    assert lost == {killed, *cancelled}
    shown = bench("c3po_bench.sweep", "status", str(store)).stdout
    assert f"{killed:4d} failed" in shown and "  11 missing" in shown
    before = states(store)
    bench("c3po_bench.sweep", "retry", str(store))
    cluster.idle()
    assert set(statuses(bench, store).values()) == {"done"}
    again = {cell for cell, (old, new) in enumerate(zip(before, states(store), strict=True)) if old != new}
    again = {c for c in again if before[c].get("when") != states(store)[c].get("when")}
    assert again == lost
    assert sorted(samples(store).values()) == sorted(samples(undisturbed).values())
    pd.testing.assert_frame_equal(table(store), table(undisturbed))


@pytest.mark.parametrize("how", ["requeue", "limit"])
def test_an_interrupted_cell_goes_on_and_scores_no_item_twice(cluster, bench, watched, tmp_path, how):
    store = tmp_path / "store"
    cluster.env["WATCHED_SECONDS"] = "3"
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20"] if how == "limit" else []
    cell = [c for c in CELL if "tracking" not in c and "limit=6" not in c] + [
        "limit=12",
        "tracking.mode=offline",
    ]
    bench(
        *SUBMIT,
        *cell,
        *SLURM,
        *limit,
        "method.neighbors.k=2",
        f"results_dir={store}",
        "plugins=[watched_items]",
    )
    if how == "requeue":
        cluster.wait(lambda: sum(line.startswith("item") for line in watched()) >= 8, 120, "scored items")
        cluster.run("scontrol", "requeue", next(iter(cluster.queue())))
    cluster.wait(lambda: states(store)[0].get("attempt", 0) >= 2, 240, "second attempt")
    cluster.idle()
    assert statuses(bench, store) == {0: "done"}
    items = [line for line in watched() if line.startswith("item")]
    assert len(items) == len(set(items)) == 2 * 3 * 12
    names = [p.name for p in store.glob("wandb/*run-*")] or [
        p.name for p in store.glob("**/*run-*-*") if p.is_dir()
    ]
    assert len(names) == len({name.split("-", 3)[-1] for name in names})


def test_two_jobs_that_want_one_bank_build_it_once(cluster, bench, watched, tmp_path):
    store = tmp_path / "store"
    cluster.env["WATCHED_SECONDS"] = "2"
    bench(*SUBMIT, *CELL, *SLURM, "method.neighbors.k=1,2", f"results_dir={store}", "plugins=[watched_items]")
    cluster.idle()
    assert set(statuses(bench, store).values()) == {"done"}
    banks = [line for line in watched() if line.startswith("bank")]
    assert banks and len(banks) == len(set(banks))


def test_one_cell_over_two_nodes_gives_the_same_bytes(cluster, bench, tmp_path, undisturbed):
    store = tmp_path / "store"
    grid = ["method.neighbors.k=2", "method.steps=2"]
    bench(*SUBMIT, *CELL, *grid, *SLURM, "hydra.launcher.nodes=2", f"results_dir={store}")
    cluster.idle()
    found = samples(store)
    assert len(found) == 2 and found.items() <= samples(undisturbed).items()
    assert list(store.glob("runs/*/journal-1.jsonl"))


def test_five_hundred_cells_are_sent_and_looked_at_in_seconds(cluster, bench, tmp_path):
    store = tmp_path / "store"
    start = time.monotonic()
    later = "hydra.launcher.additional_parameters={begin: now+1hour}"  # none runs beside what is timed
    bench(*SUBMIT, *CELL, *SLURM, later, "method.neighbors.k=2", "seed=range(0,500)", f"results_dir={store}")
    submitted = time.monotonic()
    found = statuses(bench, store)
    looked = time.monotonic()
    cluster.run("scancel", "--me")
    assert len(found) == 500 and set(found.values()) == {"waiting"}
    assert submitted - start < 20
    assert looked - submitted < 2
