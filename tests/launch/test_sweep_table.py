"""What a sweep prints: a row a run, never one for each of a benchmark's many tasks."""

from __future__ import annotations

from c3po_bench.analysis.ablation import ablation_table
from c3po_bench.launch.table import console_rows, overall_rows
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory


def write(root, tasks, groups=None, arms=("base", "ngd")):
    for arm in arms:
        rows = [
            row
            for t in tasks
            for row in factory.sample_rows(arm, t, factory.scores_of(arm, 20, 0.5), details=False)
        ]
        factory.write_run(
            root, arm, rows, key="|".join(tasks), settings={"k": 3} if arm != "base" else {}, groups=groups
        )


def shown(root):
    frame = ablation_table(load_runs(root))
    table = console_rows(frame)
    found = {(row["task"], row["arm"], row["n"]) for row in overall_rows(frame).to_dict("records")}
    return found, [column.header for column in table.columns], str(table.caption)


def test_a_benchmark_of_many_tasks_is_one_row(tmp_path):
    write(tmp_path, ["mmlu_a", "mmlu_b", "mmlu_c"], {"mmlu": ["mmlu_a", "mmlu_b", "mmlu_c"]})
    found, columns, caption = shown(tmp_path)
    assert found == {("mmlu", "base", 60), ("mmlu", "ngd", 60)}
    assert "task" not in columns and caption == "accuracy: mmlu"


def test_several_tasks_are_summed_up(tmp_path):
    write(tmp_path, ["arc", "piqa"])
    found, columns, caption = shown(tmp_path)
    assert {(task, arm) for task, arm, _ in found} == {("mean of tasks", "base"), ("mean of tasks", "ngd")}
    assert "task" not in columns and caption == "accuracy: mean of tasks"


def test_cells_of_other_tasks_are_not_left_out(tmp_path):
    write(tmp_path, ["arc", "piqa"])
    write(tmp_path, ["sciq"])
    write(tmp_path, ["mmlu_a", "mmlu_b"], {"mmlu": ["mmlu_a", "mmlu_b"]})
    found, columns, caption = shown(tmp_path)
    assert {task for task, _, _ in found} == {"mean of tasks", "sciq", "mmlu"} and len(found) == 6
    assert "task" in columns and caption == "accuracy"


def test_a_cell_without_limit_is_told_from_the_others(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    for arm, settings in (("base", {}), ("ngd", {"reference_size": 200}), ("ngd", {"reference_size": None})):
        factory.write_run(
            tmp_path, arm, factory.sample_rows(arm, "arc", scores, details=False), settings=settings
        )
    column = console_rows(ablation_table(load_runs(tmp_path))).columns[0]
    assert column.header == "reference_size" and sorted(map(str, column.cells)) == ["", "200", "none"]
