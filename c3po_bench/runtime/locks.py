"""One process at a time in a run folder, also over a shared file system."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from c3po_bench.runtime import signals

log = logging.getLogger("c3po_bench")
LOOK_SECONDS = 1.0


class LockHeld(Exception):
    """Another process has the folder."""


@contextmanager
def exclusive_lock(folder: Path, name: str = ".lock", wait: bool = True) -> Iterator[bool]:
    """Hold `folder` (by its file `name`) for this process; wait for another that has it.

    A process that dies lets go of it.

    Where the file system has no locks, a warning says so, and it is the user who must not start a run twice.
    Yields whether the lock is held.

    Raises:
        LockHeld: if another process has it and `wait` is false.
        Stopped: when a signal came while it waited.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, thread_local=False)
    held, looks = False, 0
    while not held:
        try:
            lock.acquire(timeout=LOOK_SECONDS if wait else 0)
            held = True
        except Timeout as timeout:
            if not wait:
                raise LockHeld(str(folder)) from timeout
            if not looks:
                log.info("%s: another process is on it, waiting", folder.name)
            looks += 1
            signals.check()
        except (OSError, NotImplementedError) as error:
            _warn_once(folder, str(error))
            break
    try:
        yield held
    finally:
        if held:
            lock.release()


@cache
def _warn_once(folder: Path, why: str) -> None:
    log.warning("%s can't be locked (%s): do not run the same thing twice at once", folder, why)
