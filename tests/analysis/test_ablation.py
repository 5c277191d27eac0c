"""Ablation tables of synthetic sweeps: types, gaps, files, and cost at 2,000 runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from c3po_bench.analysis.ablation import ablation_table, axes, leading_number, shown, write_table
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    factory.sweep_store(root, cells=100, items=50, skip=7)
    return root


def test_rows_are_typed_and_gaps_are_marked(sweep):
    table = ablation_table(load_runs(sweep), results_dir=sweep)
    assert axes(table) == ["layers", "experts", "neighbors"]
    assert (table["status"] == "missing").sum() == 15
    assert (table["status"] == "done").sum() == 86  # base and 85 cells
    missing = table[table["status"] == "missing"]
    assert missing["value"].isna().all() and missing["neighbors"].notna().all()
    cells = table[table["arm"] == "ngd"]
    assert not cells.duplicated(["layers", "experts", "neighbors"]).any() and len(cells) == 100
    kinds = {"neighbors": "Int64", "steps": "Int64", "value": "float64", "kernel": "str", "p_holm": "float64"}
    assert {name: str(table[name].dtype) for name in kinds} == kinds


def test_one_way_sweeps_imply_no_grid(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    cells = [{"layers": n, "k": 3} for n in (1, 3, 5, 7)] + [{"layers": 5, "k": k} for k in (1, 5, 7, 9)]
    factory.write_run(tmp_path, "base", factory.sample_rows("base", "arc", scores, details=False))
    for cell in cells:
        factory.write_run(
            tmp_path, "ngd", factory.sample_rows("ngd", "arc", scores, details=False), settings=cell
        )
    table = ablation_table(load_runs(tmp_path), results_dir=tmp_path)
    assert (table["status"] == "missing").sum() == 0


def cells_of(root, cells, arm="ngd", model="smolmoe"):
    """The ablation table of a base and one arm under these settings, beside what `root` has already."""
    scores = factory.scores_of("base", 20, 0.5)
    for name, settings in [("base", {}), *((arm, cell) for cell in cells)]:
        rows = factory.sample_rows(name, "arc", scores, details=False)
        factory.write_run(root, name, rows, settings=settings, key=model, model=model)
    return ablation_table(load_runs(root))


def test_flops_that_nobody_counted_are_no_zero(tmp_path):
    rows = factory.sample_rows("base", "arc", factory.scores_of("base", 20, 0.5), details=False)
    for seed, counted in enumerate(([None, None], [None, 5], [2, 5])):
        phases = {
            name: {"seconds": 0.5, "flops": f} for name, f in zip(("read", "score"), counted, strict=True)
        }
        cost = {"seconds": 1.0, "items": 20, "phases": phases, "peak_memory_bytes": 1}
        factory.write_run(tmp_path, "base", rows, seed=seed, cost=cost)
    table = ablation_table(load_runs(tmp_path)).sort_values("seed")
    assert table["flops"].isna().tolist() == [True, False, False] and table["flops"].tolist()[1:] == [5, 7]


def test_settings_that_follow_another_span_no_grid(tmp_path):
    tuned = [{"layers": n, "lr": rate} for n, rate in ((1, 0.1), (3, 0.1), (5, 0.01), (7, 0.01))]
    together = [{"rank": n, "start_rank": n} for n in (8, 16)]
    for name, cells in {"tuned": tuned, "together": together}.items():
        table = cells_of(tmp_path / name, cells)
        assert set(table["status"]) == {"done"} and len(axes(table)) == 2
    table = cells_of(tmp_path / "grid", [cell | {"k": k} for cell in tuned for k in (1, 3, 5)][:-1])
    missing = table[table["status"] == "missing"]
    assert missing[["layers", "neighbors", "learning_rate"]].to_numpy().tolist() == [["7", 5, 0.01]]


def test_scoring_model_and_limit_are_settings(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    for rule, shots, model, limit in (
        ("cloze", 0, "A", 20),
        ("cloze", 5, "A", 20),
        ("letters", 5, "B", None),
    ):
        for arm in ("base", "ngd"):
            rows = factory.sample_rows(arm, "arc", scores, details=False)
            scoring = {"rule": rule, "num_fewshot": shots, "permute_options": False, "seed": 3}
            scored = {"scoring": scoring, "model": model, "limit": limit}
            factory.write_run(tmp_path, arm, rows, key=f"{rule} {shots}", **scored)
    table = ablation_table(load_runs(tmp_path))
    assert axes(table) == ["model", "limit", "num_fewshot", "rule"]
    assert set(table["seed"]) == {0} and not table["permute_options"].any()
    assert not table.duplicated(["arm", *axes(table)]).any()


def test_shards_that_are_not_merged_yet_are_told_apart(tmp_path):
    runs = []
    for shard in ("1-of-2", "2-of-2"):
        for arm in ("base", "ngd"):
            rows = factory.sample_rows(arm, "arc", factory.scores_of("base", 20, 0.5), details=False)
            runs.append(factory.write_run(tmp_path / "shards" / shard, arm, rows, key=shard))
    table = ablation_table(runs)
    assert axes(table) == ["shard"] and set(table["shard"]) == {"1/2", "2/2"}


def test_none_is_a_value_of_arms_that_have_the_setting(tmp_path):
    cells_of(tmp_path, [{"k": 1}, {"k": 3}], arm="knn_vote")
    table = cells_of(tmp_path, [{"reference_size": 200}, {"reference_size": None}])
    assert axes(table) == ["neighbors", "reference_size"]
    assert str(table["reference_size"].dtype) == "Int64"
    sizes = [(row["arm"], row["reference_size"]) for row in shown(table, axes(table)) if row["arm"] == "ngd"]
    assert sorted(sizes, key=str) == [("ngd", "none"), ("ngd", 200)]
    assert all(pd.isna(row["neighbors"]) for row in shown(table, axes(table)) if row["arm"] == "ngd")


def test_each_model_has_a_grid_of_its_own(tmp_path):
    cells = [{"layers": n, "k": k} for n in (1, 5) for k in (1, 3)]
    cells_of(tmp_path, cells, model="A")
    table = cells_of(tmp_path, cells[:-1], model="B")
    missing = table[table["status"] == "missing"]
    assert missing[["model", "layers", "neighbors"]].to_numpy().tolist() == [["B", "5", 3]]


def test_run_folders_without_result_are_listed(tmp_path):
    factory.sweep_store(tmp_path, cells=3, items=5)
    (tmp_path / "runs" / "ngd-0123456789ab").mkdir()
    table = ablation_table(load_runs(tmp_path), results_dir=tmp_path)
    row = table[table["status"] == "unfinished"].iloc[0]
    assert (row["arm"], row["run_id"]) == ("ngd", "ngd-0123456789ab")


def test_files_read_back_with_their_types(sweep, tmp_path):
    table = ablation_table(load_runs(sweep), results_dir=sweep)
    csv, parquet = write_table(table, tmp_path / "tables" / "ablation")
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), table, check_dtype=False)
    assert [str(t) for t in pd.read_parquet(parquet).dtypes] == [str(t) for t in table.dtypes]
    assert len(pd.read_csv(csv)) == len(table)


def test_settings_of_an_arm_become_columns_and_other_metrics_rows(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    factory.write_run(tmp_path, "base", factory.sample_rows("base", "arc", scores, details=False))
    factory.write_run(
        tmp_path,
        "ngd",
        factory.sample_rows("ngd", "arc", scores, details=False),
        settings={"layers": "last:5", "experts": "top:20", "beta": 0.1, "dense": True},
        metrics={"arc": {"acc": 0.5, "n": 20, "recovered": 0.9}, "gap": {"share": 0.5, "n": 20}},
    )
    table = ablation_table(load_runs(tmp_path))
    row = table[table["metric"] == "recovered"].iloc[0]
    assert (row["value"], row["beta"], row["n_layers"], row["n_experts"]) == (0.9, 0.1, 5, 20)
    assert str(table["dense"].dtype) == "boolean" and row["layers"] == "last:5"
    row = table[table["level"] == "summary"].iloc[0]
    assert (row["task"], row["metric"], row["value"], row["n"]) == ("gap", "share", 0.5, 20)


def test_settings_of_a_plugin_are_whatever_they_are(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    factory.write_run(tmp_path, "base", factory.sample_rows("base", "arc", scores, details=False))
    for cell in (
        {"k": 1.5, "steps": "auto", "where": [1, 2], "label": 1},
        {"k": 3, "steps": 10, "where": [3], "label": 2},
    ):
        factory.write_run(
            tmp_path, "ngd", factory.sample_rows("ngd", "arc", scores, details=False), settings=cell
        )
    table = ablation_table(load_runs(tmp_path))
    cells = table[table["arm"] == "ngd"].sort_values("neighbors")
    assert axes(table) == ["neighbors", "steps", "where"]
    assert list(cells["neighbors"]) == [1.5, 3] and list(cells["steps"]) == ["auto", "10"]
    assert list(cells["where"]) == ["1,2", "3"] and all(cells["label"].str.startswith("ngd"))


@pytest.mark.parametrize(
    ("setting", "size"),
    [("last:5", 5), ("top:20", 20), ("0,3,7", 3), ("first:2+last:3", 5), (7, 7), ("7", 7), ("1e-05", 1e-5)],
)
def test_size_of_a_setting(setting, size):
    assert leading_number(setting) == size


def test_all_has_no_size():
    assert leading_number("all") != leading_number("all")


PROBE = """
import sys, time
from c3po_bench.runtime.resources import peak_resident
from c3po_bench.store.reader import load_runs
from c3po_bench.analysis.ablation import ablation_table
start = time.process_time()
table = ablation_table(load_runs(sys.argv[1]), results_dir=sys.argv[1])
print(time.process_time() - start, len(table), peak_resident())
"""


@pytest.mark.slow
def test_2000_runs_of_1000_items_take_less_than_10_seconds_and_2_gib(tmp_path):
    factory.sweep_store(tmp_path, cells=2000, items=1000)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROBE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    seconds, rows, memory = map(float, done.stdout.split())
    assert rows == 2001 and seconds < 10 and memory < 2 << 30
