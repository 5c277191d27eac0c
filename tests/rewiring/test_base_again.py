"""Base asked again: in other batches and another order, in another precision if asked; its routing ties are counted."""

from __future__ import annotations

import pytest
import torch

from c3po_bench.errors import UserError
from c3po_bench.evaluate.chunks import make_chunks, other_size
from c3po_bench.evaluate.run import run as run_experiment
from c3po_bench.models.routing import family_of
from c3po_bench.models.ties import count_ties
from c3po_bench.models.tiny import tiny_model
from c3po_bench.tasks.taskset import TaskSet


def test_batches_have_another_size_and_items_another_order():
    tasks = TaskSet(["facts"])
    usual, other = make_chunks(tasks, 32, 8), make_chunks(tasks, other_size(32), 8, by_length=False)
    items = [[item for chunk in chunks.items for item in chunk] for chunks in (usual, other)]
    assert sorted(items[0]) == sorted(items[1]) and items[0] != items[1]
    assert {len(chunk) for chunk in other.items[:-1]} == {10} and other == make_chunks(
        tasks, 10, 8, by_length=False
    )
    assert [other_size(size) for size in (1, 2, 3, 4, 32, 100)] == [2, 3, 1, 1, 10, 33]
    assert all(other_size(size) != size for size in range(1, 200))


def test_ties_of_routers_are_counted_token_by_token():
    model = tiny_model("olmoe")
    family = family_of(model)
    sequences = [(3, 4, 5, 6), (7, 8)]
    assert count_ties(model, family, sequences) == 0
    gate = family.router_of(model, family.layers[0])
    with torch.no_grad():
        gate.weight.zero_()  # every expert of the first layer scores alike, for every token
    assert count_ties(model, family, sequences) == 6
    assert count_ties(model, family, sequences[1:]) == 2


def test_it_answers_as_base_does_up_to_rounding(experiment):
    runs = {run.arm: run for run in run_experiment(experiment(arms=["base", "base_again"], limit=9))}
    base, again = runs["base"].samples(), runs["base_again"].samples()
    assert [row["doc_hash"] for row in base] == [row["doc_hash"] for row in again]
    assert [row["prediction"] for row in base] == [row["prediction"] for row in again]
    for ours, theirs in zip(base, again, strict=True):
        assert ours["loglikelihoods"] == pytest.approx(theirs["loglikelihoods"], abs=2e-3)
    result, provenance = runs["base_again"].result, runs["base_again"].provenance
    assert provenance["identity"]["batches"] == {"size": 1, "order": "by hash"}
    assert result["counts"]["routing_ties"] == sum("routing_ties" in row for row in again)
    assert any("of 9 items have a routing tie within rounding" in note for note in result["notes"])
    assert "batches" not in runs["base"].provenance["identity"]


def test_it_takes_another_precision(experiment):
    cfg = experiment(arms=["base_again"], arm_options={"base_again": {"dtype": "bfloat16"}})
    base, again = run_experiment(cfg)
    moved = [
        abs(a - b)
        for ours, theirs in zip(base.samples(), again.samples(), strict=True)
        for a, b in zip(ours["loglikelihoods"], theirs["loglikelihoods"], strict=True)
    ]
    assert 1e-3 < max(moved) < 1.0 and again.result["settings"] == {"option_dtype": "bfloat16"}
    with pytest.raises(UserError, match="arm_options.base_again.dtype"):
        run_experiment(experiment(arms=["base_again"], arm_options={"base_again": {"dtype": "int8"}}))
