"""What an experiment will take here and what it can show: said before it starts, corrected as it runs."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from c3po_bench.config import Config
from c3po_bench.contract import Backend
from c3po_bench.evaluate.work import ArmWork, Rates, TaskSize, references, total, works
from c3po_bench.runtime import ranks
from c3po_bench.runtime.console import WHOLE, duration
from c3po_bench.runtime.meter import peak_memory

log = logging.getLogger("c3po_bench")
LONG_SECONDS = 60.0
"""From here on an experiment says what it will take."""
CHANGES = (0.1, 0.2, 0.3, 0.5)
"""Shares of items that may change, of which the least that lets a gain be found is assumed."""
SPREAD = 0.5
"""Standard deviation that differences of feedback scores are taken to have."""
ACTIVATIONS, LOGITS = 64, 12
"""Bytes of a token by width of the model, and of a trained one by words of the vocabulary: logits, gradient, copy."""
ROW_BYTES = 4096
"""A row of samples and its line of the journal, with neighbors and pathways, on disk."""
ARM_SECONDS = 1.0
"""What every arm takes besides answering: rendering, metrics, files, its comparison with base."""
DOUBT_SECONDS = 10.0
"""So much of the forecast is believed beside what was measured: short arms say little of long ones."""
DONE_SECONDS = 0.5
"""An arm that takes less was done before, and says nothing of the others."""
ENOUGH_SECONDS, OTHERWISE = 5.0, 1.5
"""What must be measured, and how far off the forecast must be, before a corrected one is said."""


@dataclass(frozen=True)
class Forecast:
    """The work of an experiment, and the rates that make seconds of it."""

    cfg: Config
    tasks: Sequence[TaskSize]
    parts: Sequence[ArmWork]
    rates: Rates

    def seconds(self, limit: int | None) -> float:
        """Of all arms on the first `limit` items of each task."""
        return self.rates.seconds(total(self.parts, self.tasks, limit)) + ARM_SECONDS * len(self.parts)

    def items(self, limit: int | None) -> int:
        """Items of all tasks."""
        return sum(task.chosen(limit) for task in self.tasks)

    def by_arm(self, limit: int | None) -> list[tuple[str, float]]:
        """Seconds of each arm, in the order in which they run."""
        return [
            (part.arm, self.rates.seconds(part.total(self.tasks, limit)) + ARM_SECONDS) for part in self.parts
        ]


def forecast(cfg: Config, backend: Backend) -> Forecast:
    """The forecast of one experiment, after a second or two of measuring."""
    from c3po_bench.evaluate.rates import measure, task_sizes  # torch: a finished experiment needs none

    sizes, cfg = task_sizes(backend), with_references(cfg, backend.timed_parts().references)
    return Forecast(cfg, sizes, works(cfg, sizes), measure(backend, sizes, cfg.feedback.answers.batch_size))


def with_references(cfg: Config, count: int) -> Config:
    """`cfg` with the number of references that there are, where it names none."""
    if cfg.references.limit is not None and cfg.references.limit <= count or not count:
        return cfg
    return replace(cfg, references=replace(cfg.references, limit=count))


def heading(cfg: Config, tasks: Sequence[TaskSize]) -> str:
    """What is about to be run, in a line: arms, items, tasks, model."""
    arms, items = len(dict.fromkeys(["base", *cfg.arms])), sum(task.chosen(cfg.limit) for task in tasks)
    names = ", ".join(cfg.tasks)
    model = f"{cfg.model.name} ({cfg.model.dtype}, {cfg.model.device})"
    share = f", share {cfg.shard}" if cfg.shard else ""
    return f"{cfg.name}: {arms} arms, {items:,} items of {names}{share}, model {model}"


def needs(found: Forecast, limit: int | None, backend: Backend) -> str:
    """Time, memory and disk that it will take, in a line."""
    memory, disk = memory_bytes(found, backend), disk_bytes(found, limit, backend)
    folder = next(
        path
        for path in (Path(found.cfg.results_dir).absolute(), *Path(found.cfg.results_dir).absolute().parents)
        if path.exists()
    )
    free = shutil.disk_usage(folder).free
    tight = " (more than is free)" if disk > free else ""
    return (
        f"it will take about {duration(found.seconds(limit))} here ({found.rates.basis}), "
        f"{size(memory)} of memory, {size(disk)} of disk{tight}"
    )


def memory_bytes(found: Forecast, backend: Backend) -> float:
    """What the process will use at most: what it uses now, and the largest batch with what is kept of it."""
    config, train = backend.timed_parts().model.config, found.cfg.feedback.train
    longest = max((task.read + task.written for task in found.tasks), default=0.0)
    batch = found.cfg.batch_size * longest * ACTIVATIONS * config.hidden_size
    if any(task.about_feedback for task in found.tasks) and any(part.once.read for part in found.parts):
        rows = 2 * train.batch_size + 2 * train.constraint_batch_size
        batch = max(batch, rows * longest * LOGITS * config.vocab_size)
    return peak_memory() + batch


def disk_bytes(found: Forecast, limit: int | None, backend: Backend) -> float:
    """What will be written: rows, what is kept of references, adapters."""
    rows = found.items(limit) * len(found.parts) * ROW_BYTES
    cfg, model = found.cfg, backend.timed_parts().model
    kept = adapters = 0.0
    if cfg.backend.name != "feedback" and any(part.once.embedded for part in found.parts):
        length = sum(task.read for task in found.tasks) / max(1, len(found.tasks))
        each = 5 * 2 * model.config.hidden_size * (4 if cfg.model.dtype == "float32" else 2)
        kept = min(references(cfg) * length * each, cfg.reference_cache_gb * 2**30)
    if cfg.backend.name != "rewiring":
        shapes = [p.shape for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
        adapter = sum(4.0 * cfg.feedback.lora.rank * (a + b) for a, b in shapes)
        adapters = adapter * len(cfg.feedback.pieces) * sum(part.once.read > 0 for part in found.parts)
    return rows + kept + adapters


def detectable(found: Forecast, limit: int | None) -> str:
    """The smallest difference that so many items can be hoped to find, in a sentence."""
    from c3po_bench.analysis import power  # numpy: a wrong word is answered without it

    inside = sum(task.chosen(limit) for task in found.tasks if task.name == "in_scope")
    if inside > 1:
        least = power.minimum_detectable_effect(SPREAD, inside, df=inside - 1)
        if least >= 1:
            return (
                f"{inside} prompts in scope are too few for any change of S_in to be detectable (power 80%)"
            )
        return (
            f"with {inside} prompts in scope, only changes of S_in above about {least:.2f} are detectable "
            f"(power 80%, if differences spread by {SPREAD})"
        )
    items = found.items(limit)
    for changed in CHANGES:
        gain = power.detectable_gain(items, changed)
        if gain == gain:
            return (
                f"with {items:,} items, only gains above about {gain * 100:.1f} points are detectable "
                f"(power 80%, if {changed:.0%} of them change)"
            )
    return f"{items:,} items are too few for any gain to be detectable with a power of 80%"


def size(count: float) -> str:
    """Bytes as a reader says them: 22 MB, 1.3 GB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6)):
        if count >= step:
            return f"{count / step:.2g} {unit}" if count < 10 * step else f"{count / step:.0f} {unit}"
    return f"{max(1, count / 1e3):.0f} kB"


