"""Each run beside its base and its controls, item by item, or the reason why they must not be compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from c3po_bench.analysis import power, statistics
from c3po_bench.analysis.arms import BASE, arm_of, columns_of, outdated_of, prompt_differs
from c3po_bench.analysis.footing import add_no_verdict, chance_of, mostly
from c3po_bench.analysis.frames import COLUMNS, CONTROL_COLUMNS, MACRO, POOLED, headlines, typed
from c3po_bench.analysis.gold import gold_columns
from c3po_bench.analysis.movement import movement_columns
from c3po_bench.analysis.noise import add_noise
from c3po_bench.analysis.pairing import Partners, check_comparable, run_labels
from c3po_bench.analysis.scores import Scores, load_scores, many_clusters
from c3po_bench.analysis.seeds import merged, repeated
from c3po_bench.errors import DamagedFile, UserError
from c3po_bench.store.reader import Run, load_experiments


def options_of(results_dir: str | Path) -> dict[str, Any]:
    """Margin and primary comparison, as the newest experiment of a store fixed them; for `compare`."""
    experiments = load_experiments(results_dir)
    fixed = experiments[-1]["config"].get("analysis", {}) if experiments else {}
    return {"margin": fixed.get("margin", statistics.MARGIN), "primary": fixed.get("primary")}


def trained_on_seeds(results_dir: str | Path) -> bool:
    """Whether the newest experiment of a store asked for training seeds, so that arms come home as one row."""
    experiments = load_experiments(results_dir)
    return bool(experiments and experiments[-1]["config"].get("seeds"))


def compare(
    runs: Sequence[Run],
    *,
    margin: float = statistics.MARGIN,
    primary: str | None = None,
    draws: int = statistics.DRAWS,
    seed: int = 0,
    refused: dict[str, str] | None = None,
    one_row: bool = False,
    against: str = BASE,
) -> pd.DataFrame:
    """Compare every run with the base run of the same comparison key, paired on (task, doc_id, doc_hash).

    Each run has a row for each of its tasks and one for each benchmark of many tasks (facts, MMLU). With
    several benchmarks it also has a row over all items and one for the mean of benchmarks. Intervals are 95%.
    Holm's correction runs over all (run, benchmark) tests, over the runs for the row of all items, and over
    the tasks within benchmarks on their own; step-down max-T over those of one base, times the number of
    bases. A run whose ``settings.prompt_differs`` is true may have other prompts than its base (in-context
    feedback); the column of that name marks it.

    Args:
        runs: of one store.
        margin: within which a difference counts as none, fixed before the data were seen.
        primary: ARM or ARM:TASK, the comparison that was named beforehand: tested first, and the others only
            where it holds.
        draws: sign flips.
        seed: of the flips.
        refused: where given, runs that cannot be compared are left out, and their reasons put here by run id.
        one_row: whether runs that differ in their training seed alone are one row: see `seeds.merged`.
        against: an arm or a run id; differences are then to that run instead of the base.

    Raises:
        UserError: where no run is `against`, or several may be meant; without `refused` also where a run's
            data, prompts or scoring differ from its base's.
    """
    partners, labels = Partners(runs), run_labels(runs)
    arms = Counter(run.arm for run in runs)
    halves: dict[str, NDArray[Any]] = {}  # by base run: which half of the items each belongs to
    groups: dict[str, dict[str, list[str]]] = {}  # by base run: its benchmarks and their tasks
    base_scores: dict[str, Scores] = {}  # many runs are compared with one base
    rows: list[dict[str, Any]] = []
    for run in runs:
        with _refusal(refused, run.run_id):
            scores, base = load_scores(run), partners.against(run, against)
            if base.run_id not in base_scores:
                base_scores[base.run_id] = load_scores(base)
            others = base_scores[base.run_id]
            check_comparable(run, base, scores, others)
            if base.run_id not in groups:
                groups[base.run_id] = task_groups(base, scores)
            columns = Columns(
                scores.correct,
                None if run is base else others.correct,
                others.cluster,
                gold=scores.p_gold,
                gold_base=None if run is base else others.p_gold,
                options=scores.options,
                tasks=scores.task,
            )
            if arms[run.arm] > 1:
                if base.run_id not in halves:
                    halves[base.run_id] = np.array(
                        [int(name[-1:] or "0", 36) % 2 for name in others.doc_hash]
                    )
                columns = columns._replace(odd=halves[base.run_id])
            common = _facts(run, base, labels[run.run_id])
            made = _rows(scores, columns, groups[base.run_id], Draws(margin, draws, seed))
            rows += [common | row for row in made]
    if one_row:
        rows = merged(rows, repeated(runs), margin)
    add_noise(rows)
    add_no_verdict(rows)
    return typed(rows, COLUMNS, primary=primary, draws=draws, seed=seed)


def _facts(run: Run, base: Run, label: str) -> dict[str, Any]:
    """What all rows of a run have in common: which run, beside which, what it cost and how far it moved."""
    facts = columns_of(run) | cost_columns(run) | movement_columns(run)
    facts |= {"label": label, "run_id": run.run_id, "base_run_id": base.run_id}
    facts |= {name: run.result[name] for name in ("backend", "model")}
    return facts | {
        "tuning_edges": ", ".join(run.result.get("tuning", {}).get("edges", ())),
        "prompt_differs": prompt_differs(run),
        "outdated": outdated_of(run, base),
        "routing_ties": run.result["counts"].get("routing_ties"),
    }


def compare_controls(
    runs: Sequence[Run],
    *,
    draws: int = statistics.DRAWS,
    seed: int = 0,
    refused: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Compare every run with each of its controls, as `compare` does with its base.

    There is a row for each benchmark and summary. Holm's correction runs over all (run, control, benchmark)
    tests, and over (run, control) for the row of all items. `p_half` is of the contrast c - a / 2 against 0,
    one sided, of the gains of control and arm over base: below 0.05 the control has more than half of the
    arm's gain. Raises UserError where items differ; with `refused` (a dict) its reason is put there instead.
    """
    partners, labels = Partners(runs), run_labels(runs)
    rows: list[dict[str, Any]] = []
    for run, control in [(arm, control) for arm in runs for control in partners.controls(arm)]:
        with _refusal(refused, f"{run.run_id} with {control.run_id}"):
            scores, others = load_scores(run), load_scores(control)
            check_comparable(run, control, scores, others)
            facts, base = arm_of(control), partners.beside(run, BASE)
            half = None
            if base is not None:
                floor = load_scores(base)
                check_comparable(run, base, scores, floor)
                half = others.correct - (scores.correct + floor.correct) / 2
            common = {"arm": run.arm, "label": labels[run.run_id], "run_id": run.run_id}
            common |= {"control": control.arm, "control_run_id": control.run_id}
            common |= {"change": facts.change, "not_due_to": facts.not_due_to}
            common |= {"outdated": outdated_of(run, control)}
            columns = Columns(scores.correct, others.correct, scores.cluster, half=half)
            made = _rows(scores, columns, task_groups(run, scores), Draws(math.nan, draws, seed))
            rows += [common | row for row in headlines(made)]
    return typed(rows, CONTROL_COLUMNS, draws=draws, seed=seed)


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


