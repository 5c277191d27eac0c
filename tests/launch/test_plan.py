"""What a sweep would cost: shared runs count once, and a store's own base run is better than a guess."""

from __future__ import annotations

import numpy as np
import pytest

from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.plan import cell_cost, plan, shape
from c3po_bench.models.flops import shape_of
from c3po_bench.models.tiny import tiny_model
from tests import store_factory as factory

SWEEP = ["+sweep=layer_table", "model=olmoe", "tasks=[arc_easy]", "limit=null"]


def test_a_plan_counts_shared_runs_once(tmp_path):
    total = plan(compose_grid([*SWEEP, f"results_dir={tmp_path}"]))
    assert (total.cells, total.runs, total.items) == (16, 17, 17 * 2376)
    longest = total.longest_seconds
    assert total.wall_seconds(1) > total.wall_seconds(8) >= total.wall_seconds(100) > longest


def test_a_cell_costs_a_pass_an_item_and_an_arm_more(tmp_path):
    config = compose_grid([*SWEEP, "arms=[base,mode_finding]", f"results_dir={tmp_path}"]).cells[0].config
    cost = cell_cost(config, {})
    assert cost.items == 2376 and cost.basis == "estimated for one A100/H100-class GPU"
    assert cost.arms["base"] == pytest.approx(2376 * cost.pass_seconds)
    assert cost.arms["mode_finding"] == pytest.approx(1.3 * cost.arms["base"])
    assert cell_cost(config, {"olmoe": 0.5}).arms["base"] == pytest.approx(2376 * 0.5)


def test_what_the_store_has_measured_is_taken_for_a_pass(tmp_path):
    rows = factory.sample_rows("base", "arc_easy", np.ones(10), details=False)
    factory.write_run(tmp_path, "base", rows, seconds=20.0, model="olmoe")
    total = plan(compose_grid([*SWEEP, f"results_dir={tmp_path}"]))
    assert total.basis == "measured in this store" and total.gpu_seconds > 2 * total.items


def test_the_shape_of_a_known_model_is_that_of_its_weights():
    sizes = {"layers": 5, "width": 32, "keys": 16, "experts": 8, "top_k": 2, "inner": 32, "vocabulary": 99}
    span, size = range(5), (2, 5, 7)
    assert shape(**sizes).forward(span, *size) == shape_of(tiny_model("olmoe")).forward(span, *size)
    assert shape(**sizes).logits(3) == shape_of(tiny_model("olmoe")).logits(3)
