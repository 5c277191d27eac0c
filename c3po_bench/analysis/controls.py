"""Each arm beside the controls that ran with it, item by item.

Does it gain more than what lacks one ingredient?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from c3po_bench.analysis import paired
from c3po_bench.analysis.compare import headlines, typed
from c3po_bench.analysis.pairing import Partners, align, run_labels
from c3po_bench.analysis.rows import Columns, statistics_rows, task_groups
from c3po_bench.analysis.scores import load_scores
from c3po_bench.errors import UserError

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

COLUMNS = {
    "arm": "str",
    "label": "str",
    "run_id": "str",
    "control": "str",
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


def compare_controls(
    runs: Sequence[Run], *, draws: int = paired.DRAWS, seed: int = 0, refused: dict[str, str] | None = None
) -> pd.DataFrame:
    """Compare every run with each of its controls.

    As `compare` does with its base, a row a benchmark and summary.

    Holm's correction runs over all (run, control, benchmark) tests, and over (run, control) for the row of
    all items. Raises UserError where items differ; with `refused` (a dict) its reason is put there instead.
    """
    partners, labels = Partners(runs), run_labels(runs)
    rows: list[dict[str, Any]] = []
    for run, control in [(arm, control) for arm in runs for control in partners.controls(arm)]:
        try:
            scores = load_scores(run)
            theirs = align(run, control, scores, load_scores(control)).base.correct
        except UserError as reason:
            if refused is None:
                raise
            refused[f"{run.run_id} with {control.run_id}"] = str(reason)
            continue
        common = {"arm": run.arm, "label": labels[run.run_id], "run_id": run.run_id}
        common |= {"control": control.arm, "control_run_id": control.run_id}
        columns = Columns(scores.correct, theirs, scores.cluster)
        found = statistics_rows(scores, columns, task_groups(run, scores), draws=draws, seed=seed)
        rows += [common | row for row in headlines(found)]
    return typed(rows, COLUMNS)