def announce(cfg: Config, backend: Backend) -> Forecast | None:
    """Say what is about to be run and, where that takes longer than a minute, what it takes and can show.

    Returns:
        The forecast; None on ranks, where no process measures what all of them will do.
    """
    if ranks.world() > 1:
        return None
    found = forecast(cfg, backend)
    log.info("%s", heading(cfg, found.tasks))
    if found.seconds(cfg.limit) > LONG_SECONDS:
        log.info("%s", needs(found, cfg.limit, backend))
        log.info("%s", detectable(found, cfg.limit))
    return found


class Watch:
    """How far a running experiment is: the forecast of arms to come, corrected by those that ran."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, float]] = []
        self.cells, self.cell, self.predicted, self.measured = 0, 0.0, 0.0, 0.0
        self.current, self.started, self.known, self._said = 0.0, time.monotonic(), False, False

    def begin(self, found: Forecast | None, cells: int) -> None:
        """From now on the forecast is known; `cells` of the sweep come after this one, each as long as it.

        It begins with the arm that is under way: those before it were done.
        """
        if found is not None:
            self.waiting, self.known, self.cells = found.by_arm(found.cfg.limit), True, cells
            self.cell = sum(seconds for arm, seconds in self.waiting if arm != "base")
            names = [name for name, _ in self.waiting]
            del self.waiting[: names.index(WHOLE.arm) if WHOLE.arm in names else 0]
            self._start(WHOLE.arm)

    @contextmanager
    def over(self, arm: str) -> Iterator[None]:
        """The block runs this arm, or finds that it is done."""
        WHOLE.arm = arm
        self._start(arm)
        yield
        spent = time.monotonic() - self.started
        if self.current and spent > DONE_SECONDS:
            self.predicted += self.current
            self.measured += spent
            self._say_corrected()
        self.current = 0.0

    def _start(self, arm: str) -> None:
        place = next((i for i, (name, _) in enumerate(self.waiting) if name == arm), None)
        self.current = self.waiting.pop(place)[1] if place is not None else 0.0
        self.started = time.monotonic()

    @property
    def correction(self) -> float:
        """Measured over predicted seconds of what ran; near 1 before that says much."""
        return (self.measured + DOUBT_SECONDS) / (self.predicted + DOUBT_SECONDS)

    def left(self, of_phase: float | None = None) -> float | None:
        """Seconds to the end of the whole; `of_phase` are those of the arm at hand, where they are known."""
        if not self.known:
            return None
        spent = time.monotonic() - self.started
        own = max(0.0, self.current * self.correction - spent) if of_phase is None else of_phase
        later = sum(seconds for _, seconds in self.waiting) + self.cells * self.cell
        return own + later * self.correction

    def _say_corrected(self) -> None:
        factor = self.correction
        if self._said or self.measured < ENOUGH_SECONDS or 1 / OTHERWISE < factor < OTHERWISE:
            return
        self._said = True
        left = self.left(0.0) or 0.0
        if left > LONG_SECONDS:
            log.info("measured so far: %.1f times what was forecast; about %s left", factor, duration(left))
