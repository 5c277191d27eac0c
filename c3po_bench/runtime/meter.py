"""What each phase of an arm costs: seconds by the clock, FLOPs as the caller says (`models.flops`)."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan

from c3po_bench.contract import Cost, Phase
from c3po_bench.runtime.resources import peak_resident


class Meter:
    """Seconds and FLOPs by phase. FLOPs that nobody knows are NaN, and so is whatever they are added to.

    `cached_seconds` come on top of the clock's: those of work that was done before and is charged again, less
    those of what was excluded.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.flops: dict[str, float] = {}
        self.cached_seconds = self.cached_flops = 0.0
        self._excluded = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the seconds of the block as those of phase `name`; `count` adds its FLOPs."""
        synchronize()
        start, excluded = time.perf_counter(), self._excluded
        yield
        synchronize()
        self.add(name, time.perf_counter() - start - (self._excluded - excluded), 0)

    def count(self, name: str, flops: float) -> None:
        """Add FLOPs to phase `name`."""
        self.add(name, 0.0, flops)

    @contextmanager
    def exclude(self) -> Iterator[None]:
        """Leave the block's seconds out of the open phase, and of the clock's: work done once, for all."""
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        spent = time.perf_counter() - start
        self._excluded += spent
        self.cached_seconds -= spent

    def add(self, name: str, seconds: float, flops: float) -> None:
        """Add a cost measured elsewhere to phase `name`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.flops[name] = self.flops.get(name, 0) + flops

    def add_cached_cost(self, name: str, seconds: float, flops: float) -> None:
        """The same for work that was done before and is not repeated."""
        self.add(name, seconds, flops)
        self.cached_seconds += seconds
        self.cached_flops += flops

    def spent(self, name: str) -> tuple[float, float]:
        """Seconds and FLOPs of one phase so far."""
        return self.seconds.get(name, 0.0), self.flops.get(name, 0)

    def cost(self) -> Cost:
        """All phases so far, as a result records them; FLOPs are None where they are unknown."""
        known = {name: None if isnan(flops) else round(flops) for name, flops in self.flops.items()}
        phases = {name: Phase(seconds, known[name]) for name, seconds in self.seconds.items()}
        return Cost(phases, peak_memory(), self.cached_seconds)

    @property
    def notes(self) -> list[str]:
        """What a reader of the cost should know: the phases whose FLOPs are unknown."""
        unknown = [name for name, flops in self.flops.items() if isnan(flops)]
        return [f"FLOPs unknown for this model: {', '.join(unknown)}"] if unknown else []


def synchronize() -> None:
    """Wait until a GPU in use has done what it was told: its time belongs to the phase that asked for it."""
    torch = sys.modules.get("torch")  # where nobody has imported it, nothing runs on a GPU
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Most memory used so far, in bytes: of the GPU if one is used, else resident memory of the process."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return peak_resident()
