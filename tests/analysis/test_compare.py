"""Pairing runs with their base, refusing what must not be compared, and what the tables then say."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from c3po_bench.analysis.compare import COLUMNS, compare
from c3po_bench.analysis.pairing import run_labels
from c3po_bench.analysis.study import publish
from c3po_bench.analysis.table import console_table, live_line, table_text
from c3po_bench.analysis.verdict import verdict
from c3po_bench.errors import UserError
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return factory.rewiring_store(tmp_path_factory.mktemp("store"), items=200)


@pytest.fixture(scope="module")
def frame(runs) -> pd.DataFrame:
    return compare(runs, draws=2000)


def edit(run: factory.FakeRun, change) -> None:
    """Rewrite a run's sample rows through `change(row)`."""
    rows = run.samples()
    for row in rows:
        change(row)
    (run.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def small(tmp_path, **options) -> list[factory.FakeRun]:
    base = factory.scores_of("base", 20, 0.5)
    arm = factory.scores_of("ngd", 20, 0.5, base=base)
    first = factory.write_run(tmp_path, "base", factory.sample_rows("base", "arc", base, details=False))
    rows = factory.sample_rows("ngd", "arc", arm, details=True)
    return [first, factory.write_run(tmp_path, "ngd", rows, **options)]


def test_rows_that_are_no_strict_json_are_read_alike(tmp_path):
    runs = small(tmp_path)
    strict = compare(runs)
    edit(runs[1], lambda row: row.update(loglikelihoods=[float("nan")]))
    assert "NaN" in (runs[1].path / "samples.jsonl").read_text()
    pd.testing.assert_frame_equal(compare(runs), strict)


def test_columns_are_typed_and_every_run_has_its_rows(frame):
    assert list(frame.columns) == list(COLUMNS)
    assert frame["accuracy"].dtype == "float64" and frame["fixed"].dtype == "Int64"
    assert (
        frame.groupby("run_id")["level"]
        .apply(list)
        .map(lambda x: x == ["task", "task", "pooled", "macro"])
        .all()
    )
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
    assert (tests["p_holm"] >= tests["p"]).all()


def test_row_order_on_disk_does_not_matter(tmp_path):
    runs = small(tmp_path)
    before = compare(runs, draws=500)
    lines = (runs[1].path / "samples.jsonl").read_text().splitlines()
    (runs[1].path / "samples.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    pd.testing.assert_frame_equal(before, compare(runs, draws=500))


def test_other_prompts_are_refused_unless_declared(tmp_path):
    runs = small(tmp_path)
    edit(runs[1], lambda row: row.update(prompt_hash="other"))
    with pytest.raises(UserError, match="20 prompts differ, first arc/0.*prompt_differs"):
        compare(runs)
    runs[1].result["settings"]["prompt_differs"] = True
    frame = compare(runs, draws=100)
    assert frame["prompt_differs"].tolist() == [False, True]
    assert "ngd †" in table_text(frame) and "its prompt is not the base's" in table_text(frame)


def test_changed_items_are_refused(tmp_path):
    runs = small(tmp_path)
    edit(runs[1], lambda row: row.update(doc_hash="x" if row["doc_id"] == 7 else row["doc_hash"]))
    with pytest.raises(UserError, match="1 items differ in content, first arc/7"):
        compare(runs)


def test_missing_items_are_refused(tmp_path):
    runs = small(tmp_path)
    lines = (runs[1].path / "samples.jsonl").read_text().splitlines()
    (runs[1].path / "samples.jsonl").write_text("\n".join(lines[:15]) + "\n")
    with pytest.raises(UserError, match=r"other items \(0 only in the one, 5 only in the other\)"):
        compare(runs)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("scoring", {"rule": "letters", "num_fewshot": 0}, "scoring differs"),
        ("limit", 5, "limit differs"),
        ("model", "olmoe", "model differs"),
        ("tasks", ["piqa"], "tasks differs"),
    ],
)
def test_other_settings_are_refused_with_the_reason(tmp_path, field, value, reason):
    runs = small(tmp_path, key="other")
    runs[1].result[field] = value
    with pytest.raises(UserError, match=reason):
        compare(runs)


