"""Judges that err: their rates against rules, shares corrected for them, and means by labels of a part of the answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from c3po_bench.analysis.judging import (
    Rate,
    judge_measures,
    newest_labels,
    prediction_powered,
    read_labels,
    rogan_gladen,
)
from c3po_bench.analysis.tables import judge_table
from c3po_bench.errors import UserError
from c3po_bench.report.tables import judge_rows
from tests import store_factory as factory


def test_a_judged_share_to_the_digit():
    found = rogan_gladen(0.4, 1000, Rate(0.9, 200), Rate(0.7, 200))
    assert found == pytest.approx((0.166666667, 0.056350725, 0.262733026), abs=1e-9)


def test_a_difference_is_smaller_in_the_eyes_of_a_judge_that_errs():
    sensitivity, specificity = Rate(0.9, 10**9), Rate(0.7, 10**9)
    gap = [rogan_gladen(share, 10**9, sensitivity, specificity).value for share in (0.5, 0.4)]
    assert gap[0] - gap[1] == pytest.approx(0.166666667)


def test_a_judge_no_better_than_chance_says_nothing():
    assert np.isnan(rogan_gladen(0.4, 100, Rate(0.5, 50), Rate(0.5, 50)).value)
    assert np.isnan(rogan_gladen(0.4, 100, Rate(float("nan"), 0), Rate(0.9, 50)).value)
    assert rogan_gladen(0.0, 100, Rate(0.9, 50), Rate(0.9, 50)).value == 0.0, "no share is below 0"


def test_a_judge_that_a_few_labels_leave_no_better_than_chance_bounds_nothing():
    assert rogan_gladen(1.0, 50, Rate(0.9, 10), Rate(0.15, 1000)) == (1.0, 0.0, 1.0)
    assert rogan_gladen(0.0, 50, Rate(0.9, 10), Rate(0.15, 1000)) == (0.0, 0.0, 1.0)


def test_the_newest_experiment_names_the_labels(tmp_path):
    runs = factory.store(tmp_path / "store", base=[0, 1])
    for number, name in enumerate(("old", "new")):
        labels = [{"feedback_id": name, "prompt": "p", "response": "r", "score": number}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
        factory.write_experiment(tmp_path / "store", name, runs)
        for path in (tmp_path / "store" / "experiments").glob(f"{name}-*.json"):
            record = json.loads(path.read_text())
            record["config"] |= {"feedback": {"judge": {"labels": str(tmp_path / f"{name}.jsonl")}}}
            path.write_text(json.dumps(record | {"created": f"2026-11-2{number}T12:00:00"}))
    assert newest_labels(tmp_path / "store") == {("new", "p", "r"): 1.0}


LABELS, JUDGED = ([int(c) for c in text] for text in ("1011001011", "1010011011"))
REST = [int(c) for c in "110101101011001101110101101101"]


def test_labels_and_a_judge_together_to_the_digit():
    untuned = prediction_powered(LABELS, JUDGED, REST, tuned=False)
    assert (untuned.value, (untuned.high - untuned.low) / 3.919928) == pytest.approx(
        (0.633333, 0.166556), abs=1e-6
    )
    tuned = prediction_powered(LABELS, JUDGED, REST)
    assert tuned.value == pytest.approx(0.614560, abs=1e-6)
    assert tuned[1:] == pytest.approx((0.352880581, 0.876239419), abs=1e-8)
    alone = prediction_powered(LABELS, JUDGED, [])
    assert (alone.value, (alone.high - alone.low) / 3.919928) == pytest.approx((0.6, 0.154919334), abs=1e-6)


def test_labels_that_do_not_vary_bound_nothing():
    assert prediction_powered([1, 1, 1], [1, 1, 1], [1, 1]).value == 1.0
    assert np.isnan(prediction_powered([1, 1, 1], [1, 1, 1], [1, 1]).low)


def test_two_labels_are_the_fewest_that_bound_anything():
    two = prediction_powered([0, 1], [0, 1], [1, 0])
    assert two.value == 0.5 and two.low < 0.5 < two.high
    assert np.isnan(prediction_powered([1], [1], [1, 0]).value)


def test_answers_that_were_not_scored_are_no_cases(tmp_path):
    rows = factory.feedback_rows("c3po", "in", 6)
    for row, score in zip(rows, [1.0, 1.0, 0.0, 0.0, None, None], strict=True):
        row |= {"score": score, "rule_score": 1.0}
    run = factory.write_run(tmp_path, "c3po", rows, backend="feedback")
    (measures,) = judge_measures([run]).to_dict("records")
    assert (measures["n"], measures["judged"]) == (4, 0.5)


def test_intervals_of_both_kinds_cover_the_truth():
    rng, held = np.random.default_rng(5), np.zeros(2)
    for _ in range(600):
        truth = rng.random(400) < 0.3
        judged = np.where(truth, rng.random(400) < 0.85, rng.random(400) < 0.2)
        rules = rng.random(120) < 0.5
        seen = np.where(rules, rng.random(120) < 0.85, rng.random(120) < 0.2)
        rates = Rate(seen[rules].mean(), int(rules.sum())), Rate(1 - seen[~rules].mean(), int((~rules).sum()))
        intervals = (
            rogan_gladen(judged.mean(), 400, *rates),
            prediction_powered(truth[:80], judged[:80], judged[80:]),
        )
        held += [low <= 0.3 <= high for _, low, high in intervals]
    assert (held / 600 >= 0.93).all()


def test_a_judge_with_planted_errors(tmp_path):
    """It misses two of ten followers, and takes three of twenty answers that follow nothing for followers."""
    truth = np.repeat([1.0, 0.0], [10, 20])
    judged = truth.copy()
    judged[:2], judged[10:13] = 0.0, 1.0
    rows = factory.feedback_rows("c3po", "in", 30)
    for row, score, rule in zip(rows, judged, truth, strict=True):
        row |= {"score": score, "correct": score, "rule_score": rule}
    kept = ("feedback_id", "prompt", "response")
    people = [
        {name: row[name] for name in kept} | {"score": s}
        for row, s in zip(rows[::2], truth[::2], strict=True)
    ]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))
    run = factory.write_run(tmp_path, "c3po", rows, backend="feedback")
    (row,) = judge_measures([run], read_labels(tmp_path / "people.jsonl")).to_dict("records")
    assert (row["sensitivity"], row["specificity"]) == pytest.approx((0.8, 17 / 20))
    assert row["judged"] == pytest.approx(11 / 30) and row["corrected"] == pytest.approx(truth.mean())
    assert row["corrected_low"] < truth.mean() < row["corrected_high"]
    assert row["labelled"] == 15 and row["estimate_low"] < truth.mean() < row["estimate_high"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"feedback_id": "a", "prompt": "p", "response": "r", "score": 2}',
            "row 1: score 2: a number from -1 to 1",
        ),
        ('{"feedback_id": "a", "prompt": "p", "score": 1}', "row 1: no 'response'"),
        ("not JSON", "row 1: no JSON"),
        ("", "is empty"),
    ],
)
def test_labels_that_are_none(text, message, tmp_path):
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "labels.jsonl")
    with pytest.raises(UserError, match="no such file"):
        read_labels(tmp_path / "nowhere.jsonl")


def test_the_judge_stands_in_console_and_report(tmp_path):
    runs = factory.feedback_store(tmp_path)
    for run in runs[1:]:
        factory.edit(
            run, lambda row: row.update(rule_score=row["score"] if row["doc_id"] % 5 else 1 - row["score"])
        )
    frame = judge_measures(runs)
    assert judge_table(frame).row_count == 9 == len(judge_rows(frame))
    assert judge_rows(frame)[0].cells[3].text == f"{frame['judged'][0]:.2f}"


def test_scores_of_rules_need_no_calibration(tmp_path):
    assert judge_measures(factory.feedback_store(tmp_path)).empty
