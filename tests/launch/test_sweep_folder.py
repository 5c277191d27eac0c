"""Freezing a grid, telling how far it is, and running what is left, without a cluster."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from c3po_bench import cli, sweep
from c3po_bench.config import Config
from c3po_bench.errors import UserError
from c3po_bench.launch import slurm, status
from c3po_bench.launch.folder import find_sweeps, freeze
from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.plan import plan
from c3po_bench.launch.worker import run_cells, watched
from c3po_bench.runtime import signals
from c3po_bench.store.files import write_json
from c3po_bench.store.provenance import command

GRID = ["+sweep=neighbors", "model=tiny", "method.neighbors.k=1,2", "embedder=minilm,hidden_states"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "queue", lambda: None)
    return freeze(compose_grid([*GRID, f"results_dir={tmp_path / 'store'}"]))


def found(folder):
    return [(s.status, s.reason) for s in status.statuses(folder)]


def test_a_grid_is_what_hydra_would_run(tmp_path):
    grid = compose_grid([*GRID, f"results_dir={tmp_path}"])
    points = [(c.config["method"]["neighbors"]["k"], c.config["embedder"]["name"]) for c in grid.cells]
    assert points == [(1, "minilm"), (1, "hidden_states"), (2, "minilm"), (2, "hidden_states")]
    assert grid.cells[0].config["model"]["kind"] == "tiny"


def test_the_same_grid_has_the_same_folder_and_another_has_another(tmp_path):
    names = [
        compose_grid([*GRID, f"results_dir={tmp_path}", f"seed={seed}"]).folder_name for seed in (0, 0, 1)
    ]
    assert names[0] == names[1] != names[2]


def test_a_key_that_is_none_is_refused_before_cells_are_frozen(tmp_path):
    with pytest.raises(UserError, match=r"unknown key 'method.stps': did you mean 'method.steps'"):
        compose_grid([*GRID, "++method.stps=3", f"results_dir={tmp_path}"])


def test_a_frozen_cell_comes_back_typed(folder):
    config = folder.config(2)
    assert config.method.neighbors.k == 2 and config.results_dir == str(folder.results_dir)
    path = folder.path / "cells" / "0002.yaml"
    path.write_text(path.read_text() + "\nno_longer_known: 1\n")
    with pytest.raises(UserError, match="another version"):
        folder.config(2)


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_what_a_command_cannot_do_is_one_line(folder, words, said, capsys):
    write_json(folder.path / "groups-1.json", [[0, 1], [2]])
    write_json(folder.path / "sweep.json", {**folder.record, "cwd": str(folder.path / "nowhere")})
    if "DAMAGED" in words:
        (folder.path / "sweep.json").write_text("{")
    assert sweep.main([str(folder.path) if word in ("STORE", "DAMAGED") else word for word in words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and said in line


def test_work_wants_one_sweep(folder, capsys):
    freeze(compose_grid([*GRID, "seed=1", f"results_dir={folder.results_dir}"]))
    assert sweep.main(["work", str(folder.results_dir)]) == 2
    assert "holds 2 sweeps" in capsys.readouterr().err


def test_a_store_that_cannot_be_written_has_a_status(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder.path), "touch", refuse)
    assert found(folder)[0] == ("missing", "")


def test_one_failure_stops_no_other_cell_and_says_its_last_line(folder):
    def run(config):
        if config.embedder.name == "hidden_states" and config.method.neighbors.k == 1:
            raise ValueError("first line\nthe last line")

    assert run_cells(folder, range(3), run) == 1
    assert found(folder) == [
        ("done", ""),
        ("failed", "ValueError: the last line"),
        ("done", ""),
        ("missing", ""),
    ]
    assert run_cells(folder, range(4), lambda config: []) == 0
    assert [folder.state(cell)["attempt"] for cell in range(4)] == [1, 2, 1, 1]


def test_a_process_that_died_without_a_word_is_not_running(folder):
    folder.set_state(0, "running", attempt=1)
    assert found(folder)[0] == ("running", "")
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    state = folder.state(0)
    del state["seen"]
    write_json(folder.path / "state" / "0000.json", {**state, "pid": pid})
    assert found(folder)[0][0] == "failed" and "without a word" in found(folder)[0][1]


def test_a_job_that_waits_is_waiting(folder, monkeypatch):
    folder.note_job({"job": "7", "groups": "groups-1.json"})
    write_json(folder.path / "groups-1.json", [[0, 1], [2]])
    monkeypatch.setattr(status, "queue", lambda: {"7_0": "PENDING"})
    assert [name for name, _ in found(folder)] == ["waiting", "waiting", "missing", "missing"]


def test_a_signal_stops_after_the_batch_at_hand(folder):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        signals.listen()
        with pytest.raises(signals.Stopped), watched(folder, 0):
            os.kill(os.getpid(), signal.SIGUSR2)
            signals.check()
    finally:
        signals._asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert found(folder)[0] == ("failed", "stopped by SIGUSR2")


def test_a_cell_that_ctrl_c_stops_is_stopped(folder):
    with pytest.raises(KeyboardInterrupt), watched(folder, 0):
        raise KeyboardInterrupt
    assert folder.state(0)["status"] == "stopped" and found(folder)[0] == ("failed", "stopped by SIGINT")


def test_the_array_script_can_be_sent_again(folder):
    launcher = {
        "partition": "gpu",
        "mem_gb": 8,
        "timeout_min": 30,
        "additional_parameters": {"mail_type": "END"},
    }
    launcher["comment"] = "of two words"
    path, groups = slurm.write_job(folder, launcher, folder.groups([0, 1, 2], 2))
    text = path.read_text()
    for line in (
        "--partition=gpu",
        "--mem=8192M",
        "--time=30",
        "--mail-type=END",
        "--array=0-1%2",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "#SBATCH '--comment=of two words'\n" in text
    assert (folder.path / groups).read_text() == "[[0, 1], [2]]\n"


def test_no_cluster_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no Slurm here: sbatch and srun and squeue not found"):
        slurm.require_cluster()


def test_no_sweep_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        find_sweeps(tmp_path)


def test_a_plan_counts_shared_runs_once(tmp_path):
    grid = compose_grid(
        ["+sweep=layer_table", "model=olmoe", "tasks=[arc_easy]", "limit=null", f"results_dir={tmp_path}"]
    )
    expected = plan(grid)
    assert (expected.cells, expected.runs, expected.items) == (16, 17, 17 * 2376)
    assert (
        expected.wall_seconds(1)
        > expected.wall_seconds(8)
        >= expected.wall_seconds(100)
        > expected.longest_seconds
    )


def test_a_cell_that_submitit_runs_says_our_command(monkeypatch):
    from types import SimpleNamespace

    hydra = SimpleNamespace(overrides=SimpleNamespace(task=["+sweep=neighbors", "seed=1"]))
    monkeypatch.setattr(sys, "argv", ["_submit.py", "somewhere/.submitit/1"])
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.delenv("C3PO_SWEEP_FOLDER", raising=False)
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: hydra)
    said = []
    monkeypatch.setattr("c3po_bench.evaluate.run.run", lambda config: said.append(command()) or [])
    cli.run_cell(Config(), 0)
    assert said == ["python -m c3po_bench +sweep=neighbors seed=1"]