class Draws(NamedTuple):
    """What the statistics of rows are asked for: the margin of sameness, and flips with their seed."""

    margin: float
    draws: int
    seed: int


class Columns(NamedTuple):
    """Scores of one run and of its base (None: it has none), each ``[items]``, and what else items have."""

    own: np.ndarray
    base: np.ndarray | None
    clusters: np.ndarray | None
    odd: np.ndarray | None = None  # 1 where the item's hash is odd, 0 where it is even
    half: np.ndarray | None = None  # the control's gain less half of the arm's
    gold: np.ndarray | None = None  # the right choice's probability; NaN where the record has none
    gold_base: np.ndarray | None = None
    tasks: np.ndarray | None = None
    options: np.ndarray | None = None  # how many choices: 0 for written answers, NaN where nobody knows

    def take(self, rows: np.ndarray) -> Columns:
        """The same of the scored items among `rows`, a mask.

        With clusters only where items share them and they are many enough.
        """
        rows = rows & ~np.isnan(self.own if self.base is None else self.own - self.base)
        own, base, clusters, *others = (None if column is None else column[rows] for column in self)
        assert own is not None
        return Columns(own, base, many_clusters(clusters), *others)


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
    scores: Scores, columns: Columns, groups: dict[str, list[str]], asked: Draws
) -> list[dict[str, Any]]:
    """A row a task and a benchmark.

    Of several benchmarks also one over all items and one mean of benchmarks.
    """
    if columns.base is not None:
        gaps, shared = np.nan_to_num(columns.own - columns.base), many_clusters(columns.clusters)

    def of(tasks: list[str]) -> dict[str, Any]:
        mask = np.isin(scores.task, tasks)
        row = _statistics(columns.take(mask), asked, signed=scores.scope.get(tasks[0]) == "in")
        if columns.base is not None:
            row["flips"] = statistics.cluster_sums(gaps * mask, shared)[0].astype(np.float32)
        return row

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
        pooled = {"task": POOLED, "level": "pooled", "mostly": mostly(groups, scores.task)}
        summary.append(pooled | of(sum(groups.values(), [])))
        summary.append({"task": MACRO, "level": "macro"} | _macro(benchmarks))
    return [*rows.values(), *summary]


