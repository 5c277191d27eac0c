"""The suffix engine against the machine: the time its FLOPs and bytes would take at measured rates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.models.loading import device_of
from c3po_bench.perf.suffix import Work, olmoe_shaped, random_prompts
from c3po_bench.perf.timing import place, side_by_side
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.hook import experts_of
from c3po_bench.rewiring.meter import synchronize

if TYPE_CHECKING:
    from c3po_bench.perf.__main__ import Options


def run(options: Options) -> Iterator[dict[str, Any]]:
    """OLMoE-shaped, batch 1 and 32; on a GPU at OLMoE's own size in bfloat16, and batch 128 too."""
    device = device_of(options.device)
    cpu = device == "cpu"
    model = olmoe_shaped(device) if cpu else olmoe_shaped(device, 1, torch.bfloat16)
    for batch in (1,) if options.quick else (1, 32) if cpu else (1, 32, 128):
        yield compare("olmoe-shaped" if cpu else "olmoe, 7B in bfloat16", model, batch, options.rounds)


def rates(rounds: int, like: torch.Tensor) -> tuple[float, float]:
    """FLOPs a second of a matrix product, bytes a second of a copy (read and written); medians.

    On the device and in the dtype of `like`, at sizes that each kind of device does best.
    """
    size, columns, copied = (512, 4096, 2**26) if like.device.type == "cpu" else (8192, 8192, 2**30)
    a, b = like.new_empty(size, size).normal_(), like.new_empty(size, columns).normal_()
    source = like.new_empty(copied // like.element_size()).normal_()
    target = torch.empty_like(source)
    seconds = side_by_side(max(5, rounds), product=lambda: a @ b, copy=lambda: target.copy_(source))
    return 2 * size * size * columns / seconds["product"], 2 * copied / seconds["copy"]


def moved(work: Work) -> int:
    """Bytes that a step must move: weights of the layers rerun (twice.

    Forward, backward), keys and values, logits.

    Of the experts only those that a row mixes.
    """
    engine = work.engine
    layers = engine.decoder.layers[engine.first + 1 : engine.depth]
    weights = sum(p.numel() * p.element_size() for layer in layers for p in layer.parameters())
    for index, asked in zip(
        engine.layers[1:], work.core.any(dim=0)[1:].float().mean(dim=-1).tolist(), strict=True
    ):
        experts = experts_of(engine.family, engine.model, index).parameters()
        weights -= round((1 - asked) * sum(p.numel() * p.element_size() for p in experts))
    head = engine.model.lm_head.weight
    weights += head.numel() * head.element_size()
    span = range(engine.first + 1, engine.depth)
    cached = sum(
        t.numel() * t.element_size()
        for part in work.rows.parts
        for i in span
        for t in (part.keys[i], part.values[i])
    )
    logits = int(work.rows.lengths.sum()) * head.shape[0] * 4
    return 2 * weights + 2 * cached + 2 * logits


def compare(name: str, model: Any, batch: int, rounds: int) -> dict[str, Any]:
    """One setting. `ratio` is measured time over the floor."""
    depth = model.config.num_hidden_layers
    work = Work(load_engine("suffix", model, list(range(depth - 5, depth))), random_prompts(batch), batch)
    work.step()
    before = work.rows.flops
    work.step()
    flops = work.rows.flops - before
    taken = []
    floors = []
    for _ in range(rounds):
        per_second, copied = rates(5, model.lm_head.weight)
        start = time.perf_counter()
        work.step()
        synchronize()
        taken.append(time.perf_counter() - start)
        floors.append(flops / per_second + moved(work) / copied)
    ratios = sorted(t / f for t, f in zip(taken, floors, strict=True))
    return {
        "name": "floor",
        "setting": name,
        "batch": batch,
        "ratio": ratios[len(ratios) // 2],
        "max_abs_diff": 0.0,
        "gflop": flops / 1e9,
        "megabytes": moved(work) / 1e6,
        "step_ms": 1000 * sorted(taken)[len(taken) // 2],
        "floor_ms": 1000 * sorted(floors)[len(floors) // 2],
        **place(work.engine.device),
    }