def test_other_data_are_refused(tmp_path):
    runs = small(tmp_path)
    runs[1].provenance["data_hashes"] = {"arc": "changed"}
    with pytest.raises(UserError, match="the data of arc differ"):
        compare(runs)


def test_a_missing_base_is_refused(tmp_path):
    with pytest.raises(UserError, match="no base run"):
        compare(small(tmp_path)[1:])


def test_a_row_without_score_is_refused(tmp_path):
    runs = small(tmp_path)
    edit(runs[1], lambda row: row.update(correct=None))
    with pytest.raises(UserError, match="20 of 20 rows have no score"):
        compare(runs)


def test_an_item_that_counts_twice_is_refused(tmp_path):
    base, ngd = small(tmp_path)
    (ngd.path / "samples.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*ngd.samples(), ngd.samples()[3]])
    )
    with pytest.raises(UserError, match=rf"run {ngd.run_id}: item arc/3 has 2 rows"):
        compare([base, ngd])


def test_refusals_can_be_collected(tmp_path):
    runs = small(tmp_path)
    edit(runs[1], lambda row: row.update(prompt_hash="other"))
    refused: dict[str, str] = {}
    frame = compare(runs, draws=100, refused=refused)
    assert frame["arm"].tolist() == ["base"]
    assert "prompts differ" in refused[runs[1].run_id]


def test_real_valued_scores_are_tested_by_sign_flips(tmp_path):
    runs = small(tmp_path)
    edit(runs[0], lambda row: row.update(correct=0.25 + 0.001 * row["doc_id"]))
    edit(runs[1], lambda row: row.update(correct=0.75))
    row = compare(runs, draws=2000).iloc[1]
    assert np.isnan(row["p_mcnemar"]) and row["test"] == "sign-flip"
    assert row["p"] < 0.01 and row["difference"] == pytest.approx(0.4905)


def test_items_that_share_a_passage_are_resampled_together(tmp_path):
    correct = np.repeat(factory.scores_of("ngd", 30, 0.6), 8)
    base = np.repeat(factory.scores_of("base", 30, 0.4), 8)

    def run(arm, scores):
        rows = factory.sample_rows(arm, "race", scores, details=False)
        for row in rows:
            row["cluster"] = f"passage {row['doc_id'] // 8}"
        return factory.write_run(tmp_path, arm, rows)

    runs = [run("base", base), run("ngd", correct)]
    clustered = compare(runs, draws=2000).iloc[1]
    for each in runs:
        edit(each, lambda row: row.pop("cluster"))
    plain = compare(runs, draws=2000).iloc[1]
    assert clustered["test"] == "sign-flip" and plain["test"] == "mcnemar"
    ratio = (clustered["diff_high"] - clustered["diff_low"]) / (plain["diff_high"] - plain["diff_low"])
    assert ratio == pytest.approx(8**0.5, rel=0.15)
    assert clustered["p"] > plain["p"]


def test_passages_of_one_question_each_are_no_clusters(tmp_path):
    runs = small(tmp_path)
    plain = compare(runs, draws=500)
    for run in runs:
        edit(run, lambda row: row.update(cluster=f"passage {row['doc_id']}"))
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
    assert tests(compare(runs, draws=200)) == alone | {"all items": "sign-flip", "mean of tasks": ""}
    for each in runs:
        edit(each, lambda row: row.pop("cluster", None) if row["task"] == "boolq" else None)
    assert tests(compare(runs, draws=200)) == alone | {
        "boolq": "mcnemar",
        "all items": "sign-flip",
        "mean of tasks": "",
    }


def test_five_fixed_and_none_broken_of_120_is_no_win(tmp_path):
    base = np.zeros(120, dtype=int)
    arm = base.copy()
    arm[:5] = 1
    runs = [
        factory.write_run(tmp_path, name, factory.sample_rows(name, "arc", scores, details=False))
        for name, scores in (("base", base), ("sft", arm))
    ]
    frame = compare(runs, draws=500)
    row = frame.iloc[1]
    assert (row["diff_low"], row["diff_high"]) == pytest.approx((0.0094, 0.0938), abs=1e-4)
    assert row["p"] == 0.0625 and row["mde"] == pytest.approx(0.05, abs=0.005)
    assert "SFT cannot be told from base" in verdict(frame)


