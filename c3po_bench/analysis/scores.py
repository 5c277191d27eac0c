"""The few columns of `samples.jsonl` that comparing needs, read fast: one row an item, as arrays.

A sweep has millions of rows, most of whose bytes are neighbors and pathways, which msgspec passes over; rows
that it refuses (NaN is no JSON) are read with the standard library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from c3po_bench.errors import UserError

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

COLUMNS = ("task", "doc_id", "doc_hash", "prompt_hash", "correct", "cluster", "feedback_id", "scope", "score")

_Row = msgspec.defstruct(
    "_Row", [(name, Any, msgspec.UNSET if name == "score" else None) for name in COLUMNS], gc=False
)
_DECODER = msgspec.json.Decoder(_Row)

MIN_CLUSTERS = 10  # with fewer, resampling them says more about their number than about the arms


@dataclass(frozen=True)
class Scores:
    """One run's items, sorted by (task, doc_id); every array is ``[items]``."""

    task: NDArray[Any]
    doc_id: NDArray[Any]
    doc_hash: NDArray[Any]
    prompt_hash: NDArray[Any]
    correct: NDArray[np.float64]  # NaN where a judge gave no score
    cluster: NDArray[Any] | None  # what items share: a passage, a feedback; None where no row names any
    scope: dict[str, str]  # in | near | out by feedback task

    def rows(self, task: str) -> NDArray[np.intp]:
        """Positions of the items of `task`."""
        return np.flatnonzero(self.task == task)

    @property
    def tasks(self) -> list[str]:
        """The tasks that have items, in the store's order."""
        return list(dict.fromkeys(self.task.tolist()))


def score_of(row: Mapping[str, Any]) -> float:
    """The score of a sample row; NaN where a feedback's answer could not be judged."""
    return (
        float("nan")
        if row.get("scope") is not None and row.get("score", "") is None
        else float(row["correct"])
    )


def load_scores(run: Run) -> Scores:
    """Read the scores of `run`. Raises UserError where rows lack a score or an item has two.

    None is dropped silently.

    A feedback's answer on which no judgement could be had (`score` is null) is kept as NaN: it is neither
    good nor bad.
    """
    columns = _columns(run)
    correct = np.array(columns["correct"], dtype=np.float64)  # None becomes NaN
    if np.isnan(correct).any():
        missing = f"{int(np.isnan(correct).sum())} of {len(correct)}"
        raise UserError(f"run {run.run_id}: {missing} rows have no score; run the experiment again")
    judged = zip(columns["scope"], columns["score"], strict=True)
    correct[[scope is not None and score is None for scope, score in judged]] = np.nan
    items = list(zip(columns["task"], columns["doc_id"], strict=True))
    if len(set(items)) < len(items):
        (name, number), times = Counter(items).most_common(1)[0]
        raise UserError(
            f"run {run.run_id}: item {name}/{number} has {times} rows; delete the run and repeat the experiment"
        )
    shared = zip(columns["cluster"], columns["feedback_id"], strict=True)
    groups = [feedback if cluster is None else cluster for cluster, feedback in shared]
    cluster = None
    if set(groups) - {None}:
        cluster = np.array([str(i) if g is None else f"={g}" for i, g in enumerate(groups)])
    task, doc_id = np.array(columns["task"], dtype=str), np.array(columns["doc_id"])
    scopes = zip(columns["task"], columns["scope"], strict=True)
    order = np.lexsort((doc_id, task))
    return Scores(
        task=task[order],
        doc_id=doc_id[order],
        doc_hash=np.array(columns["doc_hash"], dtype=str)[order],
        prompt_hash=np.array(columns["prompt_hash"], dtype=str)[order],
        correct=correct[order],
        cluster=None if cluster is None else cluster[order],
        scope={t: s for t, s in dict.fromkeys(scopes) if s is not None},
    )


def _columns(run: Run) -> dict[str, list[Any]]:
    """The wanted columns, each ``[items]``, absent values None."""
    path = Path(run.path) / "samples.jsonl"
    try:
        rows = _DECODER.decode_lines(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        rows = [_Row(**{name: row[name] for name in COLUMNS if name in row}) for row in run.samples()]
    return {name: list(map(attrgetter(name), rows)) for name in COLUMNS}
