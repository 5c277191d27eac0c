"""Costs of arms: what is charged to whom, and nothing that is not known."""

from __future__ import annotations

from math import nan

import pytest
from rewiring_world import make_prompts

from c3po_bench.contract import Phase
from c3po_bench.evaluate import run as harness
from c3po_bench.models.flops import UNKNOWN
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.engines.base import Engine
from c3po_bench.runtime import meter as meter_module
from c3po_bench.runtime.meter import Meter


@pytest.mark.parametrize("engine", ["suffix", "naive"])
def test_prompts_read_together_share_what_it_cost_by_tokens(models, engine):
    prompts, meter = make_prompts(6), Meter()
    states = load_engine(engine, models("olmoe"), [4]).read(prompts, meter)
    assert meter.spent("read")[1] == pytest.approx(sum(state.flops for state in states))
    per_token = {round(state.flops / state.prompt.tokens, 3) for state in states}
    assert len(per_token) == 1 and meter.cached_seconds == 0


def test_an_arm_is_charged_for_what_was_read_before(models):
    engine, first, second = load_engine("suffix", models("olmoe"), [4]), Meter(), Meter()
    prompts = make_prompts(4)
    engine.read(prompts, first)
    engine.read(prompts, second)
    assert second.spent("read") == pytest.approx(first.spent("read"))
    assert second.cached_flops == second.flops["read"] > 0
    assert second.cached_seconds == second.seconds["read"] > 0


@pytest.mark.parametrize("engine", ["suffix", "naive"])
def test_reading_references_is_no_items_cost(experiment, tmp_path, engine):
    """Of a sweep over layers only the first cell found the references read; the second's descents were charged for it."""

    def cost(store: str, **changes) -> dict[str, float]:
        cfg = experiment(engine=engine, results_dir=str(tmp_path / store), limit=8, batch_size=2, **changes)
        phases = harness.run(cfg)[-1].result["cost"]["phases"]
        return {name: phase["flops"] for name, phase in phases.items()}

    alone = cost("alone", arms=["ngd_random_neighbors"])
    assert min(alone.values()) > 0
    assert alone == pytest.approx(cost("beside", arms=["ngd", "ngd_random_neighbors"]), rel=1e-6)
    cost("sweep", arms=["ngd"], method__layers="last:3")
    assert alone == pytest.approx(cost("sweep", arms=["ngd_random_neighbors"]), rel=1e-6)
    kept_nowhere = cost("nowhere", arms=["ngd_random_neighbors"], reference_cache_gb=0.0)
    assert alone == pytest.approx(kept_nowhere, rel=1e-6)


def test_each_step_and_each_evaluation_counts(experiment, tmp_path):
    """Three steps are three times one, less what a batch prepares once; the grid of alpha is that many evaluations."""

    def optimizing(name: str, **changes) -> float:
        cfg = experiment(arms=[name], limit=2, results_dir=str(tmp_path / f"{name}{len(changes)}"), **changes)
        return harness.run(cfg)[-1].result["cost"]["phases"]["optimize"]["flops"]

    three, one = optimizing("ngd"), optimizing("ngd", method__steps=1)
    assert 2 * one < three < 3 * one
    grid = optimizing("kernel_regression", arm_options={"kernel_regression": {"points": 3}})
    assert 0.3 < grid / three < 0.7, "no gradient is taken"


def test_what_is_not_known_is_null_and_said_so(experiment, monkeypatch):
    monkeypatch.setattr(Engine, "shape", UNKNOWN)
    base, ngd = harness.run(experiment(arms=["ngd"], limit=2))
    for run, phases in ((base, ["read", "score"]), (ngd, ["read", "optimize", "score"])):
        assert all(run.result["cost"]["phases"][name]["flops"] is None for name in phases)
        assert any("FLOPs unknown" in note for note in run.result["notes"])
    assert ngd.result["cost"]["phases"]["embed"]["flops"] > 0


def test_what_is_excluded_is_not_of_the_phase(monkeypatch):
    """By a clock that goes on five seconds for what is excluded, one for the rest."""
    now = [0.0]
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: now[0])
    meter = Meter()
    with meter.phase("optimize"):
        now[0] += 1
        with meter.exclude():
            now[0] += 5
        meter.count("optimize", 7)
    assert meter.cost().phases["optimize"] == Phase(1.0, 7)
    assert meter.cached_seconds == -5.0


def test_unknown_flops_stay_unknown():
    meter = Meter()
    meter.add("read", 1.0, nan)
    meter.add("read", 1.0, 5)
    assert meter.cost().phases == {"read": Phase(2.0, None)} and "read" in meter.notes[0]
