"""The suffix engine against the machine: the time its FLOPs and bytes would take at measured rates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.perf.suffix import Work, olmoe_shaped
from c3po_bench.perf.timing import side_by_side
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.engines.base import Prompt
from c3po_bench.rewiring.meter import counter

if TYPE_CHECKING:
    from c3po_bench.perf.__main__ import Options


def run(options: Options) -> Iterator[dict[str, Any]]:
    """OLMoE-shaped, batch 1 and 32."""
    model = olmoe_shaped()
    generator = torch.Generator().manual_seed(0)
    prompts = [Prompt(tuple(torch.randint(5, 12000, (128,), generator=generator).tolist()), ((7,),)) for _ in range(128)]
    for batch in (1,) if options.quick else (1, 32):
        yield compare(model, prompts, batch, options.rounds)


def rates(rounds: int) -> tuple[float, float]:
    """FLOPs a second of a matrix product, bytes a second of a copy (read and written); medians."""
    a, b = torch.randn(512, 512), torch.randn(512, 4096)
    source = torch.randn(16 * 2**20)
    target = torch.empty_like(source)
    seconds = side_by_side(max(5, rounds), product=lambda: a @ b, copy=lambda: target.copy_(source))
    return 2 * 512 * 512 * 4096 / seconds["product"], 2 * 4 * source.numel() / seconds["copy"]


def moved(work: Work) -> int:
    """Bytes that a step must move: weights of the layers rerun (twice: forward, backward), keys and values, logits."""
    engine = work.engine
    layers = engine.decoder.layers[engine.first + 1 : engine.depth]
    weights = sum(p.numel() * p.element_size() for layer in layers for p in layer.parameters())
    head = engine.model.lm_head.weight
    weights += head.numel() * head.element_size()
    span = range(engine.first + 1, engine.depth)
    cached = sum(
        t.numel() * t.element_size() for part in work.rows.parts for i in span for t in (part.keys[i], part.values[i])
    )
    logits = int(work.rows.lengths.sum()) * head.shape[0] * 4
    return 2 * weights + 2 * cached + 2 * logits


def compare(model: Any, prompts: list[Prompt], batch: int, rounds: int) -> dict[str, Any]:
    """One setting. `ratio` is measured time over the floor."""
    depth = model.config.num_hidden_layers
    work = Work(load_engine("suffix", model, list(range(depth - 5, depth))), prompts, batch)
    work.step()
    with counter() as counted:
        work.step()
    taken = []
    floors = []
    for _ in range(rounds):
        per_second, copied = rates(5)
        start = time.perf_counter()
        work.step()
        taken.append(time.perf_counter() - start)
        floors.append(counted.total / per_second + moved(work) / copied)
    ratios = sorted(t / f for t, f in zip(taken, floors, strict=True))
    return {
        "name": "floor",
        "setting": "olmoe-shaped",
        "batch": batch,
        "ratio": ratios[len(ratios) // 2],
        "max_abs_diff": 0.0,
        "gflop": counted.total / 1e9,
        "megabytes": moved(work) / 1e6,
        "step_ms": 1000 * sorted(taken)[len(taken) // 2],
        "floor_ms": 1000 * sorted(floors)[len(floors) // 2],
        "threads": torch.get_num_threads(),
    }
