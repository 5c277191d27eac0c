"""The verdict over many runs: what is told, what is only counted, and what may not be said."""

from __future__ import annotations

import pandas as pd

from c3po_bench.analysis.compare import COLUMNS, compare
from c3po_bench.analysis.table import live_line
from c3po_bench.analysis.verdict import direction, verdict_sentences
from tests import store_factory as factory


def row(arm: str, difference: float, half: float = 0.01, label: str = "", **more) -> dict:
    """One row of `compare`, shown to differ from base where the interval excludes 0."""
    p = 0.01 if abs(difference) > half else 0.5
    common = {
        "arm": arm,
        "label": label or arm,
        "run_id": label or arm,
        "task": "arc",
        "level": "task",
        "scope": "",
        "n": 100,
    }
    common |= {
        "difference": difference,
        "diff_low": difference - half,
        "diff_high": difference + half,
        "p": p,
        "p_holm": p,
    }
    return {name: float("nan") for name in COLUMNS} | common | {"mde": 0.02, "fixed": 1, "broken": 1} | more


def said(*rows: dict) -> list[str]:
    return verdict_sentences(pd.DataFrame([row("base", float("nan")), *rows], columns=list(COLUMNS)))


def test_what_loses_is_told_however_many_gain():
    gains = [row(f"method_{i}", 0.02 + i / 100) for i in range(5)]
    unclear = [row(f"unclear_{i}", i / 1000) for i in range(3)]
    sentences = said(*unclear, row("knn_vote", -0.14), *gains)
    assert [s.split(" beats")[0] for s in sentences[:5]] == [f"Method {i}" for i in (4, 3, 2, 1, 0)]
    assert sentences[5].startswith("Unclear 2 cannot be told from base")
    assert sentences[6].startswith("KNN vote loses to base by 14.0 points")
    assert sentences[7:] == ["Of 2 more: 2 cannot be told from base."]


def test_the_rest_is_counted_by_what_it_shows():
    arms = [row("icl", 0.5 - i / 100, label=f"icl ({i})") for i in range(3)]
    arms += [row(f"method_{i}", 0.3, label=f"method_{i} (k={k})") for i in range(2) for k in range(3)]
    assert said(*arms)[-1] == "Of 3 more: 3 beat base."


def test_the_best_of_a_sweep_is_named_whatever_its_label():
    runs = [row("ngd", k / 100, label=f"ngd (k={k}) [e8d54f]") for k in range(4)]
    (sentence,) = said(*runs)
    assert "with k=3 [e8d54f], was picked after the fact." in sentence


def test_of_a_sweep_only_what_holds_after_correction_is_counted():
    runs = [
        row("ngd", gain, label=f"ngd (k={k})", p_holm=p)
        for k, (gain, p) in enumerate(
            [(0.3, 0.01), (0.2, 0.01), (0.1, 0.2), (-0.1, 0.01), (-0.2, 0.2), (-0.3, 0.01), (-0.4, 0.04)]
        )
    ]
    (sentence,) = said(*runs)
    assert sentence.startswith("NGD under 7 settings: 2 beat base after correction for all of them, 3 lose;")


def test_every_ceiling_is_named():
    sentences = said(
        row("oracle", 0.1, label="oracle (model=a)"), row("oracle", 0.45, label="oracle (model=b)")
    )
    assert [s.split(", which")[0] for s in sentences] == [f"The ceiling, oracle (model={m})" for m in "ab"]


def test_a_difference_without_p_is_not_shown():
    assert direction(row("ngd", 0.1)) == 1
    assert direction(row("ngd", 0.1, p=float("nan"))) == 0


def feedback(arm: str, gain: float, half: float = 0.05) -> list[dict]:
    scopes = (("in", gain), ("near", 0.0), ("out", 0.0))
    return [row(arm, d, half, scope=scope, task=f"feedback_{scope}") for scope, d in scopes]


def test_following_is_said_where_it_is_shown():
    rows = [*feedback("sft", 0.0), *feedback("c3po", 0.5), *feedback("dpo", -0.2)]
    starts = [s.split(", against base")[0] for s in said(*rows)]
    assert starts == [
        "C3PO follows the feedback",
        "SFT is not shown to follow the feedback",
        "DPO goes against the feedback",
    ]


def test_a_leak_is_told_where_it_is_shown():
    both = [
        row("dpo", gain, scope=scope, task=f"feedback_{scope}") for scope, gain in (("in", 0.5), ("out", 0.1))
    ]
    (kept,) = said(*both[:1], row("dpo", 0.005, scope="out", task="feedback_out"))
    (leaks,) = said(*both)
    assert leaks.endswith("out of scope: it leaks where it should not apply.") and "leaks" not in kept


def test_the_best_feedback_arms_are_told_and_the_rest_counted():
    sentences = said(*(one for i in range(9) for one in feedback(f"arm_{i}", i / 10)))
    assert sentences[0].startswith("Arm 8 follows") and len(sentences) == 7
    assert sentences[-1] == "Of 3 more: 2 follow the feedback, 1 not shown to follow the feedback."


def test_the_line_of_a_feedback_run_says_of_which_scope_it_speaks(tmp_path):
    runs = [
        factory.write_run(tmp_path, arm, factory.feedback_rows(arm, "in", 20), backend="feedback")
        for arm in ("base", "c3po")
    ]
    assert live_line(runs[1], runs[0]).startswith("c3po against base in scope: ")


def test_answers_without_a_judgement_are_neither_good_nor_bad(tmp_path):
    """The judge could not be had for half of them: they count for neither arm, and are not zeros."""
    runs = []
    for arm, score in (("base", 0.0), ("c3po", 1.0)):
        rows = factory.feedback_rows(arm, "in", 40)
        for i, one in enumerate(rows):
            one["score"], one["correct"] = (None, 0.0) if arm == "c3po" and i < 20 else (score, score)
        runs.append(factory.write_run(tmp_path, arm, rows, backend="feedback"))
    found = compare(runs, draws=100).set_index("arm")
    assert (found.loc["c3po", "n"], found.loc["c3po", "accuracy"], found.loc["c3po", "difference"]) == (
        20,
        1.0,
        1.0,
    )
    assert found.loc["base", "n"] == 40


def test_no_judgement_at_all_ends_in_a_row_without_numbers(tmp_path):
    runs = []
    for arm in ("base", "c3po"):
        rows = factory.feedback_rows(arm, "in", 12)
        rows = [one | ({"score": None} if arm == "c3po" else {}) for one in rows]
        runs.append(factory.write_run(tmp_path, arm, rows, backend="feedback"))
    found = compare(runs, draws=100).set_index("arm")
    assert found.loc["c3po", "n"] == 0 and found.loc[["c3po"], ["accuracy", "difference"]].isna().all(
        axis=None
    )
    assert verdict_sentences(found.reset_index())[0].startswith("Nothing stands beside base")


def test_a_run_is_compared_with_the_base_of_its_own_engine(tmp_path):
    scores = {name: factory.scores_of(name, 40, 0.5) for name in ("naive", "suffix")}
    runs = []
    for arm in ("base", "ngd"):
        for engine, found in scores.items():
            rows = factory.sample_rows(arm, "arc", found, details=False)
            made = {"identity": {"arm": arm, "backend": "rewiring", "engine": engine}}
            runs.append(factory.write_run(tmp_path, arm, rows, settings={"engine": engine}, provenance=made))
    found = compare(runs, draws=100)
    assert (found.loc[found["arm"] == "ngd", "difference"] == 0).all()
