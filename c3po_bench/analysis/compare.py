"""Each run beside its base and its controls, item by item, or the reason why they must not be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from c3po_bench.analysis import statistics
from c3po_bench.analysis.arms import arm_of, columns_of, prompt_differs
from c3po_bench.analysis.pairing import Partners, check_comparable, run_labels
from c3po_bench.analysis.scores import MIN_CLUSTERS, Scores, load_scores
from c3po_bench.errors import DamagedFile, UserError
from c3po_bench.store.reader import Run

POOLED, MACRO = "all items", "mean of tasks"
COLUMNS = {
    "arm": "str",
    "title": "str",  # the arm as a reader calls it
    "role": "str",  # base | method | baseline | control | ceiling
    "label": "str",  # the arm, with the settings in which it differs where several runs share an arm
    "run_id": "str",
    "base_run_id": "str",
    "backend": "str",
    "model": "str",
    "task": "str",
    "level": "str",  # task | group (tasks that are one benchmark) | pooled | macro
    "group": "str",  # of a task that is one of many in a benchmark: the benchmark
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
}
CONTROL_COLUMNS = {
    "arm": "str",
    "label": "str",
    "run_id": "str",
    "control": "str",
    "change": "str",  # what the control does otherwise than the arm
    "not_due_to": "str",  # what a gain is not due to if the control has it, too
    "control_run_id": "str",
    "task": "str",
    "level": "str",
    "n": "int64",
    "difference": "float64",  # of the arm to its control
    "diff_low": "float64",
    "diff_high": "float64",
    "p": "float64",
    "test": "str",
    "p_holm": "float64",
    "fixed": "Int64",
    "broken": "Int64",
    "mde": "float64",
}


def compare(
    runs: Sequence[Run],
    *,
    draws: int = statistics.DRAWS,
    seed: int = 0,
    refused: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Compare every run with the base run of the same comparison key, paired on (task, doc_id, doc_hash).

    Each run has a row for each of its tasks and one for each benchmark of many tasks (facts, MMLU). With
    several benchmarks it also has a row over all items and one for the mean of benchmarks. Intervals are 95%.
    Holm's correction runs over all (run, benchmark) tests, over the runs for the row of all items, and over
    the tasks within benchmarks on their own. A run whose ``settings.prompt_differs`` is true may have other
    prompts than its base (in-context feedback); the column of that name marks it.

    Args:
        runs: of one store.
        draws: bootstrap resamples, and sign flips.
        seed: of the resamples.
        refused: where given, runs that cannot be compared are left out, and their reasons put here by run id.

    Raises:
        UserError: without `refused`, where a run's data, prompts or scoring differ from its base's.
    """
    partners, labels = Partners(runs), run_labels(runs)
    groups: dict[str, dict[str, list[str]]] = {}  # by base run: its benchmarks and their tasks
    base_scores: dict[str, Scores] = {}  # many runs are compared with one base
    rows: list[dict[str, Any]] = []
    for run in runs:
        with _refusal(refused, run.run_id):
            scores, base = load_scores(run), partners.base(run)
            if base.run_id not in base_scores:
                base_scores[base.run_id] = load_scores(base)
            others = base_scores[base.run_id]
            check_comparable(run, base, scores, others)
            if base.run_id not in groups:
                groups[base.run_id] = task_groups(base, scores)
            columns = Columns(scores.correct, None if run is base else others.correct, others.cluster)
            common = columns_of(run) | cost_columns(run) | {"label": labels[run.run_id], "run_id": run.run_id}
            common |= {name: run.result[name] for name in ("backend", "model")}
            common |= {"base_run_id": base.run_id, "prompt_differs": prompt_differs(run)}
            rows += [common | row for row in _rows(scores, columns, groups[base.run_id], draws, seed)]
    return typed(rows, COLUMNS)


