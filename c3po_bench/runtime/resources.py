"""Memory and threads of this process: how freed memory is kept, and who else wants the same cores."""

import ctypes
import gc
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from c3po_bench.errors import UserError, out_of_memory

log = logging.getLogger("c3po_bench")
T = TypeVar("T")
R = TypeVar("R")
KEPT_BYTES = 1 << 30
LARGE_BYTES = 1 << 28
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
SPINS = 1_000
LOADAVG = Path("/proc/loadavg")


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


def in_halves(
    work: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T], what: str, size: Callable[[T], str] = str
) -> list[R]:
    """`work(items)`; where memory does not suffice for all at once, of one half after the other, down to single items.

    Args:
        work: gives a result for each of the items, and leaves nothing behind where it fails.
        items: what is worked on.
        what: they are, in the plural.
        size: says of an item how large it is.

    Raises:
        UserError: where memory does not suffice for one of them.
    """
    try:
        return list(work(items))
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if len(items) < 2:
            raise UserError(
                f"memory does not suffice for one of {what} ({', '.join(map(size, items))}): {reason}; use a smaller model, "
                "shorter prompts, model.dtype=bfloat16, or a larger machine"
            ) from error
    log.warning("memory does not suffice for %d %s at once (%s): half as many", len(items), what, reason)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    half = (len(items) + 1) // 2
    parts = (items[:half], items[half:])
    return [result for part in parts for result in in_halves(work, part, what, size)]


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


def sleep_where_shared(threads: int | None = None) -> None:
    """Where other programs want the same cores, have torch's threads wait for each other shortly, then sleep.

    By default a thread of GNU OpenMP waits awake for milliseconds, and so keeps a core from the very thread
    that it waits for. No number depends on it. What the user set is left. Must come before torch is imported,
    which reads it once.

    Args:
        threads: of torch; None = as many as it takes by itself.
    """
    if "OMP_WAIT_POLICY" not in os.environ and others_running() > spare_cores(threads):
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def others_running(looks: int = 5, apart: float = 0.01) -> int:
    """Threads of other programs that run, or could.

    At every look, seconds `apart`, and on average over the last minute.

    The average alone would count a run that has just ended, the looks alone one that soon will.
    0 where Linux doesn't say.
    """
    seen: list[int] = []
    for look in range(looks):
        if look:
            time.sleep(apart)
        try:
            average, _, _, running, _ = LOADAVG.read_text().split()
            seen.append(min(int(running.split("/")[0]) - 1, round(float(average))))  # less this one
        except (OSError, ValueError):
            return 0
        if seen[-1] <= 0:
            return 0
    return min(seen)


def spare_cores(threads: int | None) -> int:
    """Cores of the machine beside those of our threads."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    mine = threads or (int(given) if given.isdigit() else allowed)
    return max(0, (os.cpu_count() or 1) - mine)
