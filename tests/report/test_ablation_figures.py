"""The charts of a sweep: which runs a map averages, and which rows speak for a run."""

from __future__ import annotations

import numpy as np
import pytest

from c3po_bench.analysis.ablation import ablation_table
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory

pytest.importorskip("altair")

BASE = np.array([0, 1] * 50)


def moved(points):
    """The scores of an arm that many points above or below `BASE`."""
    scores = BASE.copy()
    scores[np.flatnonzero(scores == int(points < 0))[: abs(points)]] = int(points > 0)
    return scores


def write(root, arm, points, settings=None, tasks=("arc",)):
    rows = [row for task in tasks for row in factory.sample_rows(arm, task, moved(points), details=False)]
    factory.write_run(root, arm, rows, settings=settings, key="|".join(tasks))


def figures_of(root):
    from c3po_bench.report.ablation_figures import ablation_figures

    return {figure.name: figure for figure in ablation_figures(ablation_table(load_runs(root)))}


def texts(figure):
    return {value["text"] for value in figure.spec()["data"]["values"]}


def test_a_heat_map_holds_one_method_and_neither_controls_nor_ceilings(tmp_path):
    write(tmp_path, "base", 0)
    for k in (1, 3):
        for layers in (1, 5):
            for arm, points in (("ngd", 20), ("ngd_random_neighbors", -20), ("oracle", 45)):
                write(tmp_path, arm, points, {"k": k, "layers": layers})
    found = figures_of(tmp_path)
    assert list(found) == ["heat_layers_neighbors", "curve_layers", "curve_neighbors"]
    assert (
        texts(found["heat_layers_neighbors"]) == {"+20.0"}
        and "of NGD to" in found["heat_layers_neighbors"].caption
    )
    arms = {value["arm"] for value in found["curve_layers"].spec()["layer"][1]["data"]["values"]}
    assert arms == {"NGD", "NGD with random neighbors", "oracle"}


def test_methods_that_vary_the_same_settings_have_a_map_each(tmp_path):
    write(tmp_path, "base", 0)
    for k in (1, 3):
        for layers in (1, 5):
            write(tmp_path, "ngd", 20, {"k": k, "layers": layers, "lr": layers / 10})
            write(tmp_path, "mode_finding", -5, {"k": k, "layers": layers})
        write(tmp_path, "icl", 7, {"k": k, "shots": k})
    found = {name: figure for name, figure in figures_of(tmp_path).items() if figure.group == "heat map"}
    both = [f"heat_layers_neighbors_{arm}" for arm in ("mode_finding", "ngd")]
    assert sorted(found) == [
        *both,
        "heat_neighbors_learning_rate",
    ]  # a rate set by the layers spans no map with them
    assert [texts(found[name]) for name in both] == [{"-5.0"}, {"+20.0"}]
    assert found[both[1]].title == "layers × neighbors, NGD" and "of NGD to" in found[both[1]].caption


def test_a_run_on_two_tasks_hides_none_on_one(tmp_path):
    for arm in ("base", "ngd"):
        write(tmp_path, arm, 0, {"k": 3}, tasks=("arc", "piqa"))
    write(tmp_path, "base", 0)
    for k in (1, 5):
        write(tmp_path, "ngd", k, {"k": k})
    curve = figures_of(tmp_path)["curve_neighbors"]
    values = {value["setting"]: value["difference"] for value in curve.spec()["layer"][1]["data"]["values"]}
    assert values == pytest.approx({"1": 1.0, "3": 0.0, "5": 5.0})
