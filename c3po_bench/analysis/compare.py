"""Each run beside its base, item by item; or a refusal that says why the two must not be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from c3po_bench.analysis import paired
from c3po_bench.analysis.pairing import Partners, align, prompt_differs, run_labels
from c3po_bench.analysis.power import difference_sd, minimum_detectable_effect
from c3po_bench.analysis.scores import Scores, load_scores, read_ahead
from c3po_bench.errors import UserError

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

POOLED, MACRO = "all items", "mean of tasks"

COLUMNS = {
    "arm": "str",
    "label": "str",  # the arm, with the settings in which it differs where several runs share an arm
    "run_id": "str",
    "base_run_id": "str",
    "backend": "str",
    "model": "str",
    "task": "str",
    "level": "str",  # task | pooled | macro
    "scope": "str",  # in | near | out for feedback tasks
    "n": "int64",
    "accuracy": "float64",
    "low": "float64",
    "high": "float64",
    "difference": "float64",
    "diff_low": "float64",
    "diff_high": "float64",
    "p_mcnemar": "float64",  # exact; empty for real-valued scores
    "p": "float64",  # of `test`: what p_holm corrects
    "test": "str",  # mcnemar | sign-flip
    "p_holm": "float64",
    "fixed": "Int64",
    "broken": "Int64",
    "mde": "float64",  # the difference these items find with 80% power
    "seconds_per_item": "float64",
    "flops_per_item": "float64",
    "prompt_differs": "bool",
    "control": "str",  # the control arm that the next three are measured against
    "over_control": "float64",
    "over_control_low": "float64",
    "over_control_high": "float64",
}


def compare(
    runs: Sequence[Run], *, draws: int = paired.DRAWS, seed: int = 0, refused: dict[str, str] | None = None
) -> pd.DataFrame:
    """Compare every run with the base run of the same comparison key, paired on (task, doc_id, doc_hash).

    Rows: one a run and task; with several tasks also one over all items and one mean over tasks. Holm's
    correction runs over all (run, task) tests, and over the runs for the row of all items. Intervals are 95%.

    Raises UserError with the reason where data, prompts or scoring differ; with `refused` (a dict) those runs
    are left out instead and their reasons put there by run id. ``settings.prompt_differs`` of a run permits
    other prompts (in-context feedback): the column of that name marks it.
    """
    partners, labels = Partners(runs), run_labels(runs)
    kept: dict[str, Scores] = {}  # of bases and controls, which many runs are compared with

    def scores_of(run: Run) -> Scores:
        if run.run_id not in kept:
            kept[run.run_id] = load_scores(run)
        return kept[run.run_id]

    rows: list[dict[str, Any]] = []
    for run, loaded in zip(runs, read_ahead(load_scores, runs), strict=True):
        try:
            scores = loaded()
            base, control = partners.base(run), partners.control(run)
            pair = align(run, base, scores, scores_of(base))
            against = align(run, control, scores, scores_of(control)).base.correct if control else None
        except UserError as reason:
            if refused is None:
                raise
            refused[run.run_id] = str(reason)
            continue
        own_base = run.run_id == base.run_id
        columns = Columns(scores.correct, None if own_base else pair.base.correct, against, pair.base.cluster)
        common = {"label": labels[run.run_id], "control": control.arm if control else ""} | _common(run, base)
        rows += _rows(common, scores, columns, draws=draws, seed=seed)
    return _finish(rows)


def _common(run: Run, base: Run) -> dict[str, Any]:
    cost = run.result.get("cost") or {}
    items = cost.get("items") or 0
    flops = [phase.get("flops") for phase in (cost.get("phases") or {}).values()]
    known = [f for f in flops if f is not None]
    return {
        "arm": run.arm,
        "run_id": run.run_id,
        "base_run_id": base.run_id,
        "backend": run.result.get("backend") or "",
        "model": run.result.get("model") or "",
        "seconds_per_item": (cost.get("seconds") or 0.0) / items if items else float("nan"),
        "flops_per_item": sum(known) / items if known and items else float("nan"),
        "prompt_differs": prompt_differs(run),
    }


class Columns(NamedTuple):
    """Scores of one run and of what it is compared with (None: nothing), each ``[items]``."""

    own: np.ndarray
    base: np.ndarray | None
    control: np.ndarray | None
    clusters: np.ndarray | None

    def take(self, rows: np.ndarray) -> Columns:
        """The same of the items at `rows`."""
        base, control, clusters = (None if c is None else c[rows] for c in self[1:])
        return Columns(self.own[rows], base, control, clusters)


def _rows(common: dict[str, Any], scores: Scores, columns: Columns, *, draws: int, seed: int) -> list[dict[str, Any]]:
    """One row a task; then all items and the mean of tasks, where several tasks measure one thing."""
    tasks = {task: columns.take(scores.rows(task)) for task in scores.tasks}
    rows = []
    for task, part in tasks.items():
        name = {"task": task, "level": "task", "scope": scores.scope.get(task)}
        rows.append(common | name | _statistics(part, draws=draws, seed=seed))
    alike = {task: c for task, c in tasks.items() if task not in scores.scope}
    if len(alike) > 1:
        pooled = columns.take(np.flatnonzero(np.isin(scores.task, list(alike))))
        whole, mean = {"task": POOLED, "level": "pooled"}, {"task": MACRO, "level": "macro"}
        rows.append(common | whole | _statistics(pooled, draws=draws, seed=seed))
        rows.append(common | mean | _macro(alike, draws=draws, seed=seed))
    return rows


def _statistics(columns: Columns, *, draws: int, seed: int) -> dict[str, Any]:
    a, b, control, clusters = columns
    independent = clusters is None
    if independent and paired.is_binary(a):
        own = paired.wilson(float(a.sum()), len(a))
    else:
        own = paired.bootstrap(a, draws=draws, seed=seed, clusters=clusters)
    row: dict[str, Any] = {"n": len(a), "accuracy": own.value, "low": own.low, "high": own.high}
    if b is None:
        return row
    gap = paired.paired_bootstrap(a, b, draws=draws, seed=seed, clusters=clusters)
    fixed, broken = paired.fixed_broken(a, b)
    p_mcnemar = float(paired.mcnemar(fixed, broken)) if paired.is_binary(a, b) else float("nan")
    exact = independent and not np.isnan(p_mcnemar)
    shares = paired.cluster_means(a - b, clusters)
    row |= {"difference": gap.value, "diff_low": gap.low, "diff_high": gap.high, "p_mcnemar": p_mcnemar}
    row |= {
        "p": p_mcnemar if exact else paired.sign_flip(a - b, draws=draws, seed=seed, clusters=clusters),
        "test": "mcnemar" if exact else "sign-flip",
        "fixed": fixed,
        "broken": broken,
        "mde": minimum_detectable_effect(difference_sd(shares), len(shares)),
    }
    if control is not None:
        over = paired.paired_bootstrap(a, control, draws=draws, seed=seed, clusters=clusters)
        row |= {"over_control": over.value, "over_control_low": over.low, "over_control_high": over.high}
    return row


def _macro(tasks: dict[str, Columns], *, draws: int, seed: int) -> dict[str, Any]:
    clusters = {task: c.clusters for task, c in tasks.items()}

    def mean(values: dict[str, np.ndarray]) -> paired.Interval:
        return paired.macro_bootstrap(values, draws=draws, seed=seed, clusters=clusters)

    own = mean({task: c.own for task, c in tasks.items()})
    row: dict[str, Any] = {"n": sum(len(c.own) for c in tasks.values())}
    row |= {"accuracy": own.value, "low": own.low, "high": own.high}
    gaps = {task: c.own - c.base for task, c in tasks.items() if c.base is not None}
    if gaps:
        gap = mean(gaps)
        row |= {"difference": gap.value, "diff_low": gap.low, "diff_high": gap.high}
    over = {task: c.own - c.control for task, c in tasks.items() if c.control is not None}
    if over:
        gap = mean(over)
        row |= {"over_control": gap.value, "over_control_low": gap.low, "over_control_high": gap.high}
    return row


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `frame` as dictionaries, for code that reads them one by one."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _finish(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a typed frame, with Holm's correction within the family of each level."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for level in frame["level"].unique():
        family = frame["level"] == level
        frame.loc[family, "p_holm"] = paired.holm(frame.loc[family, "p"].astype(float).to_numpy())
    for name, kind in COLUMNS.items():
        column = frame[name]
        text = kind == "str"
        frame[name] = column.astype(object).where(column.notna(), "").astype("str") if text else column.astype(kind)
    return frame
