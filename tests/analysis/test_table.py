"""The console's table and line: signs, stars and counts stand where they belong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from c3po_bench.analysis import paired
from c3po_bench.analysis.compare import COLUMNS, typed
from c3po_bench.analysis.table import cells, console_table, live_line
from tests import store_factory as factory

NAN = float("nan")


def row(arm: str = "ngd", **more) -> dict:
    """One row of `compare`: seven fixed, two broken."""
    common = {
        "arm": arm,
        "label": arm,
        "run_id": arm,
        "task": "arc",
        "level": "task",
        "group": "",
        "test": "mcnemar",
    }
    common |= {
        "n": 40,
        "accuracy": 0.75,
        "low": 0.6,
        "high": 0.86,
        "difference": 0.125,
        "diff_low": 0.01,
        "diff_high": 0.25,
    }
    return (
        common
        | {
            "p": 0.02,
            "p_holm": 0.2,
            "fixed": 7,
            "broken": 2,
            "seconds_per_item": 0.5,
            "prompt_differs": False,
        }
        | more
    )


def caption(*rows: dict) -> str:
    return str(console_table(pd.DataFrame(rows)).caption)


def test_a_row_in_words():
    assert cells(row()) == [
        "ngd",
        "40",
        "75.0%",
        "[60.0, 86.0]",
        "+12.5",
        "[1.0, 25.0]",
        "0.02",
        "7/2",
        "0.5",
    ]
    assert cells(row(difference=-0.025))[4] == "-2.5"
    base = row("base", difference=NAN, diff_low=NAN, diff_high=NAN, p=NAN, p_holm=NAN)
    assert cells(base)[4:8] == ["", "", "", ""]


def test_a_star_is_for_what_holds_after_correction():
    assert cells(row(p=0.02, p_holm=0.06))[6] == "0.02" and "Holm" not in caption(row(p=0.02, p_holm=0.06))
    assert cells(row(p=0.02, p_holm=0.04))[6] == "0.02*"
    assert caption(row(), row(p_holm=0.04)) == "* below 0.05 after Holm's correction"


def test_tasks_within_a_benchmark_are_counted_not_shown():
    parts = [row(task=f"mmlu_{i}", group="mmlu") for i in range(3)]
    table = console_table(pd.DataFrame([row(task="mmlu", level="group"), *parts, *parts]))
    assert table.row_count == 1 and str(table.caption).startswith("3 tasks of these benchmarks one by one")


def test_tasks_within_benchmarks_are_corrected_on_their_own():
    rows = [row(task="mmlu", level="group", p=0.01), row(task="arc", p=0.01)]
    rows += [row(task=f"mmlu_{i}", group="mmlu", p=0.01) for i in range(4)] + [row(level="pooled", p=0.01)]
    found = typed([{name: NAN for name in COLUMNS} | r for r in rows], COLUMNS)["p_holm"]
    assert found.tolist() == pytest.approx([0.02, 0.02, 0.04, 0.04, 0.04, 0.04, 0.01])


def test_a_finished_run_in_one_line_over_all_its_items(tmp_path):
    """Two tasks: five fixed of ten in one, one broken of ten in the other."""
    answers = {"base": ([0] * 5 + [1] * 5, [1] * 10), "ngd": ([1] * 10, [0] + [1] * 9)}
    runs = {}
    for arm, tasks in answers.items():
        parts = [
            factory.sample_rows(arm, task, np.array(tasks["ab".index(task)]), details=False) for task in "ab"
        ]
        runs[arm] = factory.write_run(tmp_path, arm, [row for part in parts for row in part])
    said = live_line(runs["ngd"], runs["base"])
    assert said.startswith("ngd against base: +20.0 points [")
    assert said.endswith("], 5 fixed, 1 broken")
    assert live_line(runs["base"], runs["base"]) == ""


def test_a_sign_flip_p_is_never_zero():
    assert paired.sign_flip([0.5] * 60, draws=99) == pytest.approx(1 / 100)
    assert paired.sign_flip([0.3, -0.3], draws=99) == 1.0, "every flip is as extreme as no difference"


def test_flips_that_differ_by_rounding_alone_count_as_alike():
    """By hand: 14 of the 16 ways to flip these four have a mean as far from 0 as theirs, four of them but for rounding."""
    assert paired.sign_flip([0.9, -0.3, 0.6, -0.6], draws=20_000) == pytest.approx(14 / 16, abs=0.02)
