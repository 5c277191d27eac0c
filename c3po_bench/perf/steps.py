"""Steps of neighborhood gradient descent: the suffix engine against the naive one, and against the machine.

An item's cost is its share of one optimization step, forward and backward over its three neighbors. All steps
are alike, and both engines' results are equal.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from c3po_bench.models.loading import device_of
from c3po_bench.perf import Options
from c3po_bench.perf.workload import (
    NEIGHBORS,
    Work,
    embedded,
    last_layers,
    olmoe_shaped,
    place,
    questions,
    random_prompts,
    side_by_side,
)
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.states import Prompt
from c3po_bench.runtime.meter import synchronize

SMOLMOE_BATCHES = (1, 4, 16, 32)
OLMOE = "olmoe, 7B in bfloat16"


def suffix(options: Options) -> Iterator[dict[str, Any]]:
    """OLMoE-shaped, mixed dense and hard; smolmoe 5-shot; smolmoe zero-shot last, at the default batch.

    On a GPU also OLMoE at its own size in bfloat16, and larger batches.
    """
    device, quick = device_of(options.device), options.quick
    large = () if device == "cpu" else (128,)
    if large:
        whole = olmoe_shaped(device, 1, torch.bfloat16)
        for batch in (1,) if quick else (1, 8, 32, *large):
            yield compare_engines(OLMOE, whole, random_prompts(batch), batch, options.rounds)
        del whole
    shaped = olmoe_shaped(device)
    settings = [("olmoe-shaped", b, "dense") for b in ((1,) if quick else (1, 8, 32, *large))]
    settings += [] if quick else [("olmoe-shaped, hard", b, "hard") for b in (1, 32)]
    for name, batch, mixing in settings:
        yield compare_engines(name, shaped, random_prompts(batch), batch, options.rounds, mixing)
    del shaped
    loaded = embedded(options)
    for shots, name, batches in (
        (5, f"{options.model} 5-shot", (1, 16)),
        (0, f"{options.model} zero-shot", SMOLMOE_BATCHES),
    ):
        count = (1 + NEIGHBORS) * max(SMOLMOE_BATCHES + large)
        asked = [(q.prompts[0], q.item.gold or 0) for q in questions(loaded, count, options.data, shots)]
        prompts = [Prompt(prompt.context, (prompt.continuations[gold],)) for prompt, gold in asked]
        for batch in (1,) if quick else (*batches, *large):
            yield compare_engines(name, loaded.model, prompts, batch, options.rounds)


def compare_engines(
    name: str, model: Any, prompts: list[Prompt], batch: int, rounds: int, mixing: str = "dense"
) -> dict[str, Any]:
    """One setting.

    The naive engine runs an item at a time, its three neighbors in one batch (`ratio`) or, as the formula
    reads, one forward after the other (`ratio_forward_by_forward`). The suffix engine runs `batch` items at
    once.
    """
    naive, fast = (load_engine(kind, model, last_layers(model)) for kind in ("naive", "suffix"))
    one, many = Work(naive, prompts, 1, mixing=mixing), Work(fast, prompts, batch, mixing=mixing)
    row = Work(naive, prompts, 1, neighbors=1, mixing=mixing)
    seconds = side_by_side(rounds, naive=one.step, naive_row=row.step, suffix=many.step)
    left, right = one.solve(10), Work(fast, prompts, 1, mixing=mixing).solve(10)
    each = seconds["suffix"] / batch
    return {
        "name": "suffix",
        "setting": name,
        "batch": batch,
        "ratio": seconds["naive"] / each,
        "max_abs_diff": float((left.losses - right.losses).abs().max()),
        "max_pathway_diff": float((left.pathway - right.pathway).abs().max()),
        "ratio_forward_by_forward": NEIGHBORS * seconds["naive_row"] / each,
        "naive_ms": 1000 * seconds["naive"],
        "suffix_ms": 1000 * each,
        "prompt_tokens": sum(len(p.context) for p in prompts) / len(prompts),
        "answer_tokens": sum(len(p.continuations[0]) for p in prompts) / len(prompts),
        **place(naive.device),
    }


def floor(options: Options) -> Iterator[dict[str, Any]]:
    """The time of a step over the time that its FLOPs and bytes would take at measured rates.

    OLMoE-shaped, batch 1 and 32; on a GPU at OLMoE's own size in bfloat16, and batch 128 too.
    """
    device = device_of(options.device)
    cpu = device == "cpu"
    model = olmoe_shaped(device) if cpu else olmoe_shaped(device, 1, torch.bfloat16)
    for batch in (1,) if options.quick else (1, 32) if cpu else (1, 32, 128):
        yield against_machine("olmoe-shaped" if cpu else OLMOE, model, batch, options.rounds)


def against_machine(name: str, model: Any, batch: int, rounds: int) -> dict[str, Any]:
    """One setting. `ratio` is measured time over the floor."""
    work = Work(load_engine("suffix", model, last_layers(model)), random_prompts(batch), batch)
    work.step()
    prepared = work.rows.flops
    work.step()
    flops, megabytes = work.rows.flops - prepared, moved(work) / 1e6
    taken, floors = [], []
    for _ in range(rounds):
        per_second, copied = rates(5, model.lm_head.weight)
        start = time.perf_counter()
        work.step()
        synchronize()
        taken.append(time.perf_counter() - start)
        floors.append(flops / per_second + 1e6 * megabytes / copied)
    return {
        "name": "floor",
        "setting": name,
        "batch": batch,
        "ratio": statistics.median(t / f for t, f in zip(taken, floors, strict=True)),
        "max_abs_diff": 0.0,
        "gflop": flops / 1e9,
        "megabytes": megabytes,
        "step_ms": 1000 * statistics.median(taken),
        "floor_ms": 1000 * statistics.median(floors),
        **place(work.engine.device),
    }


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
    """Bytes that a step must move, forward and backward.

    Weights of the layers rerun (of the experts those that a row mixes), keys and values, logits.
    """
    engine, span = work.engine, range(work.engine.first + 1, work.engine.depth)
    weights = sum(_bytes(engine.decoder.layers[i].parameters()) for i in span)
    shares = work.core.any(dim=0)[1:].float().mean(dim=-1).tolist()
    for layer, share in zip(engine.layers[1:], shares, strict=True):
        weights -= round((1 - share) * _bytes(engine.family.experts_of(engine.model, layer).parameters()))
    head = engine.model.lm_head.weight
    cached = [t for part in work.rows.parts for i in span for t in (part.keys[i], part.values[i])]
    logits = int(work.rows.lengths.sum()) * head.shape[0] * 4
    return 2 * (weights + _bytes([head]) + _bytes(cached) + logits)


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
