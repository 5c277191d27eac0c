"""The calibration weight: known gaps are recovered, controls recover nothing."""

from __future__ import annotations

import pandas as pd
import pytest

from c3po_bench.analysis.measures import share_recovered
from c3po_bench.analysis.sensitivity import RETRIEVAL, publish
from c3po_bench.models.embedded.planted_world import distance
from c3po_bench.store.reader import load_runs


def shares(c3po, folder, *more: str):
    done = c3po(
        "+experiment=planted", f"results_dir={folder}", "tracking=disabled", "threads=1", *more, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert "share of the planted gap recovered" in done.stdout
    return share_recovered(load_runs(folder), distance).set_index("arm")


def test_a_real_gain_and_a_real_null(warm, tmp_path):
    table = shares(
        warm, tmp_path, "limit=80", "arms=[base,planted_optimum,kernel_regression,ngd_random_neighbors]"
    )
    assert table.loc["base", "accuracy"] <= 0.65 and table.loc["planted_optimum", "accuracy"] >= 0.98
    assert table.loc["planted_optimum", "distance"] < 1e-3
    assert table.loc["kernel_regression", "share"] >= 0.95
    assert table.loc["ngd_random_neighbors", "low"] <= 0


def test_the_sensitivity_of_a_tiny_grid(warm, tmp_path):
    """Gap and retrieval of a set are those asked for, and kernel regression follows its neighbors."""
    arms = "arms=[base,planted_optimum,kernel_regression,kernel_regression_random_neighbors]"
    store = f"results_dir={tmp_path / 'store'}"
    done = warm("+experiment=sensitivity", store, "tracking=disabled", "threads=1", "limit=24", arms)
    assert done.returncode == 0, done.stderr
    publish([str(tmp_path / "store")], tmp_path / "study")
    frame = pd.read_csv(tmp_path / "study" / "sensitivity.csv")
    assert set(frame["method"]) == {"kernel_regression"} and len(frame) == 4 * 13
    none, most = (frame[frame["wrong"] == wrong] for wrong in (0, 0.75))
    assert (none["gap"] <= 0.05).all() and (most["gap"] >= 0.3).all()
    right, wrong = (
        frame[frame["setting"] == setting] for setting, share in RETRIEVAL.items() if share in (1, 0.25)
    )
    assert (right["gain"] >= right["gap"] - 0.05).all()
    assert wrong["gain"].mean() < 0 < right["gain"].mean()


@pytest.mark.slow
def test_sigmoid_scores_have_the_same_gap(warm, tmp_path):
    arms = "arms=[base,planted_optimum,kernel_regression,ngd,oracle,ngd_random_neighbors,random_pathway]"
    table = shares(warm, tmp_path, "model=planted_sigmoid", "limit=80", arms)
    assert table.loc["base", "accuracy"] <= 0.65 and table.loc["planted_optimum", "accuracy"] >= 0.98
    for method in ("kernel_regression", "ngd", "oracle"):
        assert table.loc[method, "share"] >= 0.9, method
    for control in ("ngd_random_neighbors", "random_pathway"):
        assert table.loc[control, "low"] <= 0, control


@pytest.mark.slow
def test_every_arm_at_full_size(c3po, tmp_path):
    table = shares(c3po, tmp_path)
    assert (table["n"] == 600).all()
    assert table.loc["base", "accuracy"] <= 0.60 and table.loc["planted_optimum", "accuracy"] >= 0.98
    assert table.loc["kernel_regression", "share"] >= 0.95
    assert table.loc["ngd", "share"] >= 0.80
    assert table.loc["oracle", "share"] >= 0.90
    for control in ("ngd_random_neighbors", "ngd_shuffled_labels", "ngd_permuted_experts", "random_pathway"):
        assert table.loc[control, "low"] <= 0
