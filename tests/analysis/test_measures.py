"""What feedback arms are measured by, scope by scope, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from c3po_bench.analysis.measures import feedback_measures, feedback_text
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
