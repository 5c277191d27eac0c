"""Cells of the page's tables: names, feedback that follows or leaks, what is left out where nothing stands in it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("altair")
from c3po_bench.analysis.ablation import ablation_table  # noqa: E402
from c3po_bench.analysis.compare import compare  # noqa: E402
from c3po_bench.analysis.measures import feedback_measures  # noqa: E402
from c3po_bench.analysis.overall import arms_frame  # noqa: E402
from c3po_bench.report import feedback  # noqa: E402
from c3po_bench.report.tables import (  # noqa: E402
    COLUMNS,
    ablation_rows,
    best_rows,
    comparison_rows,
    without_empty,
)
from c3po_bench.store.reader import load_runs  # noqa: E402
from tests import store_factory as factory  # noqa: E402


@pytest.mark.parametrize(
    ("label", "detail"),
    [
        ("ngd", ""),
        ("ngd (k=1)", "k=1"),
        ("ngd (k=1) [e8d54f]", "k=1 [e8d54f]"),
        ("ngd [e8d54f]", "[e8d54f]"),
        ("ngd (f=g(x), k=1)", "f=g(x), k=1"),
        ("ngd (f=g(x))", "f=g(x)"),
    ],
)
def test_settings_are_cut_from_a_label_whole(tmp_path, label, detail):
    frame = compare(factory.store(tmp_path, base=[0, 1] * 5, ngd=[1, 1] * 5), draws=50)
    frame = frame[frame["arm"] == "ngd"].assign(label=label)
    assert comparison_rows(frame, frame[:0])[0].cells[0].detail == detail


def scored(scope, values):
    """Rows of prompts of one scope with these scores."""
    rows = factory.feedback_rows("c3po", scope, len(values))
    return [row | {"score": value, "correct": abs(value)} for row, value in zip(rows, values, strict=True)]


def feedback_store(root, **arms):
    """Base, and arms that follow and leak on so many of 20 prompts in, near and out of scope."""
    for arm, counts in {"base": (0, 0, 0), **arms}.items():
        rows = []
        for scope, count in zip(("in", "near", "out"), counts, strict=True):
            rows += scored(scope, [1] * count + [0] * (20 - count))
        factory.write_run(root, arm, [row | {"arm": arm} for row in rows], backend="feedback")
    runs = load_runs(root)
    return runs, arms_frame(runs, feedback_measures(runs, draws=200))


def cells_of(arms):
    """The shown table by arm: its cells by column."""
    titles = [column.title for column in feedback.columns(arms)]
    return {row.cells[0].text: dict(zip(titles, row.cells, strict=True)) for row in feedback.rows(arms, {})}


def test_feedback_is_told_by_what_it_follows_and_where_it_leaks(tmp_path):
    _, arms = feedback_store(tmp_path, dpo=(18, 18, 18), c3po=(16, 2, 0))
    table = cells_of(arms)
    assert list(table) == ["base", "C3PO", "DPO"], "base, then by S_overall, not by S_in"
    c3po, dpo = table["C3PO"], table["DPO"]
    assert (c3po["Follows"].text, c3po["Leaks near"].text, c3po["Leaks out"].text) == ("80%", "10%", "0%")
    assert c3po["S overall"].text == f"{(0.8 + 1 - 0.05) / 2:.2f}" and dpo["S overall"].text == "0.50"
    assert c3po["Follows"].tone == dpo["Follows"].tone == "up"
    assert (
        dpo["Leaks near"].tone == dpo["Leaks out"].tone == "down" and "18 of 20" in dpo["Leaks near"].detail
    )
    tones = {cells[name].tone for cells in table.values() for name in ("Leaks near", "Leaks out")}
    assert "up" not in tones, "a leak is never good news"
    assert dpo["To C3PO"].text == "-0.38" and table["base"]["To C3PO"].text == ""


def test_rows_of_another_version_are_named_and_say_nothing(tmp_path):
    runs, _ = feedback_store(tmp_path, dpo=(18, 18, 18), c3po=(16, 2, 0), scd=(17, 0, 0))
    (old,) = [run for run in runs if run.arm == "scd"]
    (old.path / "result.json").write_text(json.dumps(old.result | {"versions": {"arm": 9}}))
    runs = load_runs(tmp_path)
    arms = arms_frame(runs, feedback_measures(runs, draws=200))
    table = cells_of(arms)
    assert "To C3PO" in table["scd"], "the best of those that are current"
    cells = table["scd"]
    assert "recorded with version 9" in cells["Arm"].detail and cells["To C3PO"].text == ""
    assert {cell.tone for cell in cells.values()} == {""}
    (figure,) = feedback.figures(arms)
    assert "scd" not in figure.alt


def test_training_seeds_are_one_row_and_not_set_against_each_other(tmp_path):
    base = [row | {"arm": "base"} for s in ("in", "near", "out") for row in scored(s, [0] * 20)]
    factory.write_run(tmp_path, "base", base, backend="feedback")
    for arm in ("c3po", "dpo"):
        for seed in range(3):
            rows = [
                row | {"arm": arm}
                for s in ("in", "near", "out")
                for row in scored(s, [1] * (9 + seed) + [0] * 10)
            ]
            factory.write_run(
                tmp_path, arm, rows, backend="feedback", seed=seed, identity={"training": {"seed": seed}}
            )
    runs = load_runs(tmp_path)
    arms = arms_frame(runs, feedback_measures(runs, draws=200, one_row=True))
    assert list(arms["label"])[1:] == ["c3po (3 seeds)", "dpo (3 seeds)"]
    assert arms["gap"].isna().all() and arms["leaks_out_count"].isna()[1:].all()


def test_base_lies_below_what_is_better_in_the_chart_of_feedback(tmp_path):
    _, arms = feedback_store(tmp_path, c3po=(14, 4, 2), dpo=(20, 20, 20))
    (figure,) = feedback.figures(arms)
    points = {}
    for layer in figure.spec()["layer"]:
        points |= {row["arm"]: row for row in layer["data"]["values"] if "arm" in row}

    def height(p):  # above the line of S_overall 0.5, which is S_in = leaks
        return p["follows"] - p["leaks"]

    assert height(points["C3PO"]) > height(points["base"]) == height(points["DPO"]) == 0
    for point in points.values():
        assert point["overall"] == pytest.approx((point["follows"] + 1 - point["leaks"]) / 2)
    names = {
        row["name"] for layer in figure.spec()["layer"] for row in layer["data"]["values"] if "name" in row
    }
    assert {"S 0.5", "S 0.9"} <= names and "C3PO: S overall 0.77" in figure.alt


def test_the_best_of_a_feedback_sweep_is_that_of_s_overall(tmp_path):
    base = [row | {"arm": "base"} for s in ("in", "near", "out") for row in scored(s, [0] * 20)]
    factory.write_run(tmp_path, "base", base, backend="feedback")
    for beta, counts in {1: (20, 20, 20), 2: (15, 0, 0), 3: (2, 0, 0)}.items():
        rows = [
            row
            for scope, count in zip(("in", "near", "out"), counts, strict=True)
            for row in scored(scope, [1] * count + [0] * (20 - count))
        ]
        factory.write_run(tmp_path, "c3po", rows, backend="feedback", settings={"beta": beta})
    runs = load_runs(tmp_path)
    arms = arms_frame(runs, feedback_measures(runs, draws=200))
    compared = compare(runs, draws=50)
    (best,) = best_rows(compared, compared[:0], arms)
    assert [cell.text for cell in best.cells[:4]] == ["C3PO", "beta=2", "3", "S 0.88"]
    listed = ablation_rows(ablation_table(runs, compared), ["beta"], arms)
    titles = [column["title"] for column in listed["columns"]]
    assert "accuracy %" not in titles and "difference" not in titles
    follows = {row[titles.index("beta")]: row[titles.index("follows")] for row in listed["rows"]}
    assert [follows[beta] for beta in (1, 2, 3)] == [1.0, 0.75, 0.1]


def test_columns_in_which_nothing_stands_are_left_out(tmp_path):
    frame = compare(factory.store(tmp_path, base=[0, 1] * 5, ngd=[1, 1] * 5), draws=50)
    columns, rows = without_empty(COLUMNS, comparison_rows(frame, frame[:0]))
    titles = [column.title for column in columns]
    assert "Against control" not in titles and "p(right)" not in titles and "Difference" in titles
    assert {len(row.cells) for row in rows} == {len(columns)}
