"""The console's tables and lines: signs, stars and counts stand where they belong, a sweep has a row a run."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from c3po_bench.analysis.ablation import ablation_table
from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.live import live_line
from c3po_bench.analysis.tables import (
    WIDE,
    cells,
    console_table,
    feedback_table,
    gap_table,
    overall_rows,
    sweep_table,
)
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory

NAN = float("nan")


def text_of(table: Table, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


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
        "n": 40,
        "accuracy": 0.75,
        "low": 0.6,
        "high": 0.86,
        "difference": 0.125,
        "diff_low": 0.01,
        "diff_high": 0.25,
        "p": 0.02,
        "p_holm": 0.2,
        "fixed": 7,
        "broken": 2,
        "seconds_per_item": 0.5,
        "prompt_differs": False,
        "over": "items",
    }
    return common | more


SHARED = "s/item: without what is done once (references, training)"


def caption(*rows: dict) -> str:
    return str(console_table(pd.DataFrame(rows)).caption)


def test_a_row_in_words():
    words = ["ngd", "40", "75.0%", "[60.0, 86.0]", "+12.5 [1.0, 25.0]", "0.02", "7/2", "", "0.5"]
    assert list(cells(row()).values()) == words
    assert cells(row(difference=-0.025))["difference"].startswith("-2.5 ")
    base = row("base", difference=NAN, diff_low=NAN, diff_high=NAN, p=NAN, p_holm=NAN)
    assert not any(cells(base)[name] for name in ("difference", "p", "fixed/broken", "p(right)"))


def test_a_star_is_for_what_holds_after_correction():
    assert cells(row(p=0.02, p_holm=0.06))["p"] == "0.02" and "Holm" not in caption(row(p=0.02, p_holm=0.06))
    assert cells(row(p=0.02, p_holm=0.04))["p"] == "0.02*"
    assert (
        caption(row(), row(p_holm=0.04))
        == f"* below 0.05 after Holm's correction; intervals are 95% over items; {SHARED}"
    )


def test_what_intervals_generalize_over_is_said():
    shared = row(over="clusters", test="sign-flip")
    assert cells(shared)["difference"].endswith(" [1.0, 25.0] §") and cells(shared)["p"] == "0.02 ‡"
    assert caption(row(), shared).endswith(
        f"over items; § over groups of items that share a source, by t; {SHARED}"
    )
    assert "§" not in caption(row())


def test_a_difference_without_variance_has_no_bounds():
    assert cells(row(diff_low=NAN, diff_high=NAN))["difference"].endswith(" [no variance]")


def test_a_star_needs_interval_and_both_p():
    starred = row(p=0.02, p_holm=0.04)
    assert [cells(starred | more)["p"] for more in ({}, {"diff_low": -0.01}, {"p": 0.06})] == [
        "0.02*",
        "0.02",
        "0.06",
    ]


def test_tasks_within_a_benchmark_are_counted_not_shown():
    parts = [row(task=f"mmlu_{i}", group="mmlu") for i in range(3)]
    table = console_table(pd.DataFrame([row(task="mmlu", level="group"), *parts, *parts]))
    assert table.row_count == 1 and str(table.caption).startswith("3 tasks of these benchmarks one by one")


def test_an_arm_that_changes_the_prompt_is_marked():
    text = text_of(console_table(pd.DataFrame([row("base"), row(prompt_differs=True)])))
    assert "ngd †" in text and "its prompt is not the base's" in text


def test_names_are_shown_as_they_are_never_read_as_markup(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    runs = factory.store(tmp_path, "[bold]arc[/bold]", **{"base": scores, "[red]ngd": scores})
    table = console_table(compare(runs, draws=100))
    assert "[red]ngd" in text_of(table) and table.row_count == 2


def test_a_finished_run_in_one_line_over_all_its_items(tmp_path):
    """Two tasks: five fixed of ten in one, one broken of ten in the other."""
    answers = {"base": {"a": [0] * 5 + [1] * 5, "b": [1] * 10}, "ngd": {"a": [1] * 10, "b": [0] + [1] * 9}}
    runs = {}
    for arm, tasks in answers.items():
        parts = [factory.sample_rows(arm, t, np.array(own), details=False) for t, own in tasks.items()]
        runs[arm] = factory.write_run(tmp_path, arm, [row for part in parts for row in part])
    line = live_line(runs["ngd"], runs["base"])
    assert re.fullmatch(r"ngd against base: \+20\.0 points \[.*\], 5 fixed, 1 broken", line)
    assert live_line(runs["base"], runs["base"]) == ""


def test_the_line_of_a_feedback_run_says_of_which_scope_it_speaks(tmp_path):
    runs = [
        factory.write_run(tmp_path, arm, factory.feedback_rows(arm, "in", 20), backend="feedback")
        for arm in ("base", "c3po")
    ]
    assert live_line(runs[1], runs[0]).startswith("c3po against base in scope: ")


def test_the_table_of_feedback_has_a_row_an_arm_the_best_first(tmp_path):
    runs = factory.feedback_store(tmp_path, items=20)
    for width in (WIDE, 80):
        text = text_of(feedback_table(runs, width), width if width < WIDE else 160)
        assert text.count("C3PO") == 1 and "leaks out" in text and "accuracy" not in text and "…" not in text
    table = feedback_table(runs)
    assert table.row_count == len(runs) and str(next(iter(table.columns[0].cells))) == "base"
    best = [float(cell.split()[0]) for cell in map(str, table.columns[4].cells)][1:]
    assert best == sorted(best, reverse=True)


def test_at_80_characters_no_number_is_cut(tmp_path):
    write(tmp_path, ["a_task_of_a_rather_long_name", "b"])
    frame = compare(load_runs(tmp_path), draws=100)
    text = text_of(console_table(frame, 80), 80)
    assert "…" not in text and "accuracy" in text and "difference" in text and "s/item" not in text
    assert max(map(len, text.splitlines())) <= 80
    wide = text_of(console_table(frame), 160)
    assert "…" not in wide and "s/item" in wide and "fixed/broken" in wide


def test_a_share_without_bounds_is_shown_and_one_that_is_none_left_empty():
    shares = {
        "arm": "ngd",
        "n": 4,
        "accuracy": 0.5,
        "share": 0.5,
        "low": -np.inf,
        "high": 1.0,
        "distance": NAN,
    }
    none = shares | dict.fromkeys(("share", "low", "high"), NAN)
    text = text_of(gap_table(pd.DataFrame([shares, none])))
    assert "[-inf, 1.00]" in text and "nan" not in text


def write(root, tasks, groups=None):
    for arm in ("base", "ngd"):
        scores = {task: factory.scores_of(arm, 20, 0.5) for task in tasks}
        rows = [row for t in tasks for row in factory.sample_rows(arm, t, scores[t], details=False)]
        settings = {"k": 3} if arm != "base" else {}
        factory.write_run(root, arm, rows, key="|".join(tasks), settings=settings, groups=groups)


def sweep(root) -> tuple[set, list[str], str]:
    """The rows of a store's sweep table as (task, arm, n), its columns and its caption."""
    frame = ablation_table(load_runs(root))
    table = sweep_table(frame)
    rows = {(row["task"], row["arm"], row["n"]) for row in overall_rows(frame).to_dict("records")}
    return rows, [str(column.header) for column in table.columns], str(table.caption)


