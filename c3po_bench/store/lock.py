"""One process at a time in a run folder, also over a shared file system."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("c3po_bench")


class Busy(Exception):
    """Another process has the folder."""


@contextmanager
def alone_in(folder: Path, name: str = ".lock", wait: bool = True) -> Iterator[None]:
    """Hold `folder` (by its file `name`) for this process; wait for another that has it. A process that dies lets go of it.

    Where the file system has no locks, a warning says so, and it is the user who must not start a run twice.

    Raises:
        Busy: if another process has it and `wait` is false.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, thread_local=False)
    held = True
    try:
        lock.acquire(timeout=0)
    except Timeout as timeout:
        if not wait:
            raise Busy(str(folder)) from timeout
        log.info("%s: another process is on it, waiting", folder.name)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.warning("%s can't be locked (%s): do not run the same thing twice at once", folder, error)
        held = False
    try:
        yield
    finally:
        if held:
            lock.release()