def test_rows_of_mixed_types_are_read_too(tmp_path):
    runs = small(tmp_path)
    before = compare(runs, draws=100)
    edit(runs[1], lambda row: row.update(correct=bool(row["correct"])))
    pd.testing.assert_frame_equal(before, compare(runs, draws=100))


def test_feedback_scopes_are_not_averaged(tmp_path):
    frame = compare(factory.feedback_store(tmp_path), draws=500)
    assert set(frame["level"]) == {"task"}
    assert set(frame["scope"]) == {"in", "near", "out"}
    assert "in scope" in verdict(frame)


SUBJECTS = ["mmlu_abstract_algebra", "mmlu_anatomy", "mmlu_astronomy"]


def asked(tmp_path, groups: dict[str, list[str]]) -> list[factory.FakeRun]:
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
    frame = compare(asked(tmp_path, {"mmlu_stem": SUBJECTS, "hellaswag": ["hellaswag"]}), draws=100)
    assert levels_of(frame) == dict.fromkeys(SUBJECTS, "mmlu_stem") | {
        "hellaswag": "task",
        "mmlu_stem": "group",
        "all items": "pooled",
        "mean of tasks": "macro",
    }
    rows = frame[frame["arm"] == "base"].set_index("task")
    assert rows.loc["mean of tasks", "accuracy"] == pytest.approx(
        rows.loc[["mmlu_stem", "hellaswag"], "accuracy"].mean()
    )


def test_a_benchmark_of_one_task_counts_in_the_mean_under_any_name(tmp_path):
    frame = compare(asked(tmp_path, {"mmlu_stem": SUBJECTS, "sets/own.yaml": ["hellaswag"]}), draws=100)
    rows = frame[frame["arm"] == "ngd"].set_index("task")
    for column in ("accuracy", "difference"):
        assert rows.loc["mean of tasks", column] == pytest.approx(
            rows.loc[["mmlu_stem", "hellaswag"], column].mean()
        )
    bounds = rows.loc[["mmlu_stem", "hellaswag"]]
    half = np.linalg.norm(bounds["difference"] - bounds["diff_low"]) / 2
    assert rows.loc["mean of tasks", "difference"] - rows.loc["mean of tasks", "diff_low"] == pytest.approx(
        half
    )


def test_a_task_asked_for_twice_counts_once_with_the_larger_group(tmp_path):
    frame = compare(
        asked(tmp_path, {"mmlu_anatomy": ["mmlu_anatomy"], "sets/mmlu.yaml": SUBJECTS}), draws=100
    )
    assert levels_of(frame) == dict.fromkeys(SUBJECTS, "mmlu") | {"mmlu": "pooled"}


def test_a_store_without_groups_is_read_by_its_config_or_says_so(tmp_path, caplog):
    runs = asked(tmp_path, {"mmlu": SUBJECTS})
    for run in runs:
        result = json.loads((run.path / "result.json").read_text())
        (run.path / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k != "groups"}))
        (run.path / "config.yaml").write_text("tasks: [mmlu]\n")
    assert levels_of(compare(load_runs(tmp_path), draws=100))["mmlu"] == "pooled" and not caplog.records
    (runs[0].path / "config.yaml").write_text("tasks: [mmlu_stem]\n")
    assert "mmlu" not in levels_of(compare(load_runs(tmp_path), draws=100))
    assert "does not say what asked for mmlu_abstract_algebra, mmlu_anatomy, mmlu_astronomy" in caplog.text
    (runs[0].path / "config.yaml").unlink()
    caplog.clear()
    assert "mmlu" not in levels_of(compare(load_runs(tmp_path), draws=100))
    assert "does not say what asked for" in caplog.records[0].message and len(caplog.records) == 1
    with pytest.raises(UserError, match=r"base-\w+ does not say which tasks it was asked for"):
        publish(tmp_path, tmp_path / "study")