def test_a_benchmark_of_many_tasks_is_one_row_of_a_sweep(tmp_path):
    write(tmp_path, ["mmlu_a", "mmlu_b", "mmlu_c"], {"mmlu": ["mmlu_a", "mmlu_b", "mmlu_c"]})
    rows, columns, caption = sweep(tmp_path)
    assert rows == {("mmlu", "base", 60), ("mmlu", "ngd", 60)}
    assert "task" not in columns and caption == "accuracy: mmlu"


def test_several_tasks_of_a_sweep_are_summed_up(tmp_path):
    write(tmp_path, ["arc", "piqa"])
    rows, columns, caption = sweep(tmp_path)
    assert {(task, arm) for task, arm, _ in rows} == {("mean of tasks", "base"), ("mean of tasks", "ngd")}
    assert "task" not in columns and caption == "accuracy: mean of tasks"


def test_cells_of_other_tasks_are_not_left_out(tmp_path):
    write(tmp_path, ["arc", "piqa"])
    write(tmp_path, ["sciq"])
    write(tmp_path, ["mmlu_a", "mmlu_b"], {"mmlu": ["mmlu_a", "mmlu_b"]})
    rows, columns, caption = sweep(tmp_path)
    assert {task for task, _, _ in rows} == {"mean of tasks", "sciq", "mmlu"} and len(rows) == 6
    assert "task" in columns and caption == "accuracy"


def test_a_cell_without_limit_is_told_from_the_others(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    for arm, settings in [("base", {}), *(("ngd", {"reference_size": size}) for size in (200, None))]:
        rows = factory.sample_rows(arm, "arc", scores, details=False)
        factory.write_run(tmp_path, arm, rows, settings=settings)
    column = sweep_table(ablation_table(load_runs(tmp_path))).columns[0]
    assert column.header == "reference_size" and sorted(map(str, column.cells)) == ["", "200", "none"]


def test_tables_leave_names_their_room(tmp_path):
    """On a middling terminal the columns that are wanted least give way, not the arms' names."""
    write(tmp_path, ["arc"])
    frame = compare(load_runs(tmp_path), draws=100)
    frame["label"] = [f"{label}_with_a_name_of_some_length" for label in frame["label"]]
    for width, there, gone in ((112, "p", "s/item"), (80, "p", "fixed/broken"), (160, "s/item", "")):
        text = text_of(console_table(frame, width), width)
        heading = text.splitlines()[1]
        assert there in heading and (not gone or gone not in heading), heading
        assert width < 112 or "ngd_with_a_name_of_some_length" in text
