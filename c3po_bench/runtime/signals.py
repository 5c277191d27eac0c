"""Being stopped from outside: finish the chunk at hand, write it down, leave.

The same command goes on from there.

Slurm sends SIGUSR2 before a time limit (we ask it to, and requeue the job ourselves) and SIGTERM when a job
is preempted, requeued or cancelled (Slurm knows which, so we only leave).
"""

import signal
import threading
from types import FrameType

SIGNALS = ("SIGTERM", "SIGUSR2")
_asked: list[str] = []


class Stopped(KeyboardInterrupt):
    """Raised between two chunks of work after a signal; `args[0]` is its name. Not an `Exception`.

    Nothing swallows it.
    """


def listen() -> None:
    """Turn SIGTERM and SIGUSR2 into a request to stop; a second one of the same kind stops at once."""
    if threading.current_thread() is not threading.main_thread():
        return
    _asked.clear()
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if name in _asked:
        raise Stopped(name)
    _asked.append(name)


def asked() -> str | None:
    """The signal that asks this process to stop, if one came."""
    return _asked[0] if _asked else None


def check() -> None:
    """Stop here if asked to: called wherever the work so far is safely on disk.

    Raises:
        Stopped: when a signal came.
    """
    if _asked:
        raise Stopped(_asked[0])
