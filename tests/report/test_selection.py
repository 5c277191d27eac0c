"""Which runs of a large store stand side by side."""

from __future__ import annotations

import numpy as np

from c3po_bench.analysis.compare import compare
from c3po_bench.report.selection import MOST_RUNS, select
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory


def moved(arm, follows, leaks):
    """Rows of an arm that follows the feedback on so many of 20 prompts in scope, and on as many elsewhere as it leaks."""
    rows = [row for scope in ("in", "near", "out") for row in factory.feedback_rows(arm, scope, 20)]
    for row in rows:
        row["correct"] = row["score"] = int(row["doc_id"] < (follows if row["scope"] == "in" else leaks))
    return rows


def feedback(root, arms, runs=13):
    """Of each arm some runs, each following the feedback on one prompt more; its first leaks most."""
    factory.write_run(root, "base", moved("base", 0, 0), backend="feedback", key="feedback")
    for arm in arms:
        for i in range(runs):
            rows = moved(arm, 3 + i, 19 if i == 0 else 0)
            factory.write_run(root, arm, rows, backend="feedback", key="feedback", settings={"beta": i})


def chosen(root):
    runs = load_runs(root)
    selection = select(runs, compare(runs, draws=50))
    assert set(selection.rows["run_id"]) == {run.run_id for run in selection.runs}
    return selection, sorted(
        (run.arm, run.result["settings"].get("beta")) for run in selection.runs if run.arm != "base"
    )


def test_feedback_is_ranked_by_what_is_followed_not_by_what_leaks(tmp_path):
    feedback(tmp_path, ("c3po", "dpo"))
    selection, found = chosen(tmp_path)
    assert found == [(arm, beta) for arm in ("c3po", "dpo") for beta in (10, 11, 12)]
    assert "in scope" in selection.note and f"{len(selection.runs)} of 27 runs" in selection.note


def test_runs_that_no_judge_scored_come_last(tmp_path):
    feedback(tmp_path, ("c3po", "dpo"))
    rows = [row | {"score": None} for row in moved("dpo", 20, 0)]
    factory.write_run(tmp_path, "dpo", rows, backend="feedback", key="feedback", settings={"beta": 99})
    assert [beta for arm, beta in chosen(tmp_path)[1] if arm == "dpo"] == [10, 11, 12]


def test_feedback_beside_a_sweep_of_tasks_is_shown_too(tmp_path):
    feedback(tmp_path, ("c3po",), runs=1)
    base = factory.scores_of("base", 20, 0.5)
    factory.write_run(tmp_path, "base", factory.sample_rows("base", "arc", base, details=False))
    for k in range(25):
        factory.write_run(
            tmp_path, "ngd", factory.sample_rows("ngd", "arc", base, details=False), settings={"beta": k}
        )
    selection, found = chosen(tmp_path)
    assert [arm for arm, _ in found] == ["c3po", "ngd", "ngd", "ngd"]
    assert sum(run.arm == "base" for run in selection.runs) == 2


def test_many_bases_leave_room_for_the_arms_beside_them(tmp_path):
    scores = np.array([0, 1] * 5)
    for i in range(4 * MOST_RUNS + 4):
        rows = factory.sample_rows("base", "arc", scores, details=False)
        last = factory.write_run(tmp_path, "base", rows, key=f"key {i}", settings={})
    ngd = factory.sample_rows("ngd", "arc", scores, details=False)
    factory.write_run(tmp_path, "ngd", ngd, key=last.result["comparison_key"])
    selection, _ = chosen(tmp_path)
    assert len(selection.runs) == 4 * MOST_RUNS
    assert {"ngd"} < {run.arm for run in selection.runs} and last.run_id in {
        run.run_id for run in selection.runs
    }
