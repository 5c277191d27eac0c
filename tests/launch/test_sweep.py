"""The command line of sweeps: what it refuses, in one line, and what it does without a cluster."""

from __future__ import annotations

import json

import pytest

from c3po_bench import sweep
from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.sweep_folder import freeze
from c3po_bench.store.files import write_json
from tests.launch.conftest import GRID


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["work", "STORE", "--cells", "4"], "cells 0 to 3"),
        (["work", "STORE", "--groups", "groups-9.json"], "has no groups-9.json"),
        (["work", "STORE", "--groups", "groups-1.json", "--group", "2"], "groups 0 to 1"),
        (["work", "STORE", "--cells"], "relative paths start there"),
        (["status", "DAMAGED"], "sweep.json is damaged"),
        (["plan", "+sweep=neighbors", "shard=2"], "i/n"),
        (["plan", "+sweep=neighbors", "limit=4,0"], "limit=0: must be a number of at least 1"),
    ],
)
def test_what_a_command_cannot_do_is_one_line(folder, arguments, reason, capsys):
    write_json(folder.path / "groups-1.json", [[0, 1], [2]])
    write_json(folder.path / "sweep.json", {**folder.record, "cwd": str(folder.path / "nowhere")})
    if "DAMAGED" in arguments:
        (folder.path / "sweep.json").write_text("{")
    assert sweep.main([str(folder.path) if word in ("STORE", "DAMAGED") else word for word in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and reason in line


def test_work_wants_one_sweep(folder, capsys):
    freeze(compose_grid([*GRID, "seed=1", f"results_dir={folder.results_dir}"]))
    assert sweep.main(["work", str(folder.results_dir)]) == 2
    assert "holds 2 sweeps" in capsys.readouterr().err


def test_cells_are_frozen_and_their_jobs_written_without_being_sent(tmp_path, queue, capsys):
    arguments = [*GRID, f"results_dir={tmp_path / 'store'}", "hydra/launcher=slurm"]
    assert sweep.main(["submit", *arguments, "--dry-run", "--cells-per-job", "3"]) == 0
    assert capsys.readouterr().out.startswith("4 cells in 2 jobs, not sent: ")
    assert sweep.main(["status", str(tmp_path / "store"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["cell"], row["status"]) for row in rows] == [(i, "missing") for i in range(4)]
    assert sweep.main(["retry", str(tmp_path / "store"), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("4 cells in 4 jobs, not sent: ")
    assert sweep.main(["table", str(tmp_path / "store")]) == 0
    assert "4 missing of 4 cells" in capsys.readouterr().out
