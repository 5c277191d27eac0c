"""How far pathways move, by hand; what every arm records of it; and that both engines say the same."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from c3po_bench.evaluate.run import run
from c3po_bench.models.families import Family
from c3po_bench.rewiring.arms import ARMS
from c3po_bench.rewiring.backend import selects_everything
from c3po_bench.rewiring.movement import MEASURES, movement, natural_spread, summary, total_variation
from c3po_bench.rewiring.pathway import Mixer

PLAIN = Family("olmoe", num_experts=4, top_k=2)


def of_one(before: list[float], after: list[float], family: Family = PLAIN) -> dict:
    own, new = torch.tensor([[before]]), torch.tensor([[after]])
    mixture = Mixer(family)(new, own, torch.ones_like(own).bool(), "hard")
    (row,) = movement(family, own, new, mixture)
    return {name: values[0] for name, values in row.items()}


def test_measures_by_hand():
    found = of_one([0.4, 0.3, 0.2, 0.1], [0.1, 0.3, 0.2, 0.4])
    assert found == {
        "total_variation": pytest.approx(0.3),
        "mass_before": pytest.approx(0.7),
        "mass_after": pytest.approx(0.7),
        "kept": 0.5,
        "entropy_before": pytest.approx(-sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1)), abs=1e-5),
        "entropy_after": found["entropy_before"],
    }


def test_rows_of_sigmoids_are_divided_by_their_sums():
    family = replace(PLAIN, score="sigmoid")
    same = of_one([0.8, 0.6, 0.4, 0.2], [0.4, 0.3, 0.2, 0.1], family)
    assert same["total_variation"] == pytest.approx(0, abs=1e-6), "the shares are the same"
    assert same["mass_before"] == pytest.approx(1.4) and same["mass_after"] == pytest.approx(0.7)
    assert same["entropy_before"] == same["entropy_after"]
    apart = of_one([0.9, 0.9, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5], family)
    assert apart["total_variation"] == pytest.approx(1.0) and apart["kept"] == 0.0
    renormalized = of_one([0.8, 0.6, 0.4, 0.2], [0.4, 0.3, 0.2, 0.1], replace(family, renormalise=True))
    assert renormalized["mass_before"] == renormalized["mass_after"] == pytest.approx(1.0)


def test_the_spread_is_between_items_of_one_task():
    rows = [
        {"task": task, "doc_id": i, "pathway_before": [before]}
        for task, pathways in {"a": ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0]), "b": ([2.0, 0.0],)}.items()
        for i, before in enumerate(pathways)
    ]
    within, between = natural_spread(rows)
    assert within == [pytest.approx((0.5 + 1 + 0.5) / 3, abs=1e-6)] and between == [pytest.approx(0.5)]
    assert natural_spread(rows[:1]) == (None, None)


def test_nothing_moved_has_no_summary():
    assert summary([{"task": "a", "doc_id": 0}]) == {}


REWIRINGS = [name for name, row in ARMS.items() if row.builds == "solver" and row.references != "none"]


def test_every_arm_records_how_far_it_moves(experiment):
    arms = [*REWIRINGS, "routing_temperature"]
    runs = {r.arm: r for r in run(experiment(arms=arms))}
    assert "movement" not in runs["base"].result
    spread = runs["ngd"].result["movement"]["spread"]
    for arm in arms:
        found = runs[arm].result["movement"]
        assert found["layers"] == [3, 4] and found["spread"] == spread, "the items' own pathways are the same"
        rows = runs[arm].samples()
        for row in rows:
            assert set(MEASURES) <= row["movement"].keys()
            assert all(len(row["movement"][name]) == 2 for name in MEASURES)
            before, after = (torch.tensor(row[f"pathway_{when}"]) for when in ("before", "after"))
            assert row["movement"]["total_variation"] == pytest.approx(
                total_variation(before, after).tolist(), abs=1e-3
            )
        has_loss = ARMS[arm].references in ("retrieved", "random", "own")
        assert (found["loss_first"] is not None) == has_loss, arm
        assert (found["similarity"] is not None) == (ARMS[arm].references in ("retrieved", "random")), arm
        assert found["times_spread"] == pytest.approx(
            sum(found["total_variation"]) / sum(found["spread"]), rel=0.01
        )
    ngd, permuted, random = (
        runs[arm].result["movement"] for arm in ("ngd", "ngd_permuted_experts", "random_pathway")
    )
    assert ngd["loss_first"] == pytest.approx(permuted["loss_first"], abs=1e-4) == random["loss_first"]
    assert permuted["kept"] == ngd["kept"], "as many of the model's own experts run"
    assert permuted["mass_after"] == pytest.approx(ngd["mass_after"], abs=1e-4)
    assert permuted["total_variation"] == pytest.approx(ngd["total_variation"], abs=0.05)


def test_both_engines_record_the_same(experiment):
    arms = ["ngd", "ngd_permuted_experts", "kernel_regression"]
    fast = run(experiment(arms=arms))
    slow = run(experiment(arms=arms, engine="naive", results_dir=f"{experiment().results_dir}-naive"))
    for one, other in zip(fast[1:], slow[1:], strict=True):
        for a, b in zip(one.samples(), other.samples(), strict=True):
            assert torch.allclose(*(torch.tensor(x["pathway_after"]) for x in (a, b)), atol=5e-3), one.arm
            for name, values in a["movement"].items():
                assert values == pytest.approx(b["movement"][name], abs=2e-3), (one.arm, name)


def test_experts_that_select_everything_are_told(experiment):
    assert selects_everything("top:20", 16) == [
        "method.experts=top:20 selects everything: this model has 16 experts a layer"
    ]
    assert not selects_everything("top:20", 64) and not selects_everything("all", 16)
    base, ngd = run(experiment(arms=["ngd"], method__experts="top:20"))
    assert any("selects everything" in note for note in ngd.result["notes"])
    assert not any("selects everything" in note for note in base.result["notes"])
