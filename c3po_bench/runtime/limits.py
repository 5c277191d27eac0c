"""Limits on what untrusted text may take: the time of a template, the size of a YAML file with all its aliases written out."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import yaml

MOST_NODES = 1_000_000
"""Values of a YAML file, its aliases written out. The largest of lm-eval's has some thousand."""
MOST_DEPTH = 200
_COMPOSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class OutOfTime(Exception):
    """Raised within `time_limit` when its seconds are over."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within the block, `OutOfTime` is raised after so many seconds.

    Limits may stand within each other, and within an alarm of somebody else's. In a thread other than the
    main one, which gets no signals, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime(f"it does not end within {seconds:g} s")

    handler, started = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    if 0 < left < seconds:  # the limit around this one ends earlier
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 0.001), interval)


def check_yaml(text: str) -> None:
    """Look at the size of a YAML text before its values are made.

    Raises:
        ValueError: where aliases make it larger than `MOST_NODES` values, or it nests deeper than
            `MOST_DEPTH`.
        yaml.YAMLError: where it is no YAML.
    """
    if "*" in text or text.count("[") + text.count("{") > MOST_DEPTH:  # else its size is that of the text
        for node in yaml.compose_all(text, Loader=_COMPOSER):
            _size(node, {}, 0)


def _size(node: Any, known: dict[int, int], depth: int) -> int:
    """The number of values in a node, each alias counted as what it stands for."""
    if depth > MOST_DEPTH:
        raise ValueError(f"it nests deeper than {MOST_DEPTH} levels")
    if id(node) not in known:
        known[id(node)] = 1  # also while its parts are counted: it may hold itself
        parts = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else []
        for part in parts:
            for each in part if isinstance(part, tuple) else (part,):
                known[id(node)] += _size(each, known, depth + 1)
                if known[id(node)] > MOST_NODES:
                    raise ValueError(f"its aliases stand for more than {MOST_NODES} values")
    return known[id(node)]
