"""The verdict on feedback: by S_overall, with what leaks where, and nobody called better who is not shown to be."""

from __future__ import annotations

import re

import pytest

from c3po_bench.analysis.compare import compare, compare_controls
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.analysis.overall import conclusion, count_leaks, disagreement, overall_sentences
from tests import store_factory as factory


def store(root, shares: dict[str, tuple[float, float, float]], items: int = 40):
    """Runs whose first answers follow the feedback, by arm the share in, near and out of scope."""
    runs = []
    for arm, parts in {"base": (0.0, 0.0, 0.0), **shares}.items():
        rows = []
        for scope, share in zip(("in", "near", "out"), parts, strict=True):
            for number, row in enumerate(factory.feedback_rows(arm, scope, items)):
                follows = int(number < share * items)
                rows.append(row | {"score": follows, "correct": follows})
        runs.append(factory.write_run(root, arm, rows, backend="feedback"))
    factory.write_experiment(root, "feedback", runs)
    return runs


def test_a_method_that_follows_more_and_leaks_everywhere_is_not_first(tmp_path):
    runs = store(tmp_path, {"dpo": (1.0, 0.9, 0.8), "c3po": (0.9, 0.2, 0.05)})
    first, second = overall_sentences(runs, draws=500)
    assert first.startswith("Best by S_overall (0.5 is base, 1 is perfect): C3PO with 0.89 [")
    assert "leaks in 8 of 40 answers near scope and in 2 of 40 answers out of scope" in first
    assert re.match(r"DPO has 0\.57 \[.*\], lower \(−0\.31 \[−", second)


def test_who_is_not_told_apart_is_said_so_and_who_does_not_follow_too(tmp_path):
    runs = store(tmp_path, {"dpo": (0.9, 0.2, 0.1), "c3po": (0.9, 0.2, 0.05), "sft": (0.0, 0.0, 0.0)})
    first, second, third = overall_sentences(runs, draws=500)
    assert "C3PO with" in first and "not told apart from C3PO at this size" in second
    assert third.startswith("SFT has 0.50") and "It is not shown to follow the feedback" in third


@pytest.mark.parametrize("scored", [0.4, 0.6])
def test_leaks_are_answers_judged_to_follow_though_it_does_not_apply(tmp_path, scored):
    rows = [
        row | {"score": None if number == 0 else -scored, "correct": 0.0}
        for number, row in enumerate(factory.feedback_rows("c3po", "out", 10))
    ]
    run = factory.write_run(tmp_path, "c3po", rows, backend="feedback")
    assert count_leaks(run) == {"out": (9 if scored > 0.5 else 0, 9)}


def test_the_conclusion_has_them_where_the_store_is_about_feedback(tmp_path):
    runs = store(tmp_path, {"c3po": (0.9, 0.2, 0.05)})
    sentences = conclusion(tmp_path, runs, compare(runs), compare_controls(runs))
    assert sentences[0].startswith("Best by S_overall") and not any("accuracy" in line for line in sentences)


def test_an_interval_and_a_test_that_disagree_are_explained(tmp_path):
    """A steady gain in scope with a steady leak near it: S_overall is above base's, and sign flips do not tell."""
    runs = store(tmp_path, {"c3po": (1.0, 1.0, 0.0), "dpo": (0.0, 0.0, 0.0)}, items=20)
    frame = feedback_measures(runs, draws=2000)
    row = next(r for r in frame.to_dict("records") if (r["arm"], r["scope"]) == ("c3po", "overall"))
    assert row["diff_low"] > 0 and row["p"] > 0.05
    assert "the interval excludes 0, sign flips do not tell" in disagreement(row)
    (_, second) = overall_sentences(runs, draws=2000)
    assert "what cancels between scopes for spread" in second and "not told apart" in second
    corrected = row | {"p": 0.01, "p_holm": 0.2}
    assert disagreement(corrected) == ", 0.01 before: the interval, which is not corrected, excludes 0"
    assert disagreement(row | {"diff_low": -0.1}) == "" == disagreement(row | {"p": 0.001, "p_holm": 0.01})
