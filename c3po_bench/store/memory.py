"""Memory of this process: the most that was resident, how it is kept, and how often it is looked through."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT_BYTES = 1 << 30
LARGE_BYTES = 1 << 28
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc keep up to `KEPT_BYTES` of freed memory, and take blocks below `LARGE_BYTES` from it.

    No-op elsewhere.

    By default every tensor of some megabytes is given back and asked for anew, page by page: a fifth of the
    time of an optimization step (13,000 page faults).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within the block, look for garbage seldom.

    What a start-up imports stays, and looking through it takes half a second.
    """
    usual = gc.get_threshold()
    gc.set_threshold(50_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def peak_resident() -> int:
    """Bytes, without what was inherited from the process that started this one.

    Linux's `ru_maxrss` starts at the parent's peak, so the kernel's own high-water mark is read there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
