"""Running what is left of a sweep and telling how far it is, with and without a queue to ask."""

from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from c3po_bench import cli
from c3po_bench.config import Config
from c3po_bench.launch.cells import run_cells, statuses, watched
from c3po_bench.runtime import signals
from c3po_bench.store.files import write_json
from c3po_bench.store.provenance import command


def states(folder) -> list[tuple[str, str]]:
    return [(cell.status, cell.reason) for cell in statuses(folder)]


def test_a_store_that_cannot_be_written_has_a_status(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder.path), "touch", refuse)
    assert states(folder)[0] == ("missing", "")


def test_one_failure_stops_no_other_cell_and_leaves_its_last_line(folder):
    def run(config, place):
        assert place.cells == 4 and place.configs()[place.number] == config
        if config.embedder.name == "hidden_states" and config.method.neighbors.k == 1:
            raise ValueError("first line\nthe last line")
        return []

    assert run_cells(folder, range(3), run) == 1
    assert states(folder) == [
        ("done", ""),
        ("failed", "ValueError: the last line"),
        ("done", ""),
        ("missing", ""),
    ]
    assert run_cells(folder, range(4), lambda config, place: []) == 0
    assert [folder.state(cell)["attempt"] for cell in range(4)] == [1, 2, 1, 1]


def test_a_process_that_died_without_a_word_is_not_running(folder):
    folder.set_state(0, "running", attempt=1)
    assert states(folder)[0] == ("running", "")
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    state = folder.state(0)
    del state["seen"]
    write_json(folder.path / "state" / "0000.json", {**state, "pid": pid})
    assert states(folder)[0][0] == "failed" and "without a word" in states(folder)[0][1]


def test_a_job_that_waits_is_waiting(folder, queue):
    folder.note_job(job="7", groups="groups-1.json")
    write_json(folder.path / "groups-1.json", [[0, 1], [2]])
    queue({"7_0": "PENDING"})
    assert [status for status, _ in states(folder)] == ["waiting", "waiting", "missing", "missing"]


def test_a_signal_stops_after_the_batch_at_hand(folder):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        signals.listen()
        with pytest.raises(signals.Stopped), watched(folder, 0):
            os.kill(os.getpid(), signal.SIGUSR2)
            signals.check()
    finally:
        signals.listen()  # forgets the signal
        for number, handler in before.items():
            signal.signal(number, handler)
    assert states(folder)[0] == ("failed", "stopped by SIGUSR2")


def test_a_cell_that_ctrl_c_stops_is_stopped(folder):
    with pytest.raises(KeyboardInterrupt), watched(folder, 0):
        raise KeyboardInterrupt
    assert folder.state(0)["status"] == "stopped" and states(folder)[0] == ("failed", "stopped by SIGINT")


def test_a_cell_that_submitit_runs_records_our_command(monkeypatch):
    hydra = SimpleNamespace(overrides=SimpleNamespace(task=["+sweep=neighbors", "seed=1"]))
    monkeypatch.setattr(sys, "argv", ["_submit.py", "somewhere/.submitit/1"])
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.delenv("C3PO_SWEEP_FOLDER", raising=False)
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: hydra)
    commands = []
    monkeypatch.setattr(
        "c3po_bench.evaluate.run.run", lambda config, place=None: commands.append(command()) or []
    )
    cli.run_cell(Config(), 0)
    assert commands == ["python -m c3po_bench +sweep=neighbors seed=1"]
