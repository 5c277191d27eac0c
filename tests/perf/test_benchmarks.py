"""Hot functions under pytest-benchmark: `pytest --override-ini addopts= --benchmark-only tests/perf`. Skipped otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from c3po_bench.analysis import statistics
from c3po_bench.models.tiny import tiny_model
from c3po_bench.perf.workload import Work
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.engines.products import PackedWeights
from c3po_bench.rewiring.neighbors import nearest
from c3po_bench.rewiring.states import Prompt


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(5, 30, (32, 44), generator=generator).tolist()
    return [Prompt(tuple(row[:40]), (tuple(row[40:]),)) for row in rows]


@pytest.fixture(scope="module", params=["suffix", "naive"])
def engine(request):
    return load_engine(request.param, tiny_model("olmoe"), [0, 1])


def test_reading(benchmark, engine, prompts):
    assert len(benchmark(lambda: engine.read_new(prompts))) == len(prompts)


def test_a_step_of_descent(benchmark, engine, prompts):
    assert benchmark(Work(engine, prompts, 8).step).isfinite().all()


@pytest.mark.parametrize("tokens", [3, 24, 96])
def test_twenty_of_64_experts(benchmark, tokens):
    """Their products with OLMoE's widths divided by four: three layers in turn, more than a cache holds."""
    generator = torch.Generator().manual_seed(1)
    liked = 0.7 * torch.randn(64, generator=generator) + torch.randn(tokens, 64, generator=generator)
    counts = liked.topk(20).indices.flatten().bincount(minlength=64).tolist()
    rows, layers = (
        torch.randn(sum(counts), 512),
        [PackedWeights.of(torch.randn(64, 512, 512)) for _ in range(3)],
    )
    assert len(benchmark(lambda: [weights.times(rows, counts) for weights in layers])) == 3


def test_retrieval(benchmark):
    rows = torch.nn.functional.normalize(torch.randn(10_000, 384), dim=-1)
    assert benchmark(lambda: nearest(MethodConfig(), rows[:16], rows)).index.shape[0] == 16


def test_the_paired_bootstrap(benchmark):
    draw = np.random.default_rng(0)
    arm, base = draw.integers(0, 2, (2, 1172))
    found = benchmark(lambda: statistics.paired_bootstrap(arm, base))
    assert found.low <= found.value <= found.high
