"""How cost grows: one thing at a time made larger, then all of them.

FLOPs of the engine's passes (`ratio` is these over the closed formula), and seconds of one run here.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from c3po_bench.models.flops import ItemSize
from c3po_bench.perf import Options
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.pathway import Mixer, core_experts
from c3po_bench.rewiring.states import Prompt


@dataclass(frozen=True)
class Size(ItemSize):
    """An item's size, and the number of layers, of which the last `critical` are open."""

    layers: int


SMALL = Size(layers=8, critical=3, experts=16, core=8, prompt=48, answer=4, choices=4, neighbors=3, steps=2)
GROWN = Size(
    layers=16, critical=5, experts=32, core=16, prompt=192, answer=12, choices=8, neighbors=9, steps=6
)
TOP_K, WIDTH, INNER, VOCABULARY = 4, 256, 128, 4096


def run(options: Options) -> Iterator[dict[str, Any]]:
    """The small size, each dimension grown alone, and all at once."""
    yield compare("small", SMALL)
    if not options.quick:
        for name, value in asdict(GROWN).items():
            yield compare(f"{name} {value}", replace(SMALL, **{name: value}))
        yield compare("all of these", GROWN)


def compare(name: str, size: Size) -> dict[str, Any]:
    """One size: an item is read once, descended `steps` times over its neighbors, and scored once."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=size.experts,
        num_experts_per_tok=TOP_K,
        eos_token_id=None,
    )
    model = OlmoeForCausalLM(config).eval()
    engine = load_engine("suffix", model, list(range(size.layers - size.critical, size.layers)))
    generator = torch.Generator().manual_seed(0)

    def prompt(choices: int) -> Prompt:
        shape = (choices, size.prompt + size.answer)
        rows = torch.randint(5, VOCABULARY, shape, generator=generator).tolist()
        return Prompt(tuple(rows[0][: size.prompt]), tuple(tuple(row[size.prompt :]) for row in rows))

    asked, near = prompt(size.choices), [prompt(1) for _ in range(size.neighbors)]
    rows = engine.batch(engine.read(near), [(i, 0) for i in range(len(near))])
    start = time.perf_counter()
    state = engine.read_new([asked])[0]
    original = engine.original_pathways([state])
    mixer, core = Mixer(engine.family), core_experts(original, f"top:{size.core}", TOP_K)
    owner = torch.zeros(len(near), dtype=torch.long)
    for _ in range(size.steps):
        pathway = original.clone().requires_grad_()
        scores, _ = rows.score(mixer(pathway, original, core, "dense"), owner, greedy=False)
        torch.autograd.grad(scores.sum(), pathway)
    answers = engine.batch([state], [(0, c) for c in range(size.choices)])
    answers.score(None)
    seconds = time.perf_counter() - start
    flops = {"read": state.flops, "optimize": rows.flops, "score": answers.flops}
    expected = engine.shape.rewiring(size)
    return {
        "name": "growth",
        "setting": name,
        "ratio": sum(flops.values()) / sum(expected.values()),
        "max_abs_diff": 0.0,
        "gflop": sum(flops.values()) / 1e9,
        **{f"{phase}_ratio": flops[phase] / expected[phase] for phase in expected},
        "optimize_over_read": flops["optimize"] / flops["read"],
        "milliseconds": 1000 * seconds,
    }
