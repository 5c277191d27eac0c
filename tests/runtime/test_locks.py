"""One process at a time in a run folder."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading

import pytest

from c3po_bench.runtime import locks, signals
from c3po_bench.runtime.locks import LockHeld, exclusive_lock


def test_the_second_does_not_get_in_and_the_next_does(tmp_path):
    with (
        exclusive_lock(tmp_path / "run"),
        pytest.raises(LockHeld),
        exclusive_lock(tmp_path / "run", wait=False),
    ):
        pass
    with exclusive_lock(tmp_path / "run", wait=False):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_who_waits_for_another_can_be_stopped(tmp_path, monkeypatch, number):
    monkeypatch.setattr(locks, "LOOK_SECONDS", 0.05)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2)}
    never = threading.Timer(20, lambda: os.kill(os.getpid(), signal.SIGINT))
    never.start()
    try:
        signals.listen()
        os.kill(os.getpid(), number)
        with exclusive_lock(tmp_path), pytest.raises(signals.Stopped), exclusive_lock(tmp_path):
            pass
    finally:
        never.cancel()
        signals._asked.clear()
        for each, handler in before.items():
            signal.signal(each, handler)


def test_where_there_are_no_locks_it_is_said_once_and_nothing_shared_is_written(
    tmp_path, monkeypatch, caplog
):
    import torch
    from filelock import FileLock

    from c3po_bench.rewiring.states import Prompt, State, StateStore

    def none(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", none)
    store, prompt = StateStore(tmp_path, 1 << 20), Prompt((1, 2), ((3,),))
    with caplog.at_level(logging.WARNING, "c3po_bench"):
        for _ in range(2):
            store.put([State(prompt, torch.zeros(2), {}, 0.0, 0)])
    assert len(caplog.records) == 1 and "can't be locked" in caplog.text
    assert not (tmp_path / "states.bin").exists() and prompt not in store
