"""FLOPs are counted, not estimated: against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from rewiring_world import FAMILIES

from c3po_bench.evaluate import run as harness
from c3po_bench.rewiring import meter as meter_module
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.engines.base import Prompt
from c3po_bench.rewiring.meter import Meter, counter


def layer_flops(config, tokens: int, keys: int) -> int:
    """One OLMoE layer over `tokens` tokens that see `keys` columns: projections, attention, router, top-k experts."""
    width = config.hidden_size
    head = width // config.num_attention_heads
    projections = 2 * width * head * (config.num_attention_heads + config.num_key_value_heads)
    attention = 2 * keys * head * config.num_attention_heads
    experts = config.num_experts_per_tok * 3 * width * config.intermediate_size
    return 2 * tokens * (projections + attention + width * config.num_experts + experts)


def test_reading_a_prompt(models):
    model = models("olmoe")
    config, meter = model.config, Meter()
    engine = load_engine("suffix", model, [config.num_hidden_layers - 1])
    prompt, answer = tuple(range(5, 26)), (7, 8, 9)
    engine.read([Prompt(prompt, (answer,))], meter)
    whole = len(prompt) + len(answer) - 1
    expected = layer_flops(config, whole, whole) * (config.num_hidden_layers - 1)
    expected += layer_flops(config, len(prompt), len(prompt))
    assert meter.phases()["read"]["flops"] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_stands_for_those_like_it(models, family, monkeypatch):
    model, found = models(family), []
    prompts = [
        Prompt(tuple(5 + i % 40 for i in range(length)), ((7, 8, 9), (6, 7))) for length in (4, 11, 30, 200)
    ]
    for step in (meter_module.Count.step, lambda *_: None):
        monkeypatch.setattr(meter_module.Count, "step", step)
        meter = Meter()
        load_engine("suffix", model, [len(model.model.layers) - 1]).read(prompts, meter)
        found.append(meter.phases()["read"]["flops"])
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_experts_count_alike_in_every_implementation(models, implementation):
    model = models("olmoe")
    before = model.config._experts_implementation
    model.set_experts_implementation(implementation)
    ids = torch.arange(5, 17)[None]
    try:
        with torch.no_grad(), counter() as counted:
            model(input_ids=ids, use_cache=False)
    finally:
        model.set_experts_implementation(before)
    config = model.config
    head = 2 * ids.numel() * config.hidden_size * config.vocab_size
    assert counted.total == layer_flops(config, 12, 12) * config.num_hidden_layers + head


def test_fewer_key_than_query_heads_cost_the_same():
    query = torch.randn(2, 4, 5, 8, requires_grad=True)
    key, value = (torch.randn(2, 2, 7, 8, requires_grad=True) for _ in range(2))
    with counter() as counted:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    assert counted.total == 2 * 2 * (2 * 4 * 5 * 7 * 8)
    with counter() as counted:
        out.sum().backward()
    assert counted.total == 5 * 2 * (2 * 4 * 5 * 7 * 8)


def test_the_backward_pass_of_attention_and_experts_is_counted():
    left = torch.randn(6, 8, requires_grad=True)
    right, ends = torch.randn(3, 8, 4), torch.tensor([2, 4, 6], dtype=torch.int32)
    with counter() as counted:
        out = torch._grouped_mm(left, right, offs=ends)
    assert counted.total == 2 * 6 * 8 * 4
    with counter() as counted:
        out.square().sum().backward()
    assert counted.total == 2 * 6 * 8 * 4  # towards the rows only: the weights are frozen
    query = torch.randn(1, 2, 5, 8, requires_grad=True)
    with counter() as counted:
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    assert (
        counted.total == 7 * 2 * 2 * 5 * 5 * 8
    )  # two products forward; backward these again and one more for each operand


def test_counted_batches_stand_for_all(experiment, data_root, monkeypatch, tmp_path):
    """The longest questions come first: a cost is scaled by what is read and written, over early and late batches."""
    found = []
    for number, counts in enumerate((meter_module.is_counted, lambda _: True)):
        monkeypatch.setattr(meter_module, "is_counted", counts)
        cfg = experiment(arms=["ngd"], tasks=["arc_easy"], limit=24, results_dir=str(tmp_path / str(number)))
        cfg.data.root, cfg.references.only_correct = str(data_root), False
        found.append(harness.run(cfg)[1].result["cost"]["phases"])
    for phase in ("embed", "read", "score", "optimize"):
        assert found[0][phase]["flops"] == pytest.approx(found[1][phase]["flops"], rel=0.35), phase


def test_the_first_steps_stand_for_all(experiment, monkeypatch, tmp_path):
    found = []
    for name in ("some", "all"):
        if name == "all":
            monkeypatch.setattr(meter_module.Count, "step", lambda *_: None)
        cfg = experiment(
            arms=["kernel_regression", "ngd", "oracle"],
            tasks=["facts"],
            limit=1,
            results_dir=str(tmp_path / name),
        )
        found.append([run.result["cost"]["phases"]["optimize"]["flops"] for run in harness.run(cfg)[1:]])
    assert found[0] == found[1] and min(found[0]) > 0


def test_a_phase_that_fails_leaves_nothing_counting():
    meter = Meter()
    with pytest.raises(ValueError, match="stop"), meter.phase("optimize"):
        meter.step("descent")
        raise ValueError("stop")
    meter.step("descent")
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


@pytest.mark.parametrize("engine", ["suffix", "naive"])
def test_reading_references_is_no_items_cost(experiment, tmp_path, engine):
    """Of a sweep over layers only the first cell found the references read; the second's descents were charged for it."""

    def cost(store: str, **changes) -> dict[str, float]:
        cfg = experiment(engine=engine, results_dir=str(tmp_path / store), limit=8, batch_size=2, **changes)
        phases = harness.run(cfg)[-1].result["cost"]["phases"]
        return {name: phase["flops"] for name, phase in phases.items()}

    alone = cost("alone", arms=["ngd_random_neighbors"])
    assert alone == pytest.approx(cost("beside", arms=["ngd", "ngd_random_neighbors"]), rel=1e-6)
    cost("sweep", arms=["ngd"], method__layers="last:3")
    assert alone == pytest.approx(cost("sweep", arms=["ngd_random_neighbors"]), rel=1e-6)
    kept_nowhere = cost("nowhere", arms=["ngd_random_neighbors"], bank_gb=0.0)
    assert alone == pytest.approx(kept_nowhere, rel=1e-6)


def test_what_is_done_aside_is_not_of_the_phase(monkeypatch):
    """By a clock that goes on five seconds for what is done aside, one for the rest."""
    now = [0.0]
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: now[0])
    meter = Meter()
    with meter.phase("optimize"):
        now[0] += 1
        with meter.aside():
            torch.ones(8, 8) @ torch.ones(8, 8)
            now[0] += 5
    assert meter.phases()["optimize"] == {"seconds": 1.0, "flops": 0}
    assert meter.credited == -5.0
