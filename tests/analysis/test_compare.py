"""What the comparison's rows hold: differences to base and to controls, their intervals and tests, by task and benchmark."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from c3po_bench.analysis import power, statistics
from c3po_bench.analysis.compare import compare, compare_controls, options_of
from c3po_bench.analysis.frames import COLUMNS, CONTROL_COLUMNS, POOLED, typed
from c3po_bench.analysis.verdict import verdict
from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run
from tests import store_factory as factory

NAN = float("nan")
RANDOM, SHUFFLED = "ngd_random_neighbors", "ngd_shuffled_labels"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return factory.rewiring_store(tmp_path_factory.mktemp("store"), items=200)


@pytest.fixture(scope="module")
def frame(runs) -> pd.DataFrame:
    return compare(runs, draws=2000)


def pair(tmp_path) -> list[Run]:
    base = factory.scores_of("base", 20, 0.5)
    return factory.store(tmp_path, base=base, ngd=factory.scores_of("ngd", 20, 0.5, base=base))


def test_rows_that_are_no_strict_json_are_read_alike(tmp_path):
    runs = pair(tmp_path)
    strict = compare(runs)
    factory.edit(runs[1], lambda row: row.update(loglikelihoods=[NAN] * 4))
    assert "NaN" in (runs[1].path / "samples.jsonl").read_text()
    pd.testing.assert_frame_equal(compare(runs), strict)


def test_columns_are_typed_and_every_run_has_its_rows(frame):
    assert list(frame.columns) == list(COLUMNS)
    assert frame["accuracy"].dtype == "float64" and frame["fixed"].dtype == "Int64"
    levels = frame.groupby("run_id")["level"].apply(list)
    assert levels.map(lambda own: own == ["task", "task", "pooled", "macro"]).all()
    assert frame.loc[frame["arm"] == "base", "difference"].isna().all()


def test_numbers_are_those_of_a_count_by_hand(frame, runs):
    base, ngd = (next(r for r in runs if r.arm == arm) for arm in ("base", "ngd"))
    theirs = {(s["task"], s["doc_id"]): s["correct"] for s in base.samples()}
    ours = {(s["task"], s["doc_id"]): s["correct"] for s in ngd.samples()}
    fixed = sum(ours[k] > theirs[k] for k in ours)
    broken = sum(ours[k] < theirs[k] for k in ours)
    row = frame[(frame["arm"] == "ngd") & (frame["level"] == "pooled")].iloc[0]
    assert (row["fixed"], row["broken"], row["n"]) == (fixed, broken, 400)
    assert row["difference"] == pytest.approx((fixed - broken) / 400)
    assert row["accuracy"] == pytest.approx(sum(ours.values()) / 400)
    assert row["diff_low"] <= row["difference"] <= row["diff_high"]
    assert row["seconds_per_item"] == pytest.approx(70.0 / 400)
    assert row["flops_per_item"] == pytest.approx(4e12 / 400)


def test_holm_runs_over_arms_and_tasks(frame):
    tests = frame[(frame["level"] == "task") & frame["p"].notna()]
    assert len(tests) == 10
    smallest = tests.loc[tests["p"].idxmin()]
    assert smallest["p_holm"] == pytest.approx(min(1.0, 10 * smallest["p"]))
    assert set(tests["tests"]) == {10} and (tests["p_max_t"] <= tests["p_holm"] + 0.02).all()
    assert (tests["p_holm"] >= tests["p"]).all()


def test_tasks_within_benchmarks_are_corrected_on_their_own():
    rows = [{"task": "mmlu", "level": "group", "p": 0.01}, {"task": "arc", "level": "task", "p": 0.01}]
    rows += [{"task": f"mmlu_{i}", "level": "task", "group": "mmlu", "p": 0.01} for i in range(4)]
    rows += [{"task": POOLED, "level": "pooled", "p": 0.01}]
    numbers = dict.fromkeys(COLUMNS, NAN) | {"group": "", "n": 40, "prompt_differs": False}
    corrected = typed([numbers | row for row in rows], COLUMNS)["p_holm"]
    assert corrected.tolist() == pytest.approx([0.02, 0.02, 0.04, 0.04, 0.04, 0.04, 0.01])


def test_row_order_on_disk_does_not_matter(tmp_path):
    runs = pair(tmp_path)
    before = compare(runs, draws=500)
    lines = (runs[1].path / "samples.jsonl").read_text().splitlines()
    (runs[1].path / "samples.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    pd.testing.assert_frame_equal(before, compare(runs, draws=500))


def test_a_row_without_score_is_refused(tmp_path):
    runs = pair(tmp_path)
    factory.edit(runs[1], lambda row: row.update(correct=None))
    with pytest.raises(UserError, match="20 of 20 rows have no score"):
        compare(runs)


def test_an_item_that_counts_twice_is_refused(tmp_path):
    base, ngd = pair(tmp_path)
    with (ngd.path / "samples.jsonl").open("a") as file:
        file.write(json.dumps(ngd.samples()[3]) + "\n")
    with pytest.raises(UserError, match=rf"run {ngd.run_id}: item arc/3 has 2 rows"):
        compare([base, ngd])


def test_real_valued_scores_are_tested_by_sign_flips(tmp_path):
    runs = pair(tmp_path)
    factory.edit(runs[0], lambda row: row.update(correct=0.25 + 0.001 * row["doc_id"]))
    factory.edit(runs[1], lambda row: row.update(correct=0.75))
    row = compare(runs, draws=2000).iloc[1]
    assert np.isnan(row["p_mcnemar"]) and row["test"] == "sign-flip"
    assert row["p"] < 0.01 and row["difference"] == pytest.approx(0.4905)


def test_items_that_share_a_passage_are_resampled_together(tmp_path):
    scores = {"base": np.repeat(factory.scores_of("base", 30, 0.4), 8)}
    scores["ngd"] = np.repeat(factory.scores_of("ngd", 30, 0.6), 8)
    runs = factory.store(tmp_path, "race", **scores)
    plain = compare(runs, draws=2000).iloc[1]
    for each in runs:
        factory.edit(each, lambda row: row.update(cluster=f"passage {row['doc_id'] // 8}"))
    clustered = compare(runs, draws=2000).iloc[1]
    assert clustered["test"] == "sign-flip" and plain["test"] == "mcnemar"
    ratio = (clustered["diff_high"] - clustered["diff_low"]) / (plain["diff_high"] - plain["diff_low"])
    assert ratio == pytest.approx(8**0.5, rel=0.15)
    assert clustered["p"] > plain["p"]


def test_passages_of_one_question_each_are_no_clusters(tmp_path):
    runs = pair(tmp_path)
    plain = compare(runs, draws=500)
    for run in runs:
        factory.edit(run, lambda row: row.update(cluster=f"passage {row['doc_id']}"))
    pd.testing.assert_frame_equal(plain, compare(runs, draws=500))


def test_each_row_counts_its_own_passages(tmp_path):
    def run(arm):
        made = []
        for task, size in (("boolq", 2), ("race", 8), ("arc", 0)):
            rows = factory.sample_rows(arm, task, factory.scores_of(arm + task, 24, 0.5), details=False)
            made += [row | {"cluster": f"{task} {row['doc_id'] // size}"} if size else row for row in rows]
        return factory.write_run(tmp_path, arm, made)

    def tests(frame):
        return frame.iloc[len(frame) // 2 :].set_index("task")["test"].to_dict()

    runs = [run("base"), run("ngd")]
    alone = {"boolq": "sign-flip", "race": "mcnemar", "arc": "mcnemar"}  # 12, 3 and no passages
    together = {"all items": "sign-flip", "mean of tasks": ""}
    assert tests(compare(runs, draws=200)) == alone | together
    for each in runs:
        factory.edit(each, lambda row: row.pop("cluster", None) if row["task"] == "boolq" else None)
    assert tests(compare(runs, draws=200)) == alone | {"boolq": "mcnemar"} | together


def test_rows_of_mixed_types_are_read_too(tmp_path):
    runs = pair(tmp_path)
    before = compare(runs, draws=100)
    factory.edit(runs[1], lambda row: row.update(correct=bool(row["correct"])))
    pd.testing.assert_frame_equal(before, compare(runs, draws=100))


def row_of(tmp_path, arm, base, clusters=None) -> dict:
    """The row of arm `ngd` where it and its base have these scores on one task."""
    runs = factory.store(tmp_path, base=np.ones(len(base)), ngd=np.ones(len(arm)))
    for run, scores in zip(runs, (base, arm), strict=True):
        factory.edit(run, lambda row, scores=scores: row.update(correct=float(scores[row["doc_id"]])))
        if clusters is not None:
            factory.edit(run, lambda row: row.update(cluster=f"passage {clusters[row['doc_id']]}"))
    return compare(runs, draws=500, seed=3).iloc[1].to_dict()


BASE = np.repeat(factory.scores_of("base", 30, 0.4), 4)
ARM = np.repeat(factory.scores_of("ngd", 30, 0.7), 4)
PASSAGES = np.arange(120) // 4


def test_right_or_wrong_has_wilsons_interval_and_tangos(tmp_path):
    row = row_of(tmp_path, ARM, BASE)
    fixed, broken = statistics.fixed_broken(ARM, BASE)
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx(statistics.wilson(ARM.sum(), 120))
    assert (row["difference"], row["diff_low"], row["diff_high"]) == pytest.approx(
        statistics.tango(fixed, broken, 120)
    )
    assert row["p"] == pytest.approx(float(statistics.mid_p(fixed, broken)))
    assert row["p_mcnemar"] == pytest.approx(float(statistics.mcnemar(fixed, broken)))
    assert row["mde"] == pytest.approx(power.smallest_gain(ARM - BASE, 120, binary=True))
    assert (row["over"], row["groups"]) == ("items", 120)
    assert row["p_same"] == pytest.approx(statistics.same_p(ARM - BASE, 0.01)) and row["margin"] == 0.01


def test_graded_scores_have_t_intervals(tmp_path):
    arm, base = ARM * 0.5 + np.arange(120) / 400, BASE * 0.5
    row = row_of(tmp_path, arm, base)
    own, gap = (stats.ttest_1samp(values, 0).confidence_interval() for values in (arm, arm - base))
    assert (row["low"], row["high"]) == pytest.approx((own.low, own.high))
    assert (row["diff_low"], row["diff_high"]) == pytest.approx((gap.low, gap.high))
    assert row["difference"] == pytest.approx((arm - base).mean())
    assert row["p"] == statistics.sign_flip(arm - base, draws=500, seed=3)


def test_items_of_a_passage_are_drawn_together_for_the_arm_alone_too(tmp_path):
    row = row_of(tmp_path, ARM, BASE, PASSAGES)
    assert (row["over"], row["groups"]) == ("clusters", 30)
    assert (row["low"], row["high"]) == pytest.approx(statistics.wilson(23, 30)[1:], abs=0.02)
    plain = statistics.wilson(ARM.sum(), 120)
    assert row["high"] - row["low"] > 1.5 * (plain.high - plain.low)
    shares = statistics.cluster_means(ARM - BASE, PASSAGES)
    assert row["mde"] == pytest.approx(power.smallest_gain(shares, 120, binary=True, clustered=True))


@pytest.mark.parametrize(("passages", "test"), [(9, "mcnemar"), (10, "sign-flip")])
def test_ten_passages_are_enough_to_be_drawn(tmp_path, passages, test):
    n = passages * 2
    assert row_of(tmp_path, ARM[::3][:n], BASE[::3][:n], np.arange(n) // 2)["test"] == test


SUBJECTS = ["mmlu_abstract_algebra", "mmlu_anatomy", "mmlu_astronomy"]


def grouped(tmp_path, groups: dict[str, list[str]]) -> list[Run]:
    """A base and an arm over the tasks of `groups`, ten items each."""
    runs = []
    for arm in ("base", "ngd"):
        tasks = dict.fromkeys(task for tasks in groups.values() for task in tasks)
        scores = {task: factory.scores_of(arm + task, 10, 0.5) for task in tasks}
        rows = [row for task in tasks for row in factory.sample_rows(arm, task, scores[task], details=False)]
        runs.append(factory.write_run(tmp_path, arm, rows, groups=groups))
    return runs


def levels_of(frame: pd.DataFrame) -> dict[str, str]:
    rows = frame[frame["arm"] == "ngd"]
    return {row["task"]: row["group"] or row["level"] for row in rows.to_dict("records")}


def test_benchmarks_are_what_was_asked_for_whatever_their_tasks_are_called(tmp_path):
    frame = compare(grouped(tmp_path, {"mmlu_stem": SUBJECTS, "hellaswag": ["hellaswag"]}), draws=100)
    assert levels_of(frame) == dict.fromkeys(SUBJECTS, "mmlu_stem") | {
        "hellaswag": "task",
        "mmlu_stem": "group",
        "all items": "pooled",
        "mean of tasks": "macro",
    }
    rows = frame[frame["arm"] == "base"].set_index("task")
    mean = rows.loc[["mmlu_stem", "hellaswag"], "accuracy"].mean()
    assert rows.loc["mean of tasks", "accuracy"] == pytest.approx(mean)


def test_a_benchmark_of_one_task_counts_in_the_mean_under_any_name(tmp_path):
    frame = compare(grouped(tmp_path, {"mmlu_stem": SUBJECTS, "sets/own.yaml": ["hellaswag"]}), draws=100)
    rows = frame[frame["arm"] == "ngd"].set_index("task")
    mean, both = rows.loc["mean of tasks"], rows.loc[["mmlu_stem", "hellaswag"]]
    for column in ("accuracy", "difference"):
        assert mean[column] == pytest.approx(both[column].mean())
    half = np.linalg.norm(both["difference"] - both["diff_low"]) / 2
    assert mean["difference"] - mean["diff_low"] == pytest.approx(half)


def test_a_task_asked_for_twice_counts_once_with_the_larger_group(tmp_path):
    groups = {"mmlu_anatomy": ["mmlu_anatomy"], "sets/mmlu.yaml": SUBJECTS}
    frame = compare(grouped(tmp_path, groups), draws=100)
    assert levels_of(frame) == dict.fromkeys(SUBJECTS, "mmlu") | {"mmlu": "pooled"}


def test_feedback_scopes_are_not_averaged(tmp_path):
    frame = compare(factory.feedback_store(tmp_path), draws=500)
    assert set(frame["level"]) == {"task"}
    assert set(frame["scope"]) == {"in", "near", "out"}


def test_answers_without_a_judgement_are_neither_good_nor_bad(tmp_path):
    """The judge could not be had for half of them: they count for neither arm, and are not zeros."""
    runs = []
    for arm, score in (("base", 0.0), ("c3po", 1.0)):
        rows = factory.feedback_rows(arm, "in", 40)
        for i, one in enumerate(rows):
            one["score"], one["correct"] = (None, 0.0) if arm == "c3po" and i < 20 else (score, score)
        runs.append(factory.write_run(tmp_path, arm, rows, backend="feedback"))
    frame = compare(runs, draws=100).set_index("arm")
    assert tuple(frame.loc["c3po", ["n", "accuracy", "difference"]]) == (20, 1.0, 1.0)
    assert frame.loc["base", "n"] == 40


def test_every_control_that_ran_is_compared_with_its_arm(tmp_path):
    runs = factory.rewiring_store(tmp_path, items=60)
    settings = next(r for r in runs if r.arm == "ngd").result["settings"]
    rows = [
        row
        for task in ("arc_easy", "facts")
        for row in factory.sample_rows(
            SHUFFLED, task, factory.scores_of(SHUFFLED + task, 60, 0.5), details=False
        )
    ]
    runs.append(factory.write_run(tmp_path, SHUFFLED, rows, settings=settings))
    frame = compare_controls(runs, draws=500)
    assert list(frame.columns) == list(CONTROL_COLUMNS)
    levels = dict.fromkeys((RANDOM, SHUFFLED), ["task", "task", "pooled", "macro"])
    assert frame.groupby("control")["level"].apply(list).to_dict() == levels
    correct = {r.arm: {(s["task"], s["doc_id"]): s["correct"] for s in r.samples()} for r in runs}
    for name in (RANDOM, SHUFFLED):
        row = frame[(frame["control"] == name) & (frame["task"] == POOLED)].iloc[0]
        gaps = np.array([correct["ngd"][key] - correct[name][key] for key in correct["ngd"]])
        assert row["difference"] == pytest.approx(gaps.mean())
        assert (row["fixed"], row["broken"]) == ((gaps > 0).sum(), (gaps < 0).sum())
    tests = frame[frame["level"] == "task"]
    assert len(tests) == 4 and tests["p_holm"].min() == pytest.approx(min(1, 4 * tests["p"].min()))
    pooled = frame[frame["level"] == "pooled"]
    assert len(pooled) == 2 and pooled["p_holm"].min() == pytest.approx(min(1, 2 * pooled["p"].min()))


def family(tmp_path) -> list[Run]:
    """Four arms: one gains 6 of 60 items, the others change nothing."""
    base = np.array([0, 1] * 30)
    arm = base.copy()
    arm[:12] = 1
    return factory.store(tmp_path, base=base, ngd=arm, sft=base, icl=base, knn_vote=base)


def test_what_is_named_beforehand_is_tested_first(tmp_path):
    runs = family(tmp_path)
    frame = compare(runs).set_index("arm")
    assert frame.loc["ngd", "p_holm"] == pytest.approx(4 * frame.loc["ngd", "p"])
    named = compare(runs, primary="ngd:arc").set_index("arm")
    assert named.loc["ngd", "p_holm"] == named.loc["ngd", "p"]
    assert named.loc["ngd", "mde"] < frame.loc["ngd", "mde"]
    wrong = compare(runs, primary="sft").set_index("arm")
    assert wrong["p_holm"].dropna().tolist() == [1.0] * 4, "nothing is tested after a comparison that fails"


def test_the_newest_experiment_fixes_margin_and_primary(tmp_path):
    assert options_of(tmp_path) == {"margin": 0.01, "primary": None}
    factory.write_experiment(tmp_path, "quickstart", family(tmp_path))
    assert options_of(tmp_path) == {"margin": 0.01, "primary": None}
    (path,) = (tmp_path / "experiments").iterdir()
    record = json.loads(path.read_text())
    record["config"]["analysis"] = {"margin": 0.02, "primary": "ngd"}
    path.write_text(json.dumps(record))
    assert options_of(tmp_path) == {"margin": 0.02, "primary": "ngd"}


def test_an_arm_that_changes_nothing_is_the_same_where_items_are_enough(tmp_path):
    runs = factory.store(tmp_path, base=[0, 1] * 150, sft=[0, 1] * 150)
    row = compare(runs).iloc[1]
    assert row["p_same"] < 0.05 and verdict(compare(runs)) == (
        "SFT scores every item as base does, and is the same within 1 point."
    )
    assert compare(runs, margin=0.005).iloc[1]["p_same"] > 0.05


def test_the_best_of_a_sweep_is_chosen_on_one_half_and_reported_on_the_other(tmp_path):
    base = factory.scores_of("base", 200, 0.4)
    runs = [factory.write_run(tmp_path, "base", factory.sample_rows("base", "arc", base, details=False))]
    for k in range(5):
        own = factory.scores_of(f"ngd{k}", 200, 0.5, base=base)
        rows = factory.sample_rows("ngd", "arc", own, details=False)
        runs.append(factory.write_run(tmp_path, "ngd", rows, settings={"k": k}))
    frame = compare(runs).iloc[1:]
    odd = np.array([int(row["doc_hash"][-1], 16) % 2 for row in runs[0].samples()], dtype=bool)
    gaps = [
        [a["correct"] - b["correct"] for a, b in zip(run.samples(), runs[0].samples(), strict=True)]
        for run in runs[1:]
    ]
    for half, column in ((~odd, "even"), (odd, "odd")):
        expected = sorted(float(np.array(gap)[half].mean()) for gap in gaps)
        assert sorted(frame[column]) == pytest.approx(expected)
    picked = frame.sort_values(["even", "label"], ascending=[False, True]).iloc[0]
    words = verdict(frame)
    assert f"Chosen on half of the items, {picked['label'].removeprefix('ngd (').rstrip(')')} shows" in words
    assert "was picked after the fact. Of 5 equal cells the best would show up to" in words
