"""What is measured beside accuracy, against counts by hand: feedback by scope, shares of a gap."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from c3po_bench.analysis import statistics
from c3po_bench.analysis.measures import feedback_measures, share_recovered
from c3po_bench.errors import UserError
from c3po_bench.feedback.measures import s_metrics
from c3po_bench.store.reader import Run
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


def judged(root, arm="c3po", **scopes: list[float | None]) -> Run:
    """A run with these scores of its prompts, each a feedback of its own, and no measure but the score."""
    rows = [
        {"task": scope, "doc_id": i, "doc_hash": str(i), "prompt_hash": str(i), "scope": scope}
        | {"feedback_id": f"p{i}", "score": score, "correct": abs(score or 0.0)}
        for scope, values in scopes.items()
        for i, score in enumerate(values)
    ]
    return factory.write_run(
        root, arm, rows, backend="feedback", settings={"number": len(list(root.iterdir()))}
    )


def test_a_judgement_that_could_not_be_had_is_left_out(tmp_path):
    """As in S_in itself, and out of scope, where a zero would pass for no leak."""
    scopes = {"in": [1.0, 1.0, None, None], "out": [-1.0, None]}
    frame = feedback_measures([judged(tmp_path, **scopes)], draws=50)
    measured = {row["scope"]: (row["n"], row["mean"]) for row in frame.to_dict("records")}
    assert measured == {"in": (2, 1.0), "out": (1, 1.0)}


def test_feedbacks_are_drawn_together_in_all_scopes(tmp_path):
    """Where a piece leaks exactly as much as it is followed, S_overall is the same for each, and does not vary."""

    def bounds(scope, leak):
        leaks = [leak(v) for v in pieces]
        run = judged(tmp_path, **{"in": pieces, "near": leaks, "out": leaks})
        row = pick(feedback_measures([run], draws=500), scope=scope)
        assert row["over"] == "feedbacks"
        return [row[k] for k in ("low", "mean", "high")]

    pieces = [i * 7 % 4 / 3 for i in range(20)]
    constant = bounds("overall", lambda v: v)
    assert constant[1] == pytest.approx(0.5) and np.isnan(constant[0]), "no variance, so no bounds"
    s_in = bounds("in", lambda v: 1 - v)
    assert bounds("overall", lambda v: 1 - v) == pytest.approx(s_in)  # S_overall is S_in then


def test_a_gap_of_the_other_arm_costs_one_prompt_of_the_difference(tmp_path):
    runs = [
        judged(tmp_path, **{"in": [1.0, 1.0, 0.0]}),
        judged(tmp_path, "dpo", **{"in": [0.0, None, 0.0]}),
    ]
    row = pick(feedback_measures(runs, "dpo", draws=50), arm="c3po")
    assert (row["n"], row["difference"]) == (3, 0.5)


def test_a_run_without_feedback_has_nothing_to_measure(tmp_path):
    assert feedback_measures(factory.store(tmp_path, base=[0, 1]), draws=5).empty


def uneven(tmp_path, arms=("base", "c3po")) -> list[Run]:
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
    recorded = s_metrics(runs[1].samples())
    assert recorded["S_in"] == 0.5
    for scope in ("in", "near", "out", "overall"):
        row = pick(frame, arm="c3po", scope=scope, measure="score")
        assert row["mean"] == pytest.approx(recorded[f"S_{scope}"])
    row = pick(frame, arm="c3po", scope="in", measure="score")
    assert row["difference"] == pytest.approx(0.5) and row["low"] < 0.5 < row["high"]
    overall = pick(frame, arm="c3po", scope="overall", measure="score")
    assert overall["n"] == 120 and overall["difference"] == pytest.approx(recorded["S_overall"] - 0.5)
    assert overall["diff_low"] < overall["difference"] < overall["diff_high"]
    one, other = statistics.tango(30, 0, 30), statistics.tango(0, 0, 10)  # pieces weigh alike, prompts do not
    assert (row["low"], row["high"]) == pytest.approx(statistics.mean_interval([one, other])[1:])
    assert row["over"] == "prompts" and row["p"] < 0.001
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
    other = pick(frame, run_id=runs[-2].run_id, scope="in", measure="score")
    assert other["difference"] == pytest.approx(0.1 - 0.5)


def shares(root, **correct: list[int]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = factory.store(root, "planted", **correct)
        return share_recovered(runs, lambda *_: 0.25, draws=4000).set_index("arm")


def test_a_share_is_of_the_gap_and_its_interval_paired(tmp_path):
    base, optimum = [0, 1] * 40, [1] * 80
    half = [1, 1, 0, 1] * 20
    table = shares(tmp_path, base=base, ngd=half, planted_optimum=optimum)
    assert table["share"].to_dict() == {"base": 0.0, "ngd": 0.5, "planted_optimum": 1.0}
    assert table.loc["planted_optimum", ["low", "high"]].tolist() == [1.0, 1.0]
    spread = (0.25 / 40) ** 0.5  # of a half of the 40 items in the gap
    bounds = table.loc["ngd", ["low", "high"]].tolist()
    assert bounds == pytest.approx([0.5 - 1.96 * spread, 0.5 + 1.96 * spread], abs=0.02)


def test_few_items_bound_no_share_and_warn_of_nothing(tmp_path):
    few = shares(tmp_path / "few", base=[0, 1, 1, 1], ngd=[1, 0, 1, 1], planted_optimum=[1] * 4)
    assert few.loc["ngd", "low"] == -np.inf and few.loc["ngd", "high"] == 1.0
    none = shares(tmp_path / "none", base=[1, 1], ngd=[1, 0], planted_optimum=[1, 1])
    assert none[["share", "low", "high"]].isna().all(axis=None)


def test_the_distance_to_what_was_planted_is_of_moved_pathways_alone(tmp_path):
    runs = factory.store(tmp_path, "planted", base=[0, 1], ngd=[1, 1], planted_optimum=[1, 1])
    moved = {"pathway_after": [[0.5, 0.5]], "pathway_layers": [3]}
    factory.edit(runs[1], lambda row: row.update(moved, question=f"question {row['doc_id']}"))
    table = share_recovered(
        runs, lambda pathway, layers, question: layers[0] + int(question[-1]), draws=20
    ).set_index("arm")
    assert table.loc["ngd", "distance"] == 3.5 and np.isnan(table.loc["base", "distance"])
