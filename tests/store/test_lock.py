"""One process at a time in a run folder."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading

import pytest

from c3po_bench.launch import stop
from c3po_bench.store import lock
from c3po_bench.store.lock import Busy, alone_in


def test_the_second_does_not_get_in_and_the_next_does(tmp_path):
    with alone_in(tmp_path / "run"), pytest.raises(Busy), alone_in(tmp_path / "run", wait=False):
        pass
    with alone_in(tmp_path / "run", wait=False):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_who_waits_for_another_can_be_stopped(tmp_path, monkeypatch, number):
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.05)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2)}
    never = threading.Timer(20, lambda: os.kill(os.getpid(), signal.SIGINT))
    never.start()
    try:
        stop.listen()
        os.kill(os.getpid(), number)
        with alone_in(tmp_path), pytest.raises(stop.Stopped), alone_in(tmp_path):
            pass
    finally:
        never.cancel()
        stop._asked.clear()
        for each, handler in before.items():
            signal.signal(each, handler)


def test_where_there_are_no_locks_it_is_said_once_and_nothing_shared_is_written(
    tmp_path, monkeypatch, caplog
):
    import torch
    from filelock import FileLock

    from c3po_bench.rewiring.engines.base import Prompt, State
    from c3po_bench.rewiring.states import StateStore

    def none(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", none)
    store, prompt = StateStore(tmp_path, 1 << 20), Prompt((1, 2), ((3,),))
    with caplog.at_level(logging.WARNING, "c3po_bench"):
        for _ in range(2):
            store.put([State(prompt, torch.zeros(2), {}, 0.0, 0)])
    assert len(caplog.records) == 1 and "can't be locked" in caplog.text
    assert not (tmp_path / "states.bin").exists() and prompt not in store
