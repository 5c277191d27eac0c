"""Limits on the time of work that may not end, and on what a YAML text stands for."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import yaml

from c3po_bench.runtime.limits import MOST_DEPTH, OutOfTime, check_yaml, time_limit


def test_what_does_not_end_is_stopped():
    started = time.monotonic()
    with pytest.raises(OutOfTime, match=r"within 0\.1 s"), time_limit(0.1):
        while True:
            pass
    assert time.monotonic() - started < 2


def test_limits_stand_within_each_other_and_within_an_alarm():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with time_limit(5), time_limit(3):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
        time.sleep(0.3)
        assert rung == [1]
        with pytest.raises(OutOfTime), time_limit(0.1), time_limit(5):
            time.sleep(2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_another_thread_has_no_limit():
    passed = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.05)
            passed.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert passed


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


def test_aliases_are_counted_as_what_they_stand_for():
    check_yaml(bomb(4))
    with pytest.raises(ValueError, match="more than 1000000 values"):
        check_yaml(bomb(9))


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "", "- 1\n---\n- 2\n", "a: 2 * 3"])
def test_other_texts_pass(text):
    check_yaml(text)


def test_what_nests_too_deep_or_is_no_yaml():
    with pytest.raises(ValueError, match="nests deeper"):
        check_yaml("[" * (MOST_DEPTH + 2) + "]" * (MOST_DEPTH + 2))
    with pytest.raises(yaml.YAMLError):
        check_yaml("a: *nothing")
