"""The few columns of `samples.jsonl` that comparing needs, read fast: one row an item, as arrays.

A sweep has millions of rows, most of whose bytes are neighbors and pathways. pyarrow's reader skips those;
rows it cannot read (mixed types) are read with the standard library instead.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from c3po_bench.errors import UserError

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

COLUMNS = ("task", "doc_id", "doc_hash", "prompt_hash", "correct", "cluster", "feedback_id", "scope")

MIN_CLUSTERS = 10  # with fewer, resampling them says more about their number than about the arms


@dataclass(frozen=True)
class Scores:
    """One run's items, sorted by (task, doc_id); every array is ``[items]``."""

    task: NDArray[Any]
    doc_id: NDArray[Any]
    doc_hash: NDArray[Any]
    prompt_hash: NDArray[Any]
    correct: NDArray[np.float64]
    cluster: NDArray[Any] | None  # what items share: a passage, a feedback; None where no row names any
    scope: dict[str, str]  # in | near | out by feedback task

    def rows(self, task: str) -> NDArray[np.intp]:
        """Positions of the items of `task`."""
        return np.flatnonzero(self.task == task)

    @property
    def tasks(self) -> list[str]:
        """The tasks that have items, in the store's order."""
        return list(dict.fromkeys(self.task.tolist()))


def load_scores(run: Run) -> Scores:
    """Read the scores of `run`. Raises UserError where rows lack a score or an item has two: none is dropped silently."""
    columns = _columns(Path(run.path) / "samples.jsonl", run)
    correct = np.array([np.nan if c is None else float(c) for c in columns["correct"]], dtype=np.float64)
    if np.isnan(correct).any():
        missing = f"{int(np.isnan(correct).sum())} of {len(correct)}"
        raise UserError(f"run {run.run_id}: {missing} rows have no score; run the experiment again")
    items = Counter(zip(columns["task"], columns["doc_id"], strict=True))
    if len(items) < len(correct):
        (name, number), times = items.most_common(1)[0]
        raise UserError(f"run {run.run_id}: item {name}/{number} has {times} rows; delete the run and repeat the experiment")
    shared = zip(columns["cluster"], columns["feedback_id"], strict=True)
    groups = [feedback if cluster is None else cluster for cluster, feedback in shared]
    cluster = None
    if any(g is not None for g in groups):
        cluster = np.array([str(i) if g is None else f"={g}" for i, g in enumerate(groups)])
    task, doc_id = np.array(columns["task"], dtype=str), np.array(columns["doc_id"])
    order = np.lexsort((doc_id, task))
    return Scores(
        task=task[order],
        doc_id=doc_id[order],
        doc_hash=np.array([str(h) for h in columns["doc_hash"]])[order],
        prompt_hash=np.array([str(h) for h in columns["prompt_hash"]])[order],
        correct=correct[order],
        cluster=None if cluster is None else cluster[order],
        scope={t: s for t, s in zip(columns["task"], columns["scope"], strict=True) if s is not None},
    )


def read_ahead(read: Callable[[Run], Scores], runs: Sequence[Run]) -> Iterator[Callable[[], Scores]]:
    """Call `read` on each run in order, a few runs ahead in threads (parsing leaves the interpreter free).

    Yields one function a run, which returns its scores or raises what reading them raised.
    """
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Scores]] = deque()
        for position, run in enumerate(runs):
            pending.append(pool.submit(read, run))
            if position >= 2 * workers:
                yield pending.popleft().result
        while pending:
            yield pending.popleft().result


def _columns(path: Path, run: Run) -> dict[str, list[Any]]:
    """The wanted columns as lists ``[items]``, absent ones filled with None."""
    if not path.exists():
        rows = run.samples()
        return {name: [row.get(name) for row in rows] for name in COLUMNS}
    if path.stat().st_size == 0:
        return {name: [] for name in COLUMNS}
    try:
        return _columns_arrow(path)
    except (ImportError, OSError, ValueError):
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        return {name: [row.get(name) for row in rows] for name in COLUMNS}


def _columns_arrow(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import json as arrow_json

    text = pa.string()
    kinds = {name: text for name in COLUMNS} | {"doc_id": pa.int64(), "correct": pa.float64()}
    reading = arrow_json.ReadOptions(use_threads=False, block_size=1 << 24)
    parsing = arrow_json.ParseOptions(explicit_schema=pa.schema(kinds), unexpected_field_behavior="ignore")
    table = arrow_json.read_json(path, read_options=reading, parse_options=parsing)
    return {name: table.column(name).to_pylist() for name in COLUMNS}
