"""Make the split that ships with the program: `python -m c3po_bench.models.makers.smolmoe_split [--output FILE]`.

The dense model writes some 50,000 tokens; on them, layer by layer, the 768 strongest neurons become the
shared expert, the rest is clustered by co-activation into 16 experts, and a router is fitted. Takes about a
quarter of an hour on one core. The result depends on the sampled text and so on the machine's arithmetic;
what ships is one run.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_bench.models.embedded import smollm
from c3po_bench.models.embedded.smolmoe import EXPERTS, SHARED, SPLIT_FILE, TOP_K, Split
from c3po_bench.models.makers.smolmoe_text import Calibration, feed_forward_inputs, write_text

log = logging.getLogger(__name__)

CLUSTERED = 4000
ROUNDS = 5
SPREAD = 0.1


def make(*, seed: int, tokens: int, text: Calibration | None = None) -> Split:
    """Split the dense model, calibrated on `tokens` tokens of `text` (the model writes it if None)."""
    folder = smollm.checkpoint()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    if text is None:
        text = write_text(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), seed=seed)
    log.info("the model wrote %d tokens", int(text.counts.sum()))
    inputs, norms = feed_forward_inputs(model, text, tokens=tokens, seed=seed)
    layers = [
        _split_layer(number, layer.mlp, inputs[number], norms[number], seed)
        for number, layer in enumerate(model.model.layers)
    ]
    return Split(torch.stack([p for p, _ in layers]), torch.stack([r for _, r in layers]))


def _split_layer(number: int, mlp, inputs: Tensor, norms: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The permutation [neurons] and the router [experts, hidden] of one layer.

    A tenth of the tokens is held out.
    """
    with torch.no_grad():
        held_out = inputs[: len(inputs) // 10]
        inputs, norms = inputs[len(held_out) :], norms[len(held_out) :]
        strength = contributions(mlp, inputs, norms)
        ridge = Ridge(inputs)
        start = first(strength[:CLUSTERED], SHARED, EXPERTS, seed=seed)
        partition = refine(strength, start, lambda energies: ridge.route(energies, TOP_K), rounds=ROUNDS)
        router = ridge.fit(energies(strength, partition.experts), spread=SPREAD)
        logits = held_out @ router.T
        weights = logits.softmax(dim=-1) * EXPERTS * chosen(logits, TOP_K)
        error, routed = left_out(mlp, held_out, partition.experts, weights)
        random = chosen(torch.rand_like(logits), TOP_K)
        lost, _ = left_out(mlp, held_out, partition.experts, random)
    log.info("layer %2d: routed %.3f; left out %.3f, with random experts %.3f", number, routed, error, lost)
    return torch.cat([partition.shared, partition.experts.flatten()]), router


Route = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Partition:
    """Neuron numbers of one layer: `shared` [768] and `experts` [16, 48], each row in order."""

    shared: Tensor
    experts: Tensor


def contributions(mlp, inputs: Tensor, yardstick: Tensor) -> Tensor:
    """How much each neuron adds: |activation| times the norm of its down projection, [tokens, neurons].

    Relative to the residual stream it is added to, whose norm is `yardstick` [tokens], so that the few tokens
    with massive activations do not decide alone.
    """
    activation = mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)
    return activation.abs() * mlp.down_proj.weight.norm(dim=0) / yardstick[:, None]


def energies(strength: Tensor, experts: Tensor) -> Tensor:
    """What each expert's neurons add, squared and summed: [tokens, experts]."""
    return torch.stack([strength[:, group].square().sum(dim=1) for group in experts], dim=1)


def first(strength: Tensor, shared: int, count: int, *, seed: int, rounds: int = 30) -> Partition:
    """The `shared` strongest neurons, and the rest in `count` equal groups active on the same tokens.

    Balanced k-means on each neuron's share of the tokens' contributions; `strength` is [tokens, neurons].
    """
    strongest = strength.mean(dim=0).topk(shared).indices.sort().values
    rest = torch.tensor(sorted(set(range(strength.shape[1])) - set(strongest.tolist())))
    points = _profiles(strength[:, rest])
    centers = _spread(points, count, seed)
    size = len(points) // count
    labels = torch.zeros(len(points), dtype=torch.long)
    for _ in range(rounds):
        renewed = _assign((points @ centers.T).repeat_interleave(size, dim=1)) // size
        if torch.equal(renewed, labels):
            break
        labels = renewed
        means = torch.stack([points[labels == group].mean(dim=0) for group in range(count)])
        centers = normalize(means, dim=1)
    return Partition(strongest, torch.stack([rest[labels == group] for group in range(count)]))


