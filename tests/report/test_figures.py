"""The charts: which runs a map of a sweep averages, which rows speak for a run, and where names of arms stand."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("altair")
from c3po_bench.analysis.ablation import ablation_table  # noqa: E402
from c3po_bench.analysis.compare import compare  # noqa: E402
from c3po_bench.report.figures import ablation_figures, comparison_figures  # noqa: E402
from c3po_bench.report.marks import NAMED, SHAPES  # noqa: E402
from c3po_bench.store.reader import load_runs  # noqa: E402
from tests import store_factory as factory  # noqa: E402

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
    return {figure.name: figure for figure in ablation_figures(ablation_table(load_runs(root)))}


def texts(figure):
    return {value["text"] for value in figure.spec()["data"]["values"]}


def test_a_heat_map_holds_one_method_and_neither_controls_nor_ceilings(tmp_path):
    write(tmp_path, "base", 0)
    for k in (1, 3):
        for layers in (1, 5):
            for arm, points in (("ngd", 20), ("ngd_random_neighbors", -20), ("oracle", 45)):
                write(tmp_path, arm, points, {"k": k, "layers": layers})
    figures = figures_of(tmp_path)
    assert list(figures) == ["heat_layers_neighbors", "curve_layers", "curve_neighbors"]
    assert (
        texts(figures["heat_layers_neighbors"]) == {"+20.0"}
        and "of NGD to" in figures["heat_layers_neighbors"].caption
    )
    arms = {value["arm"] for value in figures["curve_layers"].spec()["data"]["values"]}  # a field each
    assert arms == {"NGD", "NGD with random neighbors", "oracle"}


def test_methods_that_vary_the_same_settings_have_a_map_each(tmp_path):
    write(tmp_path, "base", 0)
    for k in (1, 3):
        for layers in (1, 5):
            write(tmp_path, "ngd", 20, {"k": k, "layers": layers, "lr": layers / 10})
            write(tmp_path, "mode_finding", -5, {"k": k, "layers": layers})
        write(tmp_path, "icl", 7, {"k": k, "shots": k})
    maps = {name: figure for name, figure in figures_of(tmp_path).items() if figure.group == "heat map"}
    both = [f"heat_layers_neighbors_{arm}" for arm in ("mode_finding", "ngd")]
    assert sorted(maps) == [
        *both,
        "heat_neighbors_learning_rate",
    ]  # a rate set by the layers spans no map with them
    assert [texts(maps[name]) for name in both] == [{"-5.0"}, {"+20.0"}]
    assert maps[both[1]].title == "layers × neighbors, NGD" and "of NGD to" in maps[both[1]].caption


def test_a_run_on_two_tasks_hides_none_on_one(tmp_path):
    for arm in ("base", "ngd"):
        write(tmp_path, arm, 0, {"k": 3}, tasks=("arc", "piqa"))
    write(tmp_path, "base", 0)
    for k in (1, 5):
        write(tmp_path, "ngd", k, {"k": k})
    curve = figures_of(tmp_path)["curve_neighbors"]
    values = {value["setting"]: value["difference"] for value in curve.spec()["layer"][1]["data"]["values"]}
    assert values == pytest.approx({"1": 1.0, "3": 0.0, "5": 5.0})


def test_a_baseline_is_drawn_as_a_method_is(tmp_path):
    for arm, points in (("base", 0), ("ngd", 20), ("icl", 10), ("oracle", 45)):
        write(tmp_path, arm, points)
    _, cost = comparison_figures(compare(load_runs(tmp_path), draws=50))
    roles = {value["arm"]: value["role"] for value in cost.spec()["layer"][1]["data"]["values"]}
    assert roles == {"NGD": "method", "ICL": "method", "oracle": "ceiling"}


def scales(spec, found):
    """Every scale of color and shape in a specification."""
    for name, value in spec.items() if isinstance(spec, dict) else enumerate(spec):
        if name in ("color", "shape") and isinstance(value, dict) and "scale" in value:
            found.append((name, value["field"], tuple(value["scale"].get("domain", ()))))
        elif isinstance(value, dict | list) and name != "data":
            scales(value, found)
    return found


def test_a_color_and_a_shape_mean_the_same_role_in_every_chart(tmp_path):
    for arm, points in (("base", 0), ("ngd", 20), ("ngd_random_neighbors", 10), ("oracle", 45)):
        for task in ("arc", "piqa"):
            write(tmp_path, arm, points, tasks=(task,))
        for k in (1, 3):
            write(tmp_path, arm, points, {"k": k} if arm != "base" else {}, tasks=("arc", "piqa"))
    runs = load_runs(tmp_path)
    compared = compare(runs, draws=50)
    figures = comparison_figures(compared) + [
        figure for figure in ablation_figures(ablation_table(runs, compared)) if figure.group == "curve"
    ]
    found = {name: scales(figure.spec(), []) for name, figure in ((f.name, f) for f in figures)}
    assert {"effects", "cost", "curve_neighbors"} <= found.keys() and all(found.values())
    assert {scale[1:] for own in found.values() for scale in own} == {("role", tuple(SHAPES))}


def test_arms_without_an_interval_are_drawn(tmp_path):
    for arm, points in (("base", 0), ("ngd", 20), ("icl", 10)):
        write(tmp_path, arm, points)
    frame = compare(load_runs(tmp_path), draws=50)
    two_seeds = frame.assign(diff_low=frame["diff_low"].where(frame["arm"] != "ngd"))
    two_seeds["diff_high"] = frame["diff_high"].where(frame["arm"] != "ngd")
    for figure in comparison_figures(two_seeds):
        values = {v["arm"]: v for v in figure.spec()["layer"][1]["data"]["values"]}
        assert values["NGD"]["low"] is None and values["ICL"]["low"] is not None


def test_many_lines_are_not_all_drawn_and_the_caption_says_so(tmp_path):
    tasks = tuple(f"task{i}" for i in range(8))
    write(tmp_path, "base", 0, tasks=tasks)
    for k in range(9):
        write(tmp_path, "ngd", k, {"k": k}, tasks=tasks)
    effects, _ = comparison_figures(compare(load_runs(tmp_path), draws=50))
    lines = effects.spec()["layer"][1]["data"]["values"]
    assert {line["task"] for line in lines} == {"all items"} and len(lines) == 9
    assert "72 lines more are in the table" in effects.caption


def test_a_mean_over_cells_has_an_interval_that_is_not_too_short(tmp_path):
    write(tmp_path, "base", 0)
    for k in (1, 3):
        for layers in (1, 5):
            write(tmp_path, "ngd", 10 + k + layers, {"k": k, "layers": layers})
    table = ablation_table(load_runs(tmp_path))
    curve = {f.name: f for f in ablation_figures(table)}["curve_neighbors"]
    values = {v["setting"]: v for v in curve.spec()["layer"][1]["data"]["values"]}
    cells = table[(table["neighbors"] == 1) & (table["metric"] == "acc")]
    assert values["1"]["low"] == pytest.approx(100 * cells["diff_low"].mean())
    assert values["1"]["high"] == pytest.approx(100 * cells["diff_high"].mean())
    assert "means of the cells' bounds" in curve.caption


def cost_chart(spots: list[tuple[float, float]]) -> dict:
    """The specification of a cost chart over arms with these seconds and differences."""
    rows = [
        {"arm": "ngd", "title": "NGD", "role": "method", "label": f"ngd with neighbors {i}", "run_id": str(i)}
        | {"task": "arc", "level": "task", "group": "", "scope": "", "seconds_per_item": s}
        | {"difference": d / 100, "diff_low": d / 100 - 0.02, "diff_high": d / 100 + 0.02}
        for i, (s, d) in enumerate(spots)
    ]
    _, cost = comparison_figures(pd.DataFrame(rows))
    return cost.spec()


@pytest.mark.parametrize(
    "spots",
    [
        [(0.2, 0.0)] * NAMED,
        [(0.2, 1.0), (0.21, 1.1), (0.22, 0.9), (3.0, 1.0)],
        [(0.1, 5.0), (1.0, 5.0)],
        [(0.3, 1.0)],
    ],
    ids=["all the same", "three close", "far apart", "one"],
)
def test_no_name_lies_over_another(spots):
    spec = cost_chart(spots)
    points = spec["layer"][1]["data"]["values"]
    assert sorted(p["arm"] for p in points) == sorted(f"NGD with neighbors {i}" for i in range(len(spots)))
    assert [p["number"] for p in points] == [str(i) for i in range(1, len(spots) + 1)]
    low, high = spec["layer"][1]["encoding"]["y"]["scale"]["domain"]
    pixel = (high - low) / spec["height"]
    heights = [p["name_y"] for p in points]
    assert low + 8 * pixel <= min(heights) + 1e-9 and max(heights) <= high - 8 * pixel + 1e-9
    assert all(upper - lower > 15.9 * pixel for upper, lower in itertools.pairwise(heights))


def test_a_lone_name_stands_beside_its_point():
    far, near = cost_chart([(0.1, 5.0), (1.0, -5.0)])["layer"][1]["data"]["values"]
    assert abs(far["name_y"] - 5.0) < 0.5 and abs(near["name_y"] + 5.0) < 0.5
