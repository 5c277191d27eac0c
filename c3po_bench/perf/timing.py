"""Fair timing: two or more pieces of work in turn, after a warm-up, the median of several rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from c3po_bench.rewiring.meter import synchronize


def side_by_side(rounds: int, **work: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each piece of work, run in turn A B A B ..., so that drift of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for piece in work.values():
        piece()
    synchronize()
    for _ in range(rounds):
        for name, piece in work.items():
            start = time.perf_counter()
            piece()
            synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def place(device: torch.device) -> dict[str, Any]:
    """What a record says of where it was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}