def refine(strength: Tensor, start: Partition, route: Route, *, rounds: int) -> Partition:
    """Move neurons to where the router lets most of their contribution through.

    A round routes the tokens with the present experts, `route(energies) -> mask [tokens, experts]`, and gives
    each neuron its best place: a shared neuron counts on all tokens, a routed one on those sent to its
    expert. Places are limited, so that this is an assignment problem, solved exactly.
    """
    partition = start
    squared = strength.square()
    count, size = partition.experts.shape
    shared = len(partition.shared)
    for _ in range(rounds):
        mask = route(energies(strength, partition.experts))
        kept = squared.T @ mask
        always = squared.sum(dim=0)[:, None].expand(-1, shared)
        place = _assign(torch.cat([always, kept.repeat_interleave(size, dim=1)], dim=1)) - shared
        groups = torch.where(place < 0, -1, place // size)
        experts = torch.stack([(groups == group).nonzero()[:, 0] for group in range(count)])
        partition = Partition((groups < 0).nonzero()[:, 0], experts)
    return partition


def _assign(gain: Tensor) -> Tensor:
    """The one-to-one assignment of rows to columns with the largest total gain."""
    return torch.from_numpy(linear_sum_assignment(gain.double().numpy(), maximize=True)[1].astype(np.int64))


def _profiles(strength: Tensor) -> Tensor:
    """One unit vector a neuron: its share of each token's contributions, less its own mean."""
    share = strength / strength.norm(dim=1, keepdim=True).clamp_min(1e-12)
    centered = share - share.mean(dim=0)
    return normalize(centered.T, dim=1)


def _spread(points: Tensor, count: int, seed: int) -> Tensor:
    """k-means++ starting centers."""
    generator = torch.Generator().manual_seed(seed)
    centers = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(centers) < count:
        distance = (1 - (points @ points[centers].T).amax(dim=1)).clamp_min(0) ** 2
        centers.append(int(torch.multinomial(distance, 1, generator=generator)))
    return points[centers]


class Ridge:
    """Fits router weights for one layer's `inputs` [tokens, hidden], any number of times.

    Ridge regression from the layer's input to each expert's share of what the layer adds. (Training the
    routers on the layer's output by gradient descent was tried and did not lower the error on held-out text.)
    """

    def __init__(self, inputs: Tensor, strength: float = 1e-2) -> None:
        covariance = inputs.T @ inputs
        damping = strength * covariance.diagonal().mean() * torch.eye(len(covariance))
        self._inputs = inputs
        self._factor = torch.linalg.cholesky(covariance + damping)

    def fit(self, energies: Tensor, *, spread: float) -> Tensor:
        """Router weights [experts, hidden] whose logits follow the experts' energies [tokens, experts].

        The target is the root of each energy as a share of the token's, less the token's mean. `spread` is
        the largest standard deviation over experts that the logits of any token have: small, so that softmax
        stays near uniform and a chosen expert answers with a weight near one, on the few massive tokens too.
        """
        share = normalize(energies.clamp_min(0).sqrt(), dim=1)
        target = share - share.mean(dim=1, keepdim=True)
        weight = torch.cholesky_solve(self._inputs.T @ target, self._factor).T
        return weight * (spread / (self._inputs @ weight.T).std(dim=1).amax())

    def route(self, energies: Tensor, top_k: int) -> Tensor:
        """The mask [tokens, experts] of the `top_k` experts that a router fitted to `energies` would choose."""
        return chosen(self._inputs @ self.fit(energies, spread=1.0).T, top_k)


def chosen(logits: Tensor, top_k: int) -> Tensor:
    """One for the `top_k` largest logits of each token, zero elsewhere."""
    return torch.zeros_like(logits).scatter(1, logits.topk(top_k, dim=1).indices, 1.0)


def left_out(mlp, inputs: Tensor, experts: Tensor, weights: Tensor) -> tuple[float, float]:
    """The squared error of a layer's output, as a share of that output's square, and the experts' share of it.

    `experts` [experts, neurons] are neuron numbers, `weights` [tokens, experts] what each expert answers
    with.
    """
    activation = mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)
    down = mlp.down_proj.weight
    whole = (activation @ down.T).square().sum(dim=1)
    outputs = torch.stack([activation[:, group] @ down[:, group].T for group in experts], dim=1)
    missing = torch.einsum("te,teh->th", 1 - weights, outputs).square().sum(dim=1)
    routed = outputs.sum(dim=1).square().sum(dim=1)
    return float((missing / whole).mean()), float((routed / whole).mean())


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.models.makers.smolmoe_split", description=__doc__
    )
    parser.add_argument("--output", type=Path, default=SPLIT_FILE, help="where to write the split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=24000, help="calibration tokens to measure")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    split = make(seed=options.seed, tokens=options.tokens)
    tensors = {"permutation": split.permutation.to(torch.int16), "router": split.router.to(torch.float16)}
    about = {"seed": str(options.seed), "tokens": str(options.tokens), "source": smollm.WHEEL}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, options.output, metadata=about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
