"""Equal footing: tasks at chance carry no verdict, averages say what they are made of, studies are counted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.footing import chance_of, studies_note
from c3po_bench.analysis.frames import records
from c3po_bench.analysis.tables import console_table
from c3po_bench.analysis.verdict import direction, verdict
from c3po_bench.report.tables import comparison_rows, marks
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory

ROOT = Path(__file__).resolve().parents[2]


def test_chance_is_that_of_the_items_options():
    tasks = np.array(["own"] * 4)
    assert chance_of(np.array([0.0, 1, 1, 0]), np.array([4.0, 4, 2, 2]), tasks) == pytest.approx(0.375)
    assert np.isnan(chance_of(np.array([0.0, 1]), np.array([0.0, 0]), tasks[:2]))  # written answers
    assert np.isnan(chance_of(np.array([0.5, 1]), np.array([4.0, 4]), tasks[:2]))  # graded
    unknown = np.array([np.nan] * 4)  # a record that does not say
    assert np.isnan(chance_of(np.array([0.0, 1, 1, 0]), unknown, tasks))
    stock = np.array(["mmlu_anatomy", "piqa", "arc_easy", "winogrande"])
    assert chance_of(np.array([0.0, 1, 1, 0]), unknown, stock) == pytest.approx((0.25 + 0.5 + 0.25 + 0.5) / 4)


def at_chance(root, **arms):
    """Base right on a quarter of 200 items with four options, NGD on 40 more."""
    base = [1] * 50 + [0] * 150
    return compare(factory.store(root, base=base, ngd=[1] * 90 + [0] * 110, **arms))


def test_a_task_at_chance_is_shown_and_carries_no_verdict(tmp_path):
    frame = at_chance(tmp_path)
    base, ngd = records(frame)
    assert base["chance"] == 0.25 and ngd["p_holm"] < 1e-6 and direction(ngd) == 0
    assert verdict(frame) == (
        "On arc base is not above chance (25.0% [19.5, 31.4], chance 25.0%), nor is a ceiling: no verdict."
    )
    table = console_table(frame)
    assert "~ base is not above chance" in str(table.caption)
    assert [str(cell) for cell in list(table.columns)[2].cells] == ["25.0% ~", "45.0% ~"]
    rows = comparison_rows(frame, frame[:0])
    assert [row.cells[4].tone for row in rows] == ["", ""] and rows[0].cells[3].detail.endswith("~")
    assert "no verdict" in marks(frame)


def test_a_ceiling_that_is_above_chance_lets_a_task_speak(tmp_path):
    frame = at_chance(tmp_path / "a", oracle=[1] * 180 + [0] * 20)
    assert verdict(frame).startswith("NGD beats base by 20.0 points")
    low = at_chance(tmp_path / "b", oracle=[1] * 52 + [0] * 148)
    assert "no verdict" in verdict(low) and "beats" not in verdict(low)


def test_an_average_names_the_task_that_makes_up_most_of_it(tmp_path):
    for arm, right in (("base", 0), ("ngd", 1)):
        rows = factory.sample_rows(arm, "big", np.array([1] * 60 + [0] * 29 + [right]), details=False)
        rows += factory.sample_rows(arm, "small", np.array([1] * 10), details=False)
        factory.write_run(tmp_path, arm, rows)

    frame = compare(load_runs(tmp_path))
    assert set(frame.loc[frame["level"] == "pooled", "mostly"]) == {"big (90%)"}
    assert "Of all items most are big (90%)." in verdict(frame)
    assert "all items, most big (90%)" in [
        str(cell) for cell in next(iter(console_table(frame).columns)).cells
    ]
    assert "most: big (90%)" in {row.cells[1].detail for row in comparison_rows(frame, frame[:0])}


def test_studies_are_counted():
    assert studies_note(1) == "" and studies_note(3).startswith(
        "3 experiments are in this store: p is corrected"
    )
    studies = sorted(path.parent for path in (ROOT / "results").glob("*/comparison.csv"))
    arms = sum(len(list((study / "runs").iterdir())) for study in studies)
    said = re.search(
        r"(\d+) studies of (\d+) runs", (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    )
    assert said and (int(said[1]), int(said[2])) == (len(studies), arms)
