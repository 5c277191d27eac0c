"""Headroom by hand: shares, whom they are about, and the sentence that the rule gives."""

from __future__ import annotations

import math

import pytest

from c3po_bench.analysis.headroom import sentences, summarize
from c3po_bench.analysis.verdict import verdict_sentences
from tests.analysis.test_verdict import frame_of, row


def item(base=0, reached=(1, 1, 1), best=(1.0, -1.0, -1.0), right=2, average=0, **more):
    """A row of three options, the first of which is true; four routes."""
    return {
        "gold": 0,
        "options": 3,
        "base": base,
        "reached": [bool(each) for each in reached],
        "best": {"model rule": list(best)},
        "right": {"model rule": right},
        "average": {"model rule": average},
        "auc": {"model rule": 0.5},
        "mass": 1.0,
        "routes": 4,
        "known": {},
    } | more


def test_shares_by_hand():
    found = summarize(
        [
            item(base=0, reached=(1, 0, 0), best=(2.0, -1.0, 1.0)),
            item(base=1, reached=(1, 1, 0), best=(0.5, 1.0, -1.0), average=1, right=1),
            item(base=2, reached=(0, 1, 1), best=(-0.5, 0.2, 1.0), average=2, right=0),
            item(base=0, reached=(1, 1, 1), best=(1.0, 0.5, 0.2)),
        ]
    )
    assert found["items"] == 4 and found["items_wrong"] == 2 and found["chance"] == pytest.approx(1 / 3)
    assert found["base"] == 0.5 and found["h_true"] == 0.75
    assert found["h_wrong"] == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert found["h_true_when_wrong"] == 0.5
    assert found["h_wrong_when_wrong"] == 0.5, "0 towards option 2, which base 1 is not; 1 towards option 1"
    assert found["h_wrong_when_right"] == 0.5
    assert found["p_true"] == 0.75 and found["p_wrong"] == 0.75 and found["p_any"] == 1.0
    assert (
        found["s"] == 0.5 and found["route_average"] == 0.5 and found["routes_right"] == pytest.approx(5 / 16)
    )
    assert found["s_over_base"] == 0 and found["p_true_over_base"] == 0.25
    # one route: the mean share; all four: whether any is right
    assert found["pass_at"] == {"1": pytest.approx(5 / 16), "4": 0.75}
    for name in ("base", "h_true", "h_wrong", "s", "p_true", "p_wrong", "p_any", "route_average"):
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high
    for name in ("h_true_when_wrong", "h_wrong_when_wrong", "delta_h", "s_over_base"):
        assert f"{name}_interval" in found
    assert found["known_ceiling"] is None and not found["oracle_is_a_measure"]


def test_two_options_have_no_other_wrong_one():
    two = item(base=1, reached=(1, 1), best=(1.0, -1.0)) | {"options": 2}
    found = summarize([two, two | {"base": 0}])
    assert (
        found["h_wrong_when_wrong"] is None and found["h_wrong"] == 1.0 and found["h_wrong_when_right"] == 1.0
    )
    assert "where base is wrong" not in " ".join(sentences(found))


def test_the_best_arm_that_knows_a_route_is_the_known_ceiling():
    rows = [
        item(base=1, known={"good": True, "bad": False, "some": True}),
        item(base=1, known={"good": True, "bad": False}),
    ]
    found = summarize(rows)
    assert found["known_ceiling_arm"] == "good" and found["known_ceiling"] == 1.0
    assert "The known ceiling, good: 100.0%" in " ".join(sentences(found))


ANY = {"reached": (1, 1, 1)}
TRUTH = {"reached": (1, 0, 0)}
CASES = {
    "stop": ([item(**TRUTH)] * 100 + [item(base=1, best=(-1, 1, -1), average=1)] * 100, "Stop.", True),
    "any": (
        [
            item(base=i % 2, best=(1.0, 2.0, 0.5) if i % 2 else (2.0, 1.0, 0.5), average=i % 2, **ANY)
            for i in range(200)
        ],
        "must beat shuffled references",
        False,
    ),
    "truth": (
        [item(base=i % 2, best=(2.0, 1.0, -1.0), **TRUTH) for i in range(200)],
        "Averaging routes or voting",
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rule(case):
    rows, words, measure = CASES[case]
    if case == "stop":
        rows, measure = rows[:100] + [row | {"reached": [True] * 3} for row in rows[100:]], False
    found = summarize(rows)
    assert words in sentences(found)[-1]
    assert found["oracle_is_a_measure"] == measure
    no_measure = "the oracle's gap is no measure" in " ".join(sentences(found))
    assert no_measure != measure


def test_few_items_leave_it_open():
    rows = [
        item(base=1, best=(1.0, 2.0, 0.5), average=1),
        *[item(base=1, best=(-1.0, 1.0, -1.0), average=1)] * 9,
    ]
    assert "leave open" in sentences(summarize(rows))[-1]


def test_a_share_of_the_oracles_gap_is_told_only_where_it_means_something():
    frame = frame_of(
        row("ngd", 0.1, 0.05),
        row("oracle", 0.2, 0.05),
    )
    assert not [s for s in verdict_sentences(frame) if "gap" in s]
    found = {"oracle_arm": "oracle", "oracle_is_a_measure": True, "h_true": 0.9, "h_wrong": 0.5}
    found |= {"h_true_when_wrong": 0.9, "h_wrong_when_wrong": 0.4}
    assert "NGD closes 0.50 of the oracle's gap." in verdict_sentences(frame, headroom=found)
    found["oracle_is_a_measure"] = False
    last = verdict_sentences(frame, headroom=found)[-1]
    assert (
        last.startswith("The oracle's gap is no measure of a method") and "90.0%" in last and "40.0%" in last
    )


def test_no_number_is_nan():
    found = summarize([item(), item()])
    assert not [name for name, value in found.items() if isinstance(value, float) and math.isnan(value)]
