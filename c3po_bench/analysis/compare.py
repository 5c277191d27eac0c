"""Each run beside its base, item by item; or a refusal that says why the two must not be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from c3po_bench.analysis import paired
from c3po_bench.analysis.pairing import Partners, align, prompt_differs, run_labels
from c3po_bench.analysis.rows import MACRO, POOLED, Columns, statistics_rows, task_groups
from c3po_bench.analysis.scores import Scores, load_scores
from c3po_bench.errors import UserError

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

__all__ = ["COLUMNS", "MACRO", "POOLED", "compare", "headlines", "records"]

COLUMNS = {
    "arm": "str",
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


def compare(
    runs: Sequence[Run], *, draws: int = paired.DRAWS, seed: int = 0, refused: dict[str, str] | None = None
) -> pd.DataFrame:
    """Compare every run with the base run of the same comparison key, paired on (task, doc_id, doc_hash).

    Rows: one a run and task; one a benchmark of many tasks (facts, MMLU); with several benchmarks also one
    over all items and their mean. Holm's correction runs over all (run, benchmark) tests, over the runs for
    the row of all items, and over the tasks within benchmarks on their own. Intervals are 95%.

    Raises UserError with the reason where data, prompts or scoring differ; with `refused` (a dict) those runs
    are left out instead and their reasons put there by run id. ``settings.prompt_differs`` of a run permits
    other prompts (in-context feedback): the column of that name marks it.
    """
    partners, labels = Partners(runs), run_labels(runs)
    groups: dict[str, dict[str, list[str]]] = {}  # by base run: its benchmarks and their tasks
    kept: dict[str, Scores] = {}  # of bases, which many runs are compared with

    def scores_of(run: Run) -> Scores:
        if run.run_id not in kept:
            kept[run.run_id] = load_scores(run)
        return kept[run.run_id]

    rows: list[dict[str, Any]] = []
    for run in runs:
        try:
            scores = load_scores(run)
            base = partners.base(run)
            pair = align(run, base, scores, scores_of(base))
        except UserError as reason:
            if refused is None:
                raise
            refused[run.run_id] = str(reason)
            continue
        own_base = run.run_id == base.run_id
        columns = Columns(scores.correct, None if own_base else pair.base.correct, pair.base.cluster)
        common = {"label": labels[run.run_id]} | _common(run, base)
        if base.run_id not in groups:
            groups[base.run_id] = task_groups(base, scores)
        found = statistics_rows(scores, columns, groups[base.run_id], draws=draws, seed=seed)
        rows += [common | row for row in found]
    return typed(rows, COLUMNS)


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


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `frame` as dictionaries, for code that reads them one by one."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def headlines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of benchmarks and summaries, without the many tasks within a benchmark."""
    return [row for row in rows if not row.get("group")]


def typed(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    """The rows as a frame of these columns, with Holm's correction within the family of each level."""
    frame = pd.DataFrame(rows, columns=list(columns))
    families = [
        ("pooled" if r["level"] == "pooled" else "task" if r.get("group") else "benchmark") for r in rows
    ]
    for name in dict.fromkeys(families):
        family = [other == name for other in families]
        frame.loc[family, "p_holm"] = paired.holm(frame.loc[family, "p"].astype(float).to_numpy())
    for name, kind in columns.items():
        column = frame[name]
        text = kind == "str"
        frame[name] = (
            column.astype(object).where(column.notna(), "").astype("str") if text else column.astype(kind)
        )
    return frame
