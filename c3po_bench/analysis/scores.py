"""The few columns of `samples.jsonl` that comparing needs, read fast: one row an item, as arrays.

A sweep has millions of rows, most of whose bytes are neighbors and pathways, which msgspec passes over. Rows
that it refuses, because NaN is no JSON, are read with the standard library.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run

COLUMNS = ("task", "doc_id", "doc_hash", "prompt_hash", "correct", "cluster", "feedback_id", "scope", "score")
COLUMNS += ("p_gold", "prediction", "loglikelihoods")
RAW = ("prediction", "loglikelihoods")  # only their form counts: a number or a text, and how many

_Row = msgspec.defstruct(
    "_Row",
    [
        (name, msgspec.Raw, msgspec.Raw(b"null"))
        if name in RAW
        # a row without a score is no feedback's
        else (name, Any, msgspec.UNSET if name == "score" else None)
        for name in COLUMNS
    ],
    gc=False,
)
_DECODER = msgspec.json.Decoder(_Row)

MIN_CLUSTERS = 10  # with fewer, resampling them says more about their number than about the arms


def many_clusters(clusters: np.ndarray | None) -> np.ndarray | None:
    """The clusters of items, where some share one and there are enough to generalize over; else None."""
    if clusters is None or not MIN_CLUSTERS <= len(np.unique(clusters)) < len(clusters):
        return None
    return clusters


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
    p_gold: NDArray[np.float64]  # the right choice's probability; NaN where the record has none
    options: NDArray[np.float64]  # how many choices there are: 0 for written answers, NaN where nobody knows

    @property
    def tasks(self) -> list[str]:
        """The tasks that have items, in the store's order."""
        return list(dict.fromkeys(self.task.tolist()))


def score_of(row: Mapping[str, Any]) -> float:
    """The score of a sample row; NaN where a feedback's answer could not be judged."""
    unjudged = row.get("scope") is not None and row.get("score", "") is None
    return math.nan if unjudged else float(row["correct"])


def load_scores(run: Run) -> Scores:
    """Read the scores of `run`.

    A feedback's answer on which no judgement could be had (`score` is null) is kept as NaN: it is neither
    good nor bad.

    Raises:
        UserError: where a row lacks a score, or an item has two rows.
    """
    try:
        rows: list[Any] = _DECODER.decode_lines(run.stored_samples)
    except msgspec.DecodeError:
        rows = [
            _Row(**{name: _plain(name, row[name]) for name in COLUMNS if name in row})
            for row in run.samples()
        ]
    columns = {name: list(map(attrgetter(name), rows)) for name in COLUMNS}
    correct = np.array(columns["correct"], dtype=np.float64)  # None becomes NaN
    if missing := int(np.isnan(correct).sum()):
        raise UserError(
            f"run {run.run_id}: {missing} of {len(correct)} rows have no score; run the experiment again"
        )
    correct[[row.scope is not None and row.score is None for row in rows]] = np.nan
    items = Counter(zip(columns["task"], columns["doc_id"], strict=True))
    if len(items) < len(rows):
        (name, number), times = items.most_common(1)[0]
        raise UserError(
            f"run {run.run_id}: item {name}/{number} has {times} rows; "
            "delete the run and repeat the experiment"
        )
    shared = [row.feedback_id if row.cluster is None else row.cluster for row in rows]
    task, doc_id = np.array(columns["task"], dtype=str), np.array(columns["doc_id"])
    order = np.lexsort((doc_id, task))
    cluster = None
    if set(shared) - {None}:  # an item that shares nothing is a cluster of its own
        cluster = np.array([str(i) if name is None else f"={name}" for i, name in enumerate(shared)])[order]
    scopes = dict.fromkeys(zip(columns["task"], columns["scope"], strict=True))
    return Scores(
        task=task[order],
        doc_id=doc_id[order],
        doc_hash=np.array(columns["doc_hash"], dtype=str)[order],
        prompt_hash=np.array(columns["prompt_hash"], dtype=str)[order],
        correct=correct[order],
        cluster=cluster,
        scope={name: scope for name, scope in scopes if scope is not None},
        p_gold=np.array(columns["p_gold"], dtype=np.float64)[order],
        options=np.array(list(map(_options, rows)), dtype=np.float64)[order],
    )


def _plain(name: str, value: Any) -> Any:
    return msgspec.Raw(json.dumps(value).encode()) if name in RAW else value


def _options(row: Any) -> float:
    """How many choices a row's item has: that of its log-likelihoods, none where its answer is a text."""
    listed = bytes(row.loglikelihoods)
    if listed.startswith(b"["):
        return listed.count(b",") + 1
    return math.nan if bytes(row.prediction)[:1].isdigit() else 0.0
