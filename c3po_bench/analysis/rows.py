"""The numbers of one run on each task, benchmark and all together, from aligned scores."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from c3po_bench.analysis import paired
from c3po_bench.analysis.power import smallest_gain
from c3po_bench.analysis.scores import MIN_CLUSTERS, Scores
from c3po_bench.errors import UserError

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

log = logging.getLogger("c3po_bench")
POOLED, MACRO = "all items", "mean of tasks"


class Columns(NamedTuple):
    """Scores of one run and of its base (None: it has none), each ``[items]``."""

    own: np.ndarray
    base: np.ndarray | None
    clusters: np.ndarray | None

    def take(self, rows: np.ndarray) -> Columns:
        """The same of the scored items at `rows`.

        With clusters only where items share them and they are many enough.
        """
        known = (
            ~np.isnan(self.own[rows]) if self.base is None else ~np.isnan(self.own[rows] - self.base[rows])
        )
        rows = rows[known]
        base, clusters = (None if c is None else c[rows] for c in self[1:])
        if clusters is not None and not MIN_CLUSTERS <= len(np.unique(clusters)) < len(clusters):
            clusters = None
        return Columns(self.own[rows], base, clusters)


def asked_groups(run: Run) -> dict[str, list[str]]:
    """The names that the run was asked for, each with its tasks: ``{"mmlu": ["mmlu_anatomy", ...]}``.

    A run recorded without them is read by the names in its config. Raises UserError where it has no config
    either.
    """
    groups = run.result.get("groups")
    if groups is None:
        groups = _groups_by_prefix(run)
    files = (".yaml", ".yml")
    return {Path(name).stem if name.endswith(files) else name: tasks for name, tasks in groups.items()}


def _groups_by_prefix(run: Run) -> dict[str, list[str]]:
    try:
        asked = [str(name) for name in run.config.get("tasks") or []]
    except OSError:
        raise UserError(
            f"run {run.run_id} does not say which tasks it was asked for: no groups in its result.json, and no config.yaml"
        ) from None
    groups: dict[str, list[str]] = {}
    for task in run.result["tasks"]:
        parents = [name for name in asked if task == name or task.startswith(f"{name}_")]
        if parents:
            groups.setdefault(max(parents, key=len), []).append(task)
    return groups


def task_groups(run: Run, scores: Scores) -> dict[str, list[str]]:
    """The benchmarks of a run, each with its tasks; a task that several names cover belongs to the largest.

    Tasks with a scope (feedback) measure different things and belong to none.
    """
    asked: dict[str, list[str]] = {}
    with suppress(UserError):  # the warning below says it
        asked = asked_groups(run)
    groups: dict[str, list[str]] = {}
    alone = []
    for task in scores.tasks:
        if task in scores.scope:
            continue
        holding = [name for name, tasks in asked.items() if task in tasks]
        if not holding:
            alone.append(task)
        groups.setdefault(max(holding, key=lambda name: len(asked[name]), default=task), []).append(task)
    if alone:
        named = ", ".join(alone[:3]) + (f" and {len(alone) - 3} more tasks" if len(alone) > 3 else "")
        log.warning(
            "run %s does not say what asked for %s: each counts as a benchmark of its own", run.run_id, named
        )
    return groups


def statistics_rows(
    scores: Scores, columns: Columns, groups: dict[str, list[str]], *, draws: int, seed: int
) -> list[dict[str, Any]]:
    """A row a task and a benchmark.

    Of several benchmarks also one over all items and one mean of benchmarks.
    """
    parts = {task: columns.take(scores.rows(task)) for task in scores.tasks}
    parent = {task: name for name, tasks in groups.items() for task in tasks if len(tasks) > 1}
    rows, whole = {}, {}
    for task, part in parts.items():
        name = {"task": task, "level": "task", "scope": scores.scope.get(task), "group": parent.get(task)}
        rows[task] = name | statistics(part, draws=draws, seed=seed)

    def all_of(tasks: list[str]) -> dict[str, Any]:
        return statistics(columns.take(np.flatnonzero(np.isin(scores.task, tasks))), draws=draws, seed=seed)

    level = "group" if len(groups) > 1 else "pooled"
    for name, tasks in groups.items():
        whole[name] = {"task": name, "level": level} | all_of(tasks) if len(tasks) > 1 else rows[tasks[0]]
    summary = [row for row in whole.values() if row["level"] == level]
    if len(groups) > 1:
        summary.append({"task": POOLED, "level": "pooled"} | all_of(sum(groups.values(), [])))
        summary.append({"task": MACRO, "level": "macro"} | _macro(list(whole.values())))
    return [*rows.values(), *summary]


def statistics(columns: Columns, *, draws: int, seed: int) -> dict[str, Any]:
    """Accuracy with its interval; against the base the paired difference, its tests and its power."""
    a, b, clusters = columns
    independent = clusters is None
    if independent and paired.is_binary(a):
        own = paired.wilson(float(a.sum()), len(a))
    else:
        own = paired.bootstrap(a, draws=draws, seed=seed, clusters=clusters)
    row: dict[str, Any] = {"n": len(a), "accuracy": own.value, "low": own.low, "high": own.high}
    if b is None:
        return row
    gap = paired.paired_interval(a, b, draws=draws, seed=seed, clusters=clusters)
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
        "mde": smallest_gain(shares, len(a), binary=not np.isnan(p_mcnemar)),
    }
    return row


def _macro(benchmarks: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the benchmarks' rows; the items of two benchmarks are independent."""

    def mean(*columns: str) -> dict[str, float]:
        bounds = [paired.Interval(*(row[name] for name in columns)) for row in benchmarks]
        return dict(zip(columns, paired.mean_interval(bounds), strict=True))

    row = {"n": sum(row["n"] for row in benchmarks)} | mean("accuracy", "low", "high")
    return row | mean("difference", "diff_low", "diff_high") if "difference" in benchmarks[0] else row
