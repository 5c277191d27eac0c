"""Headroom on the tiny model: it asks what `oracle` and `base` would answer, towards every option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from c3po_bench.errors import UserError
from c3po_bench.evaluate.headroom import measure
from c3po_bench.evaluate.run import run
from c3po_bench.rewiring import headroom as module
from c3po_bench.rewiring.headroom import Headroom, _exceeds, margins
from c3po_bench.store.files import read_jsonl


def rows_of(record):
    return list(read_jsonl(Path(record["path"]).with_suffix(".jsonl")))


def test_a_margin_is_to_the_best_of_the_others():
    found = margins(torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, float("-inf")]]))
    assert found.tolist() == [[-2.0, 1.0, -1.0], [1.0, -1.0, float("-inf")]]


def test_the_share_of_pairs_that_the_true_option_wins():
    every = torch.tensor([[[0.0, 1.0, -1.0], [2.0, -2.0, -3.0]]])  # two routes, three options
    found = _exceeds(every[..., 0], every, torch.tensor([0]))
    assert found.tolist() == [pytest.approx((3 + 4) / 8)]  # 0 beats three of (1, -1, -2, -3), 2 beats all


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_the_true_option_is_reached_where_the_oracle_is_right(experiment, family):
    changes = {"method__learning_rate": 3.0, "method__steps": 5, "limit": 12, "model__path": family}
    record = measure(experiment(**changes), routes=6, temperature=1.0)
    base, oracle = run(experiment(arms=["oracle"], **changes))
    rows = {int(row["key"].rpartition("/")[2]): row for row in rows_of(record)}
    for own, best in zip(base.samples(), oracle.samples(), strict=True):
        row = rows[own["doc_id"]]
        assert row["base"] == own["prediction"] and row["gold"] == own["gold"]
        assert row["reached"][row["gold"]] == bool(best["correct"])
        margin = margins(torch.tensor(own["loglikelihoods"])).tolist()
        for rule in row["best"].values():
            assert all(most >= margin[c] - 1e-3 for c, most in enumerate(rule)), (
                "the model's own is a route, too"
            )
    found = record["summary"]
    assert found["base"] == base.result["metrics"]["facts_capitals"]["acc"]
    assert found["h_true"] == oracle.result["metrics"]["facts_capitals"]["acc"]
    assert found["p_true"] >= found["base"] and 0 <= found["routes_right"] <= 1
    assert record["comparison_key"] == base.result["comparison_key"]


def test_routes_without_noise_are_the_model(experiment):
    record = measure(experiment(method__steps=0), routes=2, temperature=1e-9)
    found = record["summary"]
    assert found["base"] == found["p_true"] == found["s"] == found["route_average"] == found["h_true"]
    assert found["mass"] == pytest.approx(1.0, abs=1e-4) and found["routes_right"] == found["base"]


def test_a_route_keeps_the_routers_weights_or_their_total(experiment):
    found = measure(experiment(), routes=4, temperature=1.0)["summary"]
    assert list(found["rules"]) == ["model rule", "mass kept"], "the tiny OLMoE does not renormalize"
    assert 0 < found["mass"] < 1
    renormalized = measure(experiment(model__path="mixtral", name="m"), routes=4, temperature=1.0)["summary"]
    assert list(renormalized["rules"]) == ["model rule"] and renormalized["mass"] == pytest.approx(
        1.0, abs=1e-4
    )


def test_what_was_measured_is_not_measured_again(experiment, monkeypatch):
    cfg, asked = experiment(batch_size=2), []
    measured = Headroom.measure

    def stopping(self, items):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append([item.id for item in items])
        return measured(self, items)

    monkeypatch.setattr(module.Headroom, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        measure(cfg, 4, 1.0)
    monkeypatch.setattr(
        module.Headroom, "measure", lambda self, items: asked.append(1) or measured(self, items)
    )
    first = measure(cfg, 4, 1.0)
    assert len(asked) == 2 and first["summary"]["items"] == 4
    assert measure(cfg, 4, 1.0) == first and len(asked) == 2
    whole = measure(experiment(batch_size=2, results_dir=f"{cfg.results_dir}-other"), 4, 1.0)
    assert json.dumps(whole["summary"]) == json.dumps(first["summary"]), (
        "what is drawn depends on the item alone"
    )


def test_written_answers_are_refused(experiment, tmp_path):
    task = tmp_path / "written.yaml"
    task.write_text(
        "task: written\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: " + str(tmp_path / "written.jsonl") + "}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 2, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "written.jsonl").write_text('{"q": "one?", "a": "two"}\n')
    with pytest.raises(UserError, match="written answers"):
        measure(experiment(tasks=[str(task)]), 4, 1.0)