def made(arm: str, **numbers) -> dict:
    row = {
        "arm": arm,
        "label": arm,
        "run_id": arm,
        "task": "arc",
        "level": "task",
        "n": 1000,
        "accuracy": 0.5,
    }
    row |= {"scope": "", "mde": 0.02, "p": 0.01, "p_holm": 0.01, "fixed": 1, "broken": 1}
    return {name: float("nan") for name in COLUMNS} | row | numbers


GAIN = {"difference": 0.021, "diff_low": 0.003, "diff_high": 0.039}
LOSS = {"difference": -0.02, "diff_low": -0.03, "diff_high": -0.01}
NOTHING = {"difference": -0.001, "diff_low": -0.01, "diff_high": 0.01, "p": 0.9}
DISAGREE = {
    "n": 120,
    "difference": 0.042,
    "diff_low": 0.009,
    "diff_high": 0.094,
    "p": 0.0625,
    "fixed": 5,
    "broken": 0,
}
SAME = {
    "n": 120,
    "difference": 0.0,
    "diff_low": -0.031,
    "diff_high": 0.031,
    "p": 1.0,
    "fixed": 0,
    "broken": 0,
    "mde": 0.05,
}
CEILING = {"difference": 0.2, "diff_low": 0.1, "diff_high": 0.3}


@pytest.mark.parametrize(
    ("arm", "numbers", "said"),
    [
        ("ngd", GAIN, "NGD beats base by 2.1 points [0.3, 3.9] (Holm p 0.01)."),
        ("ngd", GAIN | {"p_holm": 0.2}, "does not hold after correction for the number of tests)"),
        ("ngd", LOSS, "NGD loses to base by 2.0 points [-3.0, -1.0]"),
        (
            "mode_finding",
            NOTHING,
            "Mode finding cannot be told from base: −0.1 points [-1.0, 1.0]; 1000 items show",
        ),
        ("sft", DISAGREE, "SFT cannot be told from base: +4.2 points [0.9, 9.4], p 0.062; 120 items show"),
        ("sft", SAME, "SFT scores every item as base does; 120 items show gains from about 5.0 on."),
        ("oracle", CEILING, "The ceiling, oracle, which may see the answer: +20.0 points"),
        ("base", {}, "Nothing stands beside base"),
    ],
)
def test_verdict_in_plain_words(arm, numbers, said):
    assert said in verdict(pd.DataFrame([made("base"), made(arm, **numbers)], columns=list(COLUMNS)))


def test_verdict_over_nothing():
    assert "Nothing to compare yet" in verdict(pd.DataFrame(columns=list(COLUMNS)))


def test_labels_tell_runs_of_one_arm_apart(tmp_path):
    scores = factory.scores_of("base", 5, 0.5)
    rows = factory.sample_rows("base", "arc", scores, details=False)
    runs = [
        factory.write_run(tmp_path, "base", rows, key="a"),
        factory.write_run(tmp_path, "base", rows, key="b"),
    ]
    assert len(set(run_labels(runs).values())) == 2
    runs[1].result |= {"limit": 100, "model": "olmoe"}
    assert run_labels(runs)[runs[1].run_id] == "base (model=olmoe, limit=100)"


def test_live_line_of_a_finished_arm(runs):
    base, ngd = (next(r for r in runs if r.arm == arm) for arm in ("base", "ngd"))
    assert live_line(base, base) == ""
    assert re.fullmatch(
        r"ngd against base: [+-]\d+\.\d points \[.*\], \d+ fixed, \d+ broken", live_line(ngd, base)
    )


def test_console_table_shows_text_as_it_is(tmp_path):
    base = factory.scores_of("base", 20, 0.5)
    runs = [
        factory.write_run(tmp_path, arm, factory.sample_rows(arm, "[bold]arc[/bold]", base, details=False))
        for arm in ("base", "[red]ngd")
    ]
    text = table_text(compare(runs, draws=100))
    assert "[red]ngd" in text
    assert console_table(compare(runs, draws=100)).row_count == 2
