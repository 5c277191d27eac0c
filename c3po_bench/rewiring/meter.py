"""What each phase of an arm costs: seconds always, FLOPs counted on some batches of each kind of work."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from c3po_bench.contract import Cost, Phase
from c3po_bench.runtime.resources import peak_resident


class Meter:
    """Seconds and FLOPs by phase.

    Counting FLOPs slows a pass down, on a GPU several times, so some uses of each phase are counted
    (`is_counted`), and those
    between are taken to cost per unit of work what the last counted one did: the longest questions come
    first. Within a counted use, only the first of its like steps and layers are counted (`step`).
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.flops: dict[str, float] = {}
        self._uses: dict[str, int] = {}
        self._rate: dict[str, float] = {}
        self._count: Count | None = None
        self.credited = self._aside = 0.0

    @contextmanager
    def phase(self, name: str, units: int = 1) -> Iterator[None]:
        """Measure the block as phase `name` doing `units` of work (say, items)."""
        uses = self._uses[name] = self._uses.get(name, 0) + 1
        settle()
        start, aside = time.perf_counter(), self._aside
        if is_counted(uses):
            with Count() as count:
                self._count = count
                try:
                    yield
                finally:
                    self._count = None
            self._rate[name] = count.total / max(1, units)
        else:
            yield
        settle()
        self.add(name, time.perf_counter() - start - (self._aside - aside), self._rate[name] * units)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the block out of the open phase, and its seconds out of the clock's.

        Work done once, on nobody's account.
        """
        settle()
        start = time.perf_counter()
        with nullcontext() if self._count is None else self._count.paused():
            yield
        settle()
        spent = time.perf_counter() - start
        self._aside += spent
        self.credited -= spent

    @property
    def counting(self) -> bool:
        """Whether a phase is open whose FLOPs are counted."""
        return self._count is not None

    def step(self, kind: Hashable, counted: int = 1) -> None:
        """Say within a phase that a step begins, and the one before ends.

        Of one `kind` the first `counted` are counted, and those after are taken to cost what the last of
        these did.
        """
        if self._count is not None:
            self._count.step(kind, counted)

    def add(self, name: str, seconds: float, flops: float) -> None:
        """Put a cost measured elsewhere on this account."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.flops[name] = self.flops.get(name, 0) + flops

    def credit(self, name: str, seconds: float, flops: int) -> None:
        """The same for work done before and not repeated; `credited` seconds come on top of the clock's."""
        self.add(name, seconds, flops)
        self.credited += seconds

    def spent(self, name: str) -> tuple[float, float]:
        """Seconds and FLOPs of one phase so far."""
        return self.seconds.get(name, 0.0), self.flops.get(name, 0.0)

    def cost(self) -> Cost:
        """All phases so far, as a result records them."""
        phases = {name: Phase(seconds, round(self.flops[name])) for name, seconds in self.seconds.items()}
        return Cost(phases, peak_memory(), self.credited)

    def phases(self) -> dict[str, dict[str, Any]]:
        """{phase: {"seconds", "flops"}}, the `cost.phases` of a result."""
        return {
            name: {"seconds": seconds, "flops": round(self.flops[name])}
            for name, seconds in self.seconds.items()
        }


def is_counted(use: int) -> bool:
    """Whether the FLOPs of use 1, 2, 3, ... of a phase are counted: those of 1, 4, 16, 64, ... are."""
    while use % 4 == 0:
        use //= 4
    return use == 1


class Count:
    """FLOPs of the block it is opened for: `total`, once the block has ended."""

    def __init__(self) -> None:
        self.total = 0.0
        self._counter, self._on = counter(), False
        self._steps: dict[Hashable, list[float]] = {}  # FLOPs of the counted ones by kind
        self._open: tuple[list[float], float] | None = (
            None  # where the current step's go, and what was counted before it
        )

    def __enter__(self) -> Count:
        self._switch(True)
        return self

    def __exit__(self, *error: object) -> None:
        self._switch(False)
        self.total += self._counter.total

    def step(self, kind: Hashable, counted: int) -> None:
        """See `Meter.step`."""
        if self._open is not None:
            found, before = self._open
            found.append(self._counter.total - before)
        found = self._steps.setdefault(kind, [])
        more = len(found) < counted
        self._open = (found, self._counter.total) if more else None
        self._switch(more)
        if not more:
            self.total += found[-1]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing within the block."""
        on = self._on
        self._switch(False)
        try:
            yield
        finally:
            self._switch(on)

    def _switch(self, on: bool) -> None:
        if on != self._on:
            self._on = on
            self._counter.__enter__() if on else self._counter.__exit__(None, None, None)


def settle() -> None:
    """Wait until a GPU in use has done what it was told: its time belongs to the phase that asked for it."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def counter() -> Any:
    """Counts FLOPs as `torch.utils.flop_counter` does, with its formulas, but takes no operation apart.

    Its own mode does, and then another kernel runs, whose results differ in the last digits from those of the
    same batch not counted. It also has no formula for the experts' grouped product, which is most of an MoE's
    work, nor for attention on a CPU or (before torch 2.13) with fewer key than query heads, nor for products
    with packed weights or as weighted sums.
    """
    import torch
    import transformers.integrations.moe as _  # noqa: F401  registers its grouped product
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    aten = torch.ops.aten
    kinds = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    formulas = {
        **flop_registry,
        **{getattr(aten, f"_scaled_dot_product_{kind}"): _attention_flops for kind in kinds},
        **{
            getattr(aten, f"_scaled_dot_product_{kind}_backward"): _attention_backward_flops for kind in kinds
        },
        aten._grouped_mm: _grouped_flops,
        torch.ops.transformers.grouped_mm_fallback: _grouped_flops,
        aten._embedding_bag: _weighted_sum_flops,
        aten._embedding_bag_forward_only: _weighted_sum_flops,
    }
    if torch.backends.mkldnn.is_available():
        formulas[torch.ops.mkldnn._linear_pointwise] = _packed_flops

    class Counter(TorchDispatchMode):
        """`total` FLOPs of what ran inside."""

        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if formula := formulas.get(func._overloadpacket):
                self.total += formula(*args, **(kwargs or {}), out_val=out)
            return out

    return Counter()


def _grouped_flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Each row of `left` [rows, inner] (or column of `right`, where only `left` is stacked) meets one matrix."""
    if left.dim() == 3 and right.dim() == 2:
        return 2 * left.shape[-2] * right.numel()
    return 2 * left.numel() * right.shape[-1]


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scores and their sum: query [rows, heads, tokens, width] meets keys and values [rows, fewer heads, keys, width]."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])


def _attention_backward_flops(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Scores anew and their gradient, then those of query, keys and values.

    Three products with keys, two with values.
    """
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (3 * key.shape[-1] + 2 * value.shape[-1])


def _packed_flops(rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Rows [n, in] meet a weight [out, in] (`engines/products.py`)."""
    return 2 * rows.numel() * weight.shape[0]


def _weighted_sum_flops(
    table: Any,
    chosen: Any,
    _starts: Any,
    _scale: bool = False,
    _mode: int = 0,
    _sparse: bool = False,
    weights: Any = None,
    *_: Any,
    **__: Any,
) -> int:
    """Sums of chosen rows of a table [rows, width], each times its weight (`engines/products.py`).

    0 without weights.

    The defaults are the operation's own: what a counter inside a counter passes on lacks trailing arguments
    equal to them.
    """
    return 0 if weights is None else 2 * chosen.numel() * table.shape[-1]


def peak_memory() -> int:
    """Most memory used so far, in bytes: of the GPU if one is used, else resident memory of the process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return peak_resident()