def _statistics(columns: Columns, asked: Draws, *, signed: bool) -> dict[str, Any]:
    """Accuracy with its interval; against the base the paired difference, its tests and its power."""
    a, b, clusters, odd, half, gold, gold_base, tasks, options = columns
    own = statistics.score_interval(a, clusters, signed=signed)
    row: dict[str, Any] = {"n": len(a), "accuracy": own.value, "low": own.low, "high": own.high}
    row |= {"over": "items" if clusters is None else "clusters"}
    row |= {"groups": len(a) if clusters is None else len(np.unique(clusters))}
    if gold is not None and options is not None and tasks is not None:
        row["chance"] = chance_of(a, options, tasks)
        row |= gold_columns(gold, gold_base, options, clusters, asked.draws, asked.seed)
    if b is None or not len(a):  # none that was judged under both arms: there is nothing to test
        return row
    gap = statistics.score_interval(a - b, clusters, signed=True)
    fixed, broken = statistics.fixed_broken(a, b)
    binary = statistics.is_ternary(a, b, a - b)
    paired = binary and clusters is None
    p = (
        statistics.sign_flip(a - b, draws=asked.draws, seed=asked.seed, clusters=clusters)
        if not paired
        else 0.0
    )
    spread = power.spread_of(statistics.cluster_means(a - b, clusters))
    row |= {
        "difference": gap.value,
        "diff_low": gap.low,
        "diff_high": gap.high,
        "p_mcnemar": float(statistics.mcnemar(fixed, broken)) if binary else math.nan,
        "p": float(statistics.mid_p(fixed, broken)) if paired else p,
        "test": "mcnemar" if paired else "sign-flip",
        "fixed": fixed,
        "broken": broken,
        "spread": {
            "spread": spread,
            "items": len(a),
            "binary": binary,
            "clustered": clusters is not None,
        },
        "margin": asked.margin,
        "p_same": statistics.same_p(a - b, asked.margin, clusters)
        if asked.margin == asked.margin
        else math.nan,
    }
    if half is not None:
        row["p_half"] = statistics.t_test(half, clusters, above=0.0)
    if odd is not None:
        row["even"] = float((a - b)[odd == 0].mean()) if (odd == 0).any() else math.nan
        rest = None if clusters is None else clusters[odd == 1]
        rest_gap = statistics.score_interval((a - b)[odd == 1], rest, signed=True)
        row |= dict(zip(("odd", "odd_low", "odd_high"), rest_gap, strict=True))
    return row


def _macro(benchmarks: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the benchmarks' rows; the items of two benchmarks are independent."""

    def mean(*columns: str) -> dict[str, float]:
        bounds = [statistics.Interval(*(row[name] for name in columns)) for row in benchmarks]
        return dict(zip(columns, statistics.mean_interval(bounds), strict=True))

    over = " and ".join(dict.fromkeys(row["over"] for row in benchmarks))
    row = {"n": sum(row["n"] for row in benchmarks), "over": over} | mean("accuracy", "low", "high")
    if all("chance" in part for part in benchmarks):
        row["chance"] = fmean(part["chance"] for part in benchmarks)
    if all("p_gold" in part for part in benchmarks):
        row["p_gold"] = fmean(part["p_gold"] for part in benchmarks)
    if all("gold_difference" in part for part in benchmarks):
        row |= mean("gold_difference", "gold_low", "gold_high")
    compared = all("difference" in each for each in benchmarks)
    return row | mean("difference", "diff_low", "diff_high") if compared else row
