"""`seeds=[0,1,2]`: arms that train run once for each as one experiment, on the same items, and come home as one row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3po_bench.analysis import statistics
from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.frames import records
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.analysis.tables import console_table, show_comparison
from c3po_bench.analysis.verdict import verdict
from c3po_bench.config import check_ranges
from c3po_bench.errors import UserError
from c3po_bench.evaluate import run as harness
from c3po_bench.report.build import write_report
from c3po_bench.store.reader import load_experiments
from tests import store_factory as factory
from tests.feedback.test_arms import config


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """Base, in context and DPO of three training seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    cfg = config(tiny, folder, ["base", "in_context", "dpo"], limit=3, seeds=[0, 1, 2], log_level="error")
    return harness.run(cfg)


def test_arms_that_train_run_with_each_seed_and_the_others_once(trained):
    assert [(run.arm, run.result["seed"]) for run in trained] == [
        *(("base", 0), ("in_context", 0)),
        *(("dpo", seed) for seed in (0, 1, 2)),
    ]
    drifts = [[row["drift"] for row in run.samples()] for run in trained if run.arm == "dpo"]
    assert drifts[0] != drifts[1] != drifts[2] != drifts[0]
    assert len({run.result["comparison_key"] for run in trained}) == 1
    hashes = [[row["doc_hash"] for row in run.samples()] for run in trained]
    assert all(own == hashes[0] for own in hashes)  # the same items, whatever the seed
    assert [run.provenance["seeds"] for run in trained][-1] == {"seed": 0, "training": 2}


def test_a_seed_of_its_own_gives_the_run_that_seed_alone_gives(trained, tiny: Path):
    """The first of `seeds` is the experiment's seed: the same run, not another."""
    folder = trained[0].path.parents[2]
    alone = harness.run(config(tiny, folder, ["base", "dpo"], limit=3, log_level="error"))
    assert alone[1].run_id == trained[2].run_id


def test_they_come_home_as_one_row(trained, capsys):
    store = trained[0].path.parents[1]
    rows = [row for row in records(compare(trained, one_row=True)) if row["arm"] == "dpo"]
    assert [row["task"] for row in rows] == ["in_scope", "near_scope", "out_of_scope"]
    assert {(row["label"], row["over"], row["groups"]) for row in rows} == {("dpo (3 seeds)", "seeds", 3)}
    measured = feedback_measures(trained, one_row=True)
    own = measured[
        (measured["arm"] == "dpo") & (measured["measure"] == "drift") & (measured["scope"] == "in")
    ]
    drifts = [np.mean([r["drift"] for r in run.samples() if r["scope"] == "in"]) for run in trained[2:]]
    assert own["mean"].item() == pytest.approx(np.mean(drifts)) and own["over"].item() == "seeds"
    low, high = statistics.t_interval(drifts)[1:]
    assert (own["low"].item(), own["high"].item()) == pytest.approx((low, high))
    newest = [e for e in load_experiments(store) if e["config"]["seeds"]]
    assert newest[0]["runs"] == [run.run_id for run in trained]
    show_comparison(trained, str(store), lambda *_: 0.0)
    assert write_report(store).exists() and "results:" in capsys.readouterr().out


def seeds_store(root: Path, rights: list[list[int]], base: list[int]):
    runs = factory.store(root, base=base)
    for seed, right in enumerate(rights):
        rows = factory.sample_rows("sft", "arc", np.array(right), details=False)
        runs.append(factory.write_run(root, "sft", rows, seed=seed, identity={"arm": "sft"}))
    return runs


def test_the_row_is_t_over_paired_differences_of_seeds(tmp_path):
    base = [1, 0] * 50
    rights = [[1] * (2 * n) + base[2 * n :] for n in (10, 13, 16)]  # 10, 13 and 16 fixed
    runs = seeds_store(tmp_path, rights, base)
    row = next(row for row in records(compare(runs, one_row=True)) if row["arm"] == "sft")
    assert (row["difference"], row["diff_low"], row["diff_high"]) == pytest.approx(
        (0.13, *statistics.t_interval([0.10, 0.13, 0.16])[1:])
    )
    assert row["p"] == pytest.approx(statistics.t_test([0.10, 0.13, 0.16])) and (
        row["fixed"],
        row["broken"],
    ) == (39, 0)
    assert row["by_seed"] == "+10.0 +13.0 +16.0" and row["test"] == "t"
    frame = compare(runs, one_row=True)
    assert "SFT (3 seeds) beats base by 13.0 points [5.5, 20.5]" in verdict(frame)
    assert "¶ over training seeds" in str(console_table(frame).caption)
    assert len(compare(runs)) == 4  # a row a run, unless asked


def test_two_seeds_have_no_interval(tmp_path):
    base = [1, 0] * 50
    runs = seeds_store(tmp_path, [[1] * 20 + base[20:], [1] * 26 + base[26:]], base)
    frame = compare(runs, one_row=True)
    row = next(row for row in records(frame) if row["arm"] == "sft")
    assert np.isnan(row["diff_low"]) and np.isnan(row["p"])
    assert "cannot be told from base: +11.5 points [two seeds: +10.0 +13.0]" in verdict(frame)
    assert "[two seeds: +10.0 +13.0] ¶" in " ".join(
        str(c) for column in console_table(frame).columns for c in column.cells
    )


def test_the_notes_example():
    assert statistics.t_interval([0.70, 0.76, 0.82]) == pytest.approx(
        (0.76, 0.610951737, 0.909048263), abs=1e-9
    )


def test_seeds_are_checked(tiny: Path, tmp_path: Path):
    for seeds in ([0, 0], [-1]):
        with pytest.raises(UserError, match="each once"):
            check_ranges(config(tiny, tmp_path, ["base"], seeds=seeds))
