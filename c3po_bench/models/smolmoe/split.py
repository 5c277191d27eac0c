"""Make the split that ships with the program: `python -m c3po_bench.models.smolmoe.split [--output FILE]`.

The dense model writes some 50,000 tokens; on them, layer by layer, the 768 strongest neurons become the
shared expert, the rest is clustered by co-activation into 16 experts, and a router is fitted. Takes about a
quarter of an hour on one core. The result depends on the sampled text and so on the machine's arithmetic;
what ships is one run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from torch import Tensor

from c3po_bench.models import smollm
from c3po_bench.models.smolmoe import calibration, clustering, routers, shape

log = logging.getLogger(__name__)

CLUSTERED = 4000
ROUNDS = 5
SPREAD = 0.1


def make(*, seed: int, tokens: int, text: calibration.Calibration | None = None) -> shape.Split:
    """Split the dense model, calibrated on `tokens` tokens of `text` (the model writes it if None)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm.checkpoint()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    if text is None:
        text = calibration.write_text(
            model, AutoTokenizer.from_pretrained(folder, local_files_only=True), seed=seed
        )
    log.info("the model wrote %d tokens", int(text.counts.sum()))
    inputs, norms = calibration.feed_forward_inputs(model, text, tokens=tokens, seed=seed)
    layers = [
        _split_layer(number, layer.mlp, inputs[number], norms[number], seed)
        for number, layer in enumerate(model.model.layers)
    ]
    return shape.Split(torch.stack([p for p, _ in layers]), torch.stack([r for _, r in layers]))


def _split_layer(number: int, mlp, inputs: Tensor, norms: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The permutation [neurons] and the router [experts, hidden] of one layer.

    A tenth of the tokens is held out.
    """
    with torch.no_grad():
        held_out = inputs[: len(inputs) // 10]
        inputs, norms = inputs[len(held_out) :], norms[len(held_out) :]
        strength = clustering.contributions(mlp, inputs, norms)
        ridge = routers.Ridge(inputs)
        start = clustering.first(strength[:CLUSTERED], shape.SHARED, shape.EXPERTS, seed=seed)
        partition = clustering.refine(
            strength, start, lambda energies: ridge.route(energies, shape.TOP_K), rounds=ROUNDS
        )
        router = ridge.fit(clustering.energies(strength, partition.experts), spread=SPREAD)
        logits = held_out @ router.T
        weights = logits.softmax(dim=-1) * shape.EXPERTS * routers.chosen(logits, shape.TOP_K)
        error, routed = routers.left_out(mlp, held_out, partition.experts, weights)
        random = routers.chosen(torch.rand_like(logits), shape.TOP_K)
        lost, _ = routers.left_out(mlp, held_out, partition.experts, random)
    log.info("layer %2d: routed %.3f; left out %.3f, with random experts %.3f", number, routed, error, lost)
    return torch.cat([partition.shared, partition.experts.flatten()]), router


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m c3po_bench.models.smolmoe.split", description=__doc__)
    parser.add_argument("--output", type=Path, default=shape.SPLIT_FILE, help="where to write the split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=24000, help="calibration tokens to measure")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    about = {"seed": str(options.seed), "tokens": str(options.tokens), "source": smollm.WHEEL}
    make(seed=options.seed, tokens=options.tokens).save(options.output, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
