"""A surrogate added as one function is an arm, with its options in the config, in the tables and in the docs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from c3po_bench.analysis.ablation import ablation_table
from c3po_bench.analysis.compare import compare, compare_controls
from c3po_bench.analysis.verdict import verdict
from c3po_bench.errors import UserError
from c3po_bench.evaluate.run import run
from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.plan import cell_cost, plan
from c3po_bench.report.build import write_report
from c3po_bench.rewiring.arms import ARMS

TABLES = Path(__file__).parents[2] / "docs" / "_build" / "tables.py"


@pytest.fixture
def plugged(experiment, monkeypatch):
    """An experiment that names the plugin; the registry is as before afterwards."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    before = list(ARMS)
    sys.modules.pop("plugin_method", None)
    yield lambda **changes: experiment(plugins=["plugin_method"], **changes)
    for added in set(ARMS) - set(before):
        ARMS.remove(added)


def test_config_takes_the_arm_and_its_options(plugged):
    assert "nearest_pathway" not in ARMS
    with pytest.raises(UserError, match="did you mean 'share'"):
        run(plugged(arms=["nearest_pathway"], arm_options={"nearest_pathway": {"shar": 0.2}}))
    assert "nearest_pathway" in ARMS


def test_it_runs_and_stands_in_the_tables(plugged):
    still, moved = {"nearest_pathway": {"share": 0.0}}, {"nearest_pathway": {"share": 1.0}}
    base, same = run(plugged(arms=["nearest_pathway"], arm_options=still))
    _, other = run(plugged(arms=["nearest_pathway"], arm_options=moved))
    for a, b, c in zip(base.samples(), same.samples(), other.samples(), strict=True):
        assert a["loglikelihoods"] == pytest.approx(b["loglikelihoods"], abs=1e-3)
        assert a["loglikelihoods"] != pytest.approx(c["loglikelihoods"], abs=1e-3)
    frame = compare([base, same, other])
    assert set(frame["arm"]) == {"base", "nearest_pathway"}
    table = ablation_table([base, same, other])
    rows = table[(table["arm"] == "nearest_pathway") & (table["metric"] == "acc")]
    assert set(rows["option_share"]) == {0.0, 1.0}


def test_with_its_control_it_stands_in_verdict_report_and_plan(plugged, tmp_path):
    """One file gave the method, its control, and all that readers are told of them."""
    arms = ["nearest_pathway", "nearest_pathway_random_neighbors"]
    runs = run(plugged(arms=arms))
    assert runs[2].result["arm_row"]["control_of"] == "nearest_pathway"
    frame = compare(runs)
    assert "base is not above chance" in verdict(frame)  # a random model: no verdict
    sentences = verdict(frame.assign(no_verdict=""), compare_controls(runs))
    assert sentences.startswith("Nearest pathway ")
    page = write_report(tmp_path / "results", tmp_path / "report").read_text(encoding="utf-8")
    assert "nearest pathway" in page and "random neighbors" in page
    grid = compose_grid(
        ["+sweep=neighbors", "model=smolmoe", "plugins=[plugin_method]", f"arms=[{','.join(arms)}]"]
    )
    cost = plan(grid), cell_cost(grid.cells[0].config, {})
    assert cost[0].runs == 1 + 2 * len(grid.cells)
    assert cost[1].arms["nearest_pathway_random_neighbors"] == pytest.approx(1.5 * cost[1].arms["base"])


def test_it_stands_in_the_docs(plugged):
    if not TABLES.exists():
        pytest.skip("the tables of the docs are made in a source checkout only")
    run(plugged(arms=["base"]))
    spec = importlib.util.spec_from_file_location("docs_tables", TABLES)
    assert spec and spec.loader
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert "`nearest_pathway`" in tables.rewiring_arms() and "`share=0.5`" in tables.rewiring_arms()
    assert "pathway of the nearest neighbor alone" in tables.surrogate_text()