def compare_controls(
    runs: Sequence[Run],
    *,
    draws: int = statistics.DRAWS,
    seed: int = 0,
    refused: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Compare every run with each of its controls, as `compare` does with its base.

    There is a row for each benchmark and summary. Holm's correction runs over all (run, control, benchmark)
    tests, and over (run, control) for the row of all items. Raises UserError where items differ; with
    `refused` (a dict) its reason is put there instead.
    """
    partners, labels = Partners(runs), run_labels(runs)
    rows: list[dict[str, Any]] = []
    for run, control in [(arm, control) for arm in runs for control in partners.controls(arm)]:
        with _refusal(refused, f"{run.run_id} with {control.run_id}"):
            scores, others = load_scores(run), load_scores(control)
            check_comparable(run, control, scores, others)
            facts = arm_of(control)
            common = {"arm": run.arm, "label": labels[run.run_id], "run_id": run.run_id}
            common |= {"control": control.arm, "control_run_id": control.run_id}
            common |= {"change": facts.change, "not_due_to": facts.not_due_to}
            columns = Columns(scores.correct, others.correct, scores.cluster)
            statistics_rows = _rows(scores, columns, task_groups(run, scores), draws, seed)
            rows += [common | row for row in headlines(statistics_rows)]
    return typed(rows, CONTROL_COLUMNS)


@contextmanager
def _refusal(refused: dict[str, str] | None, name: str) -> Iterator[None]:
    """Put the reason of a UserError into `refused` under `name`, where there is such a dict."""
    try:
        yield
    except UserError as reason:
        if refused is None or isinstance(reason, DamagedFile):
            raise
        refused[name] = str(reason)


def total_flops(run: Run) -> float:
    """The FLOPs of all phases that were counted; NaN where none was."""
    counted = [f for phase in run.result["cost"]["phases"].values() if (f := phase["flops"]) is not None]
    return float(sum(counted)) if counted else math.nan


def cost_columns(run: Run) -> dict[str, float]:
    """Seconds and FLOPs an item of a run; NaN where there was no item, or nobody counted."""
    items = run.result["cost"]["items"] or math.nan
    return {
        "seconds_per_item": run.result["cost"]["seconds"] / items,
        "flops_per_item": total_flops(run) / items,
    }


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `frame` as dictionaries, for code that reads them one by one."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def known(value: Any) -> bool:
    """Whether a cell of a table holds anything."""
    return value is not None and value is not pd.NA and value == value


def headlines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of benchmarks and summaries, without the many tasks within a benchmark."""
    return [row for row in rows if not row.get("group")]


def typed(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    """The rows as a frame of these columns, with Holm's correction within the family of each level."""
    frame = pd.DataFrame(rows, columns=list(columns))
    families = np.array(
        ["pooled" if r["level"] == "pooled" else "task" if r.get("group") else "benchmark" for r in rows]
    )
    for name in set(families):
        family = families == name
        frame.loc[family, "p_holm"] = statistics.holm(frame.loc[family, "p"].astype(float).to_numpy())
    for name, kind in columns.items():
        column = frame[name]
        if kind == "str":
            column = column.astype(object).where(column.notna(), "")
        frame[name] = column.astype(kind)  # type: ignore[call-overload]
    return frame


class Columns(NamedTuple):
    """Scores of one run and of its base (None: it has none), each ``[items]``."""

    own: np.ndarray
    base: np.ndarray | None
    clusters: np.ndarray | None

    def take(self, rows: np.ndarray) -> Columns:
        """The same of the scored items among `rows`, a mask.

        With clusters only where items share them and they are many enough.
        """
        rows = rows & ~np.isnan(self.own if self.base is None else self.own - self.base)
        own, base, clusters = (None if column is None else column[rows] for column in self)
        if clusters is not None and not MIN_CLUSTERS <= len(np.unique(clusters)) < len(clusters):
            clusters = None
        assert own is not None
        return Columns(own, base, clusters)


def named_groups(run: Run) -> dict[str, list[str]]:
    """The names that the run was given as tasks, with their leaf tasks: ``{"mmlu": ["mmlu_anatomy", ...]}``.

    A file of tasks goes by its name without folder and ending.
    """
    return {
        Path(name).stem if name.endswith((".yaml", ".yml")) else name: tasks
        for name, tasks in run.result["groups"].items()
    }


def task_groups(run: Run, scores: Scores) -> dict[str, list[str]]:
    """The benchmarks of a run, each with its tasks; a task that several names cover belongs to the largest.

    Tasks with a scope (feedback) measure different things and belong to none.
    """
    named = named_groups(run)
    groups: dict[str, list[str]] = {}
    for task in scores.tasks:
        if task not in scores.scope:
            holding = [name for name, tasks in named.items() if task in tasks]
            groups.setdefault(max(holding, key=lambda name: len(named[name]), default=task), []).append(task)
    return groups


def _rows(
    scores: Scores, columns: Columns, groups: dict[str, list[str]], draws: int, seed: int
) -> list[dict[str, Any]]:
    """A row a task and a benchmark.

    Of several benchmarks also one over all items and one mean of benchmarks.
    """

    def of(tasks: list[str]) -> dict[str, Any]:
        return _statistics(columns.take(np.isin(scores.task, tasks)), draws, seed)

    parent = {task: name for name, tasks in groups.items() for task in tasks if len(tasks) > 1}
    rows = {
        task: {"task": task, "level": "task", "scope": scores.scope.get(task), "group": parent.get(task)}
        | of([task])
        for task in scores.tasks
    }
    level = "group" if len(groups) > 1 else "pooled"
    benchmarks = [
        {"task": name, "level": level} | of(tasks) if len(tasks) > 1 else rows[tasks[0]]
        for name, tasks in groups.items()
    ]
    summary = [row for row in benchmarks if row["level"] == level]
    if len(groups) > 1:
        summary.append({"task": POOLED, "level": "pooled"} | of(sum(groups.values(), [])))
        summary.append({"task": MACRO, "level": "macro"} | _macro(benchmarks))
    return [*rows.values(), *summary]


def _statistics(columns: Columns, draws: int, seed: int) -> dict[str, Any]:
    """Accuracy with its interval; against the base the paired difference, its tests and its power."""
    a, b, clusters = columns
    if clusters is None and statistics.is_binary(a):
        own = statistics.wilson(float(a.sum()), len(a))
    else:
        own = statistics.bootstrap(a, draws=draws, seed=seed, clusters=clusters)
    row: dict[str, Any] = {"n": len(a), "accuracy": own.value, "low": own.low, "high": own.high}
    if b is None:
        return row
    gap = statistics.paired_interval(a, b, draws=draws, seed=seed, clusters=clusters)
    fixed, broken = statistics.fixed_broken(a, b)
    binary = statistics.is_binary(a, b)
    p_mcnemar = float(statistics.mcnemar(fixed, broken)) if binary else math.nan
    exact = binary and clusters is None
    return row | {
        "difference": gap.value,
        "diff_low": gap.low,
        "diff_high": gap.high,
        "p_mcnemar": p_mcnemar,
        "p": p_mcnemar if exact else statistics.sign_flip(a - b, draws=draws, seed=seed, clusters=clusters),
        "test": "mcnemar" if exact else "sign-flip",
        "fixed": fixed,
        "broken": broken,
        "mde": statistics.smallest_gain(statistics.cluster_means(a - b, clusters), len(a), binary=binary),
    }


def _macro(benchmarks: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the benchmarks' rows; the items of two benchmarks are independent."""

    def mean(*columns: str) -> dict[str, float]:
        bounds = [statistics.Interval(*(row[name] for name in columns)) for row in benchmarks]
        return dict(zip(columns, statistics.mean_interval(bounds), strict=True))

    row = {"n": sum(row["n"] for row in benchmarks)} | mean("accuracy", "low", "high")
    return row | mean("difference", "diff_low", "diff_high") if "difference" in benchmarks[0] else row
