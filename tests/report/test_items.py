"""What the item explorer says of an item is what the run answered, whatever other runs were asked."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("altair")
from c3po_bench.analysis.compare import compare  # noqa: E402
from c3po_bench.report import page  # noqa: E402
from c3po_bench.report.items import choice_probabilities, explore  # noqa: E402
from c3po_bench.store.reader import load_runs  # noqa: E402
from tests import store_factory as factory  # noqa: E402


def write(root, arm, key, reverse=False, document=""):
    rows = factory.sample_rows(arm, "facts", factory.scores_of(arm, 12, 0.5), details=False)
    for row in rows:
        row["doc_hash"] += document
        if reverse:
            row |= {
                "choices": row["choices"][::-1],
                "gold": 3 - row["gold"],
                "prediction": 3 - row["prediction"],
            }
    factory.write_run(root, arm, rows, key=key)


def explored(root):
    """The explorer of a store, after a check that every answer is one of its item's choices, and the right one."""
    runs = {run.run_id: run for run in load_runs(root)}
    explorer = explore(list(runs.values()), compare(list(runs.values()), draws=50))
    for number, arm in enumerate(explorer.meta["arms"]):
        rows = {row["doc_id"]: row for row in runs[arm["run"]].samples()}
        answers = explorer.index["predictions"][number]
        shown = {
            item[1]: item[3][p]
            for item, p in zip(explorer.index["items"], answers, strict=True)
            if p is not None
        }
        assert shown == {i: row["choices"][row["prediction"]] for i, row in rows.items()}
    return explorer


def test_other_orders_of_the_choices_are_other_items(tmp_path):
    for arm in ("base", "ngd"):
        write(tmp_path, arm, "stock")
        write(tmp_path, arm, "permuted", reverse=True)
    explorer = explored(tmp_path)
    assert len(explorer.index["items"]) == 24 and explorer.questions == 12
    for arm, scores in zip(explorer.meta["arms"], explorer.index["scores"], strict=True):
        base = explorer.index["scores"][arm["base"]]
        assert [a is None for a in scores] == [b is None for b in base] and scores.count(None) == 12


def test_other_documents_are_other_items_and_the_same_one_row(tmp_path):
    for arm in ("base", "ngd", "icl"):
        write(tmp_path, arm, "one")
    assert len(explored(tmp_path).index["items"]) == 12
    write(tmp_path, "base", "two", document="-other")
    explorer = explored(tmp_path)
    assert len(explorer.index["items"]) == explorer.questions == 24


def test_an_answer_that_no_judge_scored_is_neither_wrong_nor_changed(tmp_path):
    for arm in ("base", "c3po"):
        rows = [row | {"score": 1, "correct": 1} for row in factory.feedback_rows(arm, "in", 4)]
        rows[2] |= {"correct": 0, "score": None} if arm == "c3po" else {}
        factory.write_run(tmp_path, arm, rows, backend="feedback")
    runs = load_runs(tmp_path)
    index = page.finite(explore(runs, compare(runs, draws=50)).index)
    assert index["scores"] == [[1, 1, 1, 1], [1, 1, None, 1]]
    assert None not in index["predictions"][1]  # so that the page can tell it from one that was not given


def test_details_beyond_the_budget_are_left_out_unflipped_first(tmp_path):
    factory.rewiring_store(tmp_path, items=30, hostile=factory.HOSTILE)
    runs = load_runs(tmp_path)
    explorer = explore(runs, compare(runs, draws=50), detail_bytes=6 * 60_000)
    arm = next(i for i, a in enumerate(explorer.meta["arms"]) if a["label"] == "NGD")
    kept = {int(k) for _, chunk in explorer.meta["arms"][arm]["chunks"] for k in explorer.chunks[chunk]}
    scores = explorer.index["scores"]
    flipped = {i for i in range(60) if scores[arm][i] != scores[0][i]}
    assert explorer.meta["arms"][arm]["left_out"] == 60 - len(kept) > 0
    assert flipped <= kept


@pytest.mark.parametrize("normed", [False, True])
def test_choices_have_the_probabilities_of_the_rule_that_they_were_scored_by(normed):
    choices, scores = ["ab", "abcdefgh"], [-4.0, -8.0]
    ranked = [s / len(c) for s, c in zip(scores, choices, strict=True)] if normed else scores
    weights = [math.exp(value) for value in ranked]
    expected = [weight / sum(weights) for weight in weights]
    row = {"choices": choices, "loglikelihoods": scores, "gold": 0, "p_gold": expected[0]}
    row["prediction"] = ranked.index(max(ranked))
    assert choice_probabilities(row) == pytest.approx(expected)
    assert choice_probabilities(row | {"p_gold": 0.123}) is None, "some other rule"
    assert choice_probabilities(row | {"loglikelihoods": None}) is None


def test_the_prompt_as_it_was_asked_is_with_base_and_with_arms_that_are_asked_otherwise(tmp_path):
    for arm in ("base", "ngd", "icl"):
        rows = factory.sample_rows(arm, "facts", factory.scores_of(arm, 4, 0.5), details=True)
        for row in rows:
            row["rendered"] = {"base": ["Q"], "icl": ["An example. " * 900 + "Q"]}.get(arm)
        factory.write_run(tmp_path, arm, rows)
    runs = load_runs(tmp_path)
    explorer = explore(runs, compare(runs, draws=50))
    shown = {}
    for arm in explorer.meta["arms"]:
        found = [d for _, chunk in arm["chunks"] for d in explorer.chunks[chunk].values()]
        shown[arm["label"]] = found[0].get("rendered")
    assert shown["base"] == ["Q"] and shown["NGD"] is None
    (long,) = shown["ICL"]
    assert len(long) <= 6000 and long.startswith("An example. ") and "[…]" in long and long.endswith(" Q")
