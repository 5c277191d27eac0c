"""What feedback arms are measured by, scope by scope, against counts by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from c3po_bench.analysis.measures import _by_scope, _measured, feedback_measures, feedback_text
from c3po_bench.errors import UserError
from c3po_bench.feedback.measures import s_metrics
from tests import store_factory as factory


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return factory.feedback_store(tmp_path_factory.mktemp("feedback"), items=50)


def pick(frame, **wanted):
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    (row,) = frame.to_dict("records")
    return row


def scores(run, scope, name="correct"):
    return [row[name] for row in run.samples() if row["scope"] == scope]


def test_scores_and_overall_are_those_of_the_definition(runs):
    frame = feedback_measures(runs, draws=2000)
    dpo = next(run for run in runs if run.arm == "dpo")
    means = {scope: np.mean(scores(dpo, scope)) for scope in ("in", "near", "out")}
    for scope, mean in means.items():
        assert pick(frame, arm="dpo", scope=scope, measure="score")["mean"] == pytest.approx(mean)
    overall = pick(frame, arm="dpo", scope="overall", measure="score")
    assert overall["mean"] == pytest.approx((means["in"] + 1 - (means["near"] + means["out"]) / 2) / 2)
    assert overall["low"] < overall["mean"] < overall["high"]


def test_drift_is_compared_prompt_by_prompt_with_any_arm(runs):
    frame = feedback_measures(runs, against="dpo", draws=2000)
    c3po, dpo = (next(run for run in runs if run.arm == arm) for arm in ("c3po", "dpo"))
    row = pick(frame, arm="c3po", scope="near", measure="drift")
    gap = np.array(scores(c3po, "near", "drift")) - np.array(scores(dpo, "near", "drift"))
    assert row["difference"] == pytest.approx(gap.mean()) and row["diff_low"] < gap.mean() < row["diff_high"]
    assert row["diff_high"] - row["diff_low"] == pytest.approx(3.92 * gap.std() / 50**0.5, rel=0.1)
    assert pick(frame, arm="dpo", scope="near", measure="drift")["difference"] == 0


def test_each_feedback_on_its_own(runs):
    frame = feedback_measures(runs, pieces=True, draws=200)
    assert set(frame["feedback"]) == {"", *(f"emoji-{i}" for i in range(5))}
    assert pick(frame, arm="c3po", scope="in", measure="score", feedback="emoji-3")["n"] == 10


def test_console_table_lists_every_arm_and_scope(runs):
    text = feedback_text(runs)
    assert text.count("overall") == 4 and text.count("near scope") == 4 and "C3PO" in text


def test_a_judgement_that_could_not_be_had_is_left_out():
    """As in S_in itself, and out of scope, where a zero would pass for no leak."""
    scores = {"in": [1.0, 1.0, None, None], "out": [-1.0, None]}
    rows = [
        {"task": scope, "doc_id": i, "scope": scope, "score": score, "correct": abs(score or 0.0)}
        for scope, values in scores.items()
        for i, score in enumerate(values)
    ]
    found = _measured(_by_scope(SimpleNamespace(samples=lambda: rows)), {}, draws=50, seed=0)
    assert {row["scope"]: (row["n"], row["mean"]) for row in found} == {"in": (2, 1.0), "out": (1, 1.0)}


def test_feedbacks_are_drawn_together_in_all_scopes():
    """Where a piece leaks exactly as much as it is followed, S_overall is a constant, and so is every draw of it."""

    def bounds(scope, leak):
        own = {
            name: {
                (name, i): {"score": float(leak(v) if name != "in" else v), "feedback_id": f"p{i}"}
                for i, v in enumerate(pieces)
            }
            for name in ("in", "near", "out")
        }
        row = next(row for row in _measured(own, {}, draws=500, seed=0) if row["scope"] == scope)
        return [row[k] for k in ("low", "mean", "high")]

    pieces = [i * 7 % 4 / 3 for i in range(20)]
    assert bounds("overall", lambda v: v) == pytest.approx([0.5] * 3)
    assert bounds("overall", lambda v: 1 - v) == pytest.approx(
        bounds("in", lambda v: 1 - v)
    )  # S_overall is S_in then


def test_a_gap_of_the_other_arm_costs_one_prompt_of_the_difference():
    def rows(values):
        return {"in": {("in", i): {"score": value, "feedback_id": "p"} for i, value in enumerate(values)}}

    (row,) = _measured(rows([1.0, 1.0, 0.0]), rows([0.0, None, 0.0]), draws=50, seed=0)
    assert (row["n"], row["difference"]) == (3, 0.5)


def test_a_run_without_feedback_has_nothing_to_measure():
    assert _measured({}, {}, draws=5, seed=0) == []


def uneven(tmp_path, arms=("base", "c3po")):
    """Thirty prompts of a feedback that is followed, ten of one that is not."""
    runs = []
    for arm in arms:
        rows = []
        for scope in ("in", "near", "out"):
            for i, row in enumerate(factory.feedback_rows(arm, scope, 40)):
                score = float(arm != "base" and i < 30 and scope == "in")
                rows.append(row | {"feedback_id": "a" if i < 30 else "b", "score": score, "correct": score})
        runs.append(factory.write_run(tmp_path, arm, rows, backend="feedback"))
    return runs


def test_s_is_the_mean_over_feedbacks_as_in_the_result(tmp_path):
    runs = uneven(tmp_path)
    frame = feedback_measures(runs, draws=1000)
    told = s_metrics(runs[1].samples())
    assert told["S_in"] == 0.5
    for scope in ("in", "near", "out", "overall"):
        row = pick(frame, arm="c3po", scope=scope, measure="score")
        assert row["mean"] == pytest.approx(told[f"S_{scope}"])
    row = pick(frame, arm="c3po", scope="in", measure="score")
    assert row["difference"] == pytest.approx(0.5) and row["low"] < 0.5 < row["high"]
    overall = pick(frame, arm="c3po", scope="overall", measure="score")
    assert overall["n"] == 120 and overall["difference"] == pytest.approx(told["S_overall"] - 0.5)
    assert overall["diff_low"] < overall["difference"] < overall["diff_high"]
    assert (
        pick(feedback_measures(runs, draws=1000, seed=1), arm="c3po", scope="in", measure="score")["low"]
        != row["low"]
    )
    assert pick(frame, arm="c3po", scope="in", measure="score")["n"] == 40


def test_answers_to_other_documents_are_not_compared(tmp_path):
    runs = uneven(tmp_path)
    path = runs[1].path / "samples.jsonl"
    path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "x'))
    frame = feedback_measures(runs, draws=100)
    assert frame.loc[frame["arm"] == "c3po", "difference"].isna().all()


def test_of_several_runs_one_is_named(tmp_path):
    runs = uneven(tmp_path)
    for beta in (0.1, 0.5):
        rows = [row | {"score": beta} for row in runs[1].samples()]
        runs.append(factory.write_run(tmp_path, "dpo", rows, backend="feedback", settings={"beta": beta}))
    with pytest.raises(UserError, match="2 runs of arm dpo could be meant"):
        feedback_measures(runs, against="dpo", draws=100)
    frame = feedback_measures(runs, against=runs[-1].run_id, draws=100)
    row = pick(frame, label="c3po", scope="in", measure="score")
    assert row["difference"] == pytest.approx(0.5 - 0.5)
    assert pick(frame, run_id=runs[-2].run_id, scope="in", measure="score")["difference"] == pytest.approx(
        0.1 - 0.5
    )
