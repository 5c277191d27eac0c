"""What NGD and the oracle descend: the loss of the neighbors (eq. 3) and of the item itself, token by token by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rewiring_world import both_engines, make_prompts, reference

from c3po_bench.models.routing import mix
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.losses import Losses, no_loss
from c3po_bench.rewiring.neighbors import Neighborhood, item_seed
from c3po_bench.rewiring.pathway import Mixer, core_experts
from c3po_bench.rewiring.tokens import TokenizedItem
from c3po_bench.runtime.meter import Meter

PROMPTS = make_prompts(5, seed=3)[1:]  # each with answers of unlike lengths
GOLD = [1, 0, 2, 1]


def test_no_loss_is_zero_for_every_query_with_a_gradient_of_zero():
    pathway = torch.rand(3, 2, 4, requires_grad=True)
    loss = no_loss(pathway)
    assert loss.tolist() == [0.0] * 3
    (gradient,) = torch.autograd.grad(loss.sum(), pathway)
    assert not gradient.any()


def world(models: Any, kind: int, loss: str) -> tuple[Any, Any, list[TokenizedItem]]:
    """An engine, what makes losses of pathways in the place of others, and the four prompts as items."""
    engine = both_engines(models("olmoe"))[kind]
    rows = tuple((0, c) for c in range(3))
    pairs = (("c", "a"),) * 3
    items = [TokenizedItem(reference(i, str(i), pairs, GOLD[i]), (p,), rows) for i, p in enumerate(PROMPTS)]
    method = MethodConfig(loss=loss, mixing="hard", experts="all")

    def losses(own: torch.Tensor) -> Losses:
        core = core_experts(own, "all", 2)
        return Losses(engine, Mixer(engine.family), method, Meter(), own, core)

    return engine, losses, items


def log_likelihoods(engine: Any, prompt: int, pathway: torch.Tensor) -> tuple[list[float], list[int]]:
    """Of each answer to a prompt, with its last token routed as `pathway` says, by whole forward passes; their lengths."""
    context, found = PROMPTS[prompt].context, []
    weights, indices = mix(engine.family, pathway[None])
    for answer in PROMPTS[prompt].continuations:
        ids = torch.tensor([[*context, *answer]])
        mixture: Any = SimpleNamespace(weights=weights, indices=indices)
        rows = torch.tensor([len(context) - 1])
        with torch.no_grad(), override(engine.family, engine.model, list(engine.layers), rows, mixture):
            chances = engine.model(input_ids=ids).logits[0].log_softmax(-1)
        found.append(sum(float(chances[len(context) - 1 + n, token]) for n, token in enumerate(answer)))
    return found, [len(answer) for answer in PROMPTS[prompt].continuations]


def one_loss(engine: Any, prompt: int, gold: int, pathway: torch.Tensor, loss: str) -> float:
    found, lengths = log_likelihoods(engine, prompt, pathway)
    if loss == "nll":
        return -found[gold] / lengths[gold]
    return -float(torch.tensor(found).log_softmax(0)[gold])


@pytest.mark.parametrize("kind", [0, 1], ids=["naive", "suffix"])
@pytest.mark.parametrize("loss", ["nll", "choice"])
def test_the_neighbors_loss_is_the_kernel_weighted_mean_of_theirs(models, kind, loss):
    engine, losses, items = world(models, kind, loss)
    generator = torch.Generator().manual_seed(0)
    pathway = torch.randn(2, len(engine.layers), 8, generator=generator).softmax(-1)
    index, weights = torch.tensor([[0, 2, 1], [3, 1, 0]]), torch.tensor([[0.7, 0.2, 0.0], [0.3, 0.3, 0.6]])
    near = Neighborhood(index, torch.ones(2, 3), weights, torch.zeros(2))
    bank: Any = SimpleNamespace(items=items, groups=None)
    found = losses(pathway).of_neighbors(bank, near, None)(pathway).tolist()
    for q in range(2):
        each = [one_loss(engine, i, GOLD[i], pathway[q], loss) for i in index[q].tolist()]
        mean = sum(w * one for w, one in zip(weights[q].tolist(), each, strict=True)) / float(
            weights[q].sum()
        )
        assert found[q] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("loss", ["nll", "choice"])
def test_the_oracles_loss_is_the_items_own(models, loss):
    engine, losses, items = world(models, 0, loss)
    states = engine.read([item.prompts[0] for item in items])
    own = engine.original_pathways(states)
    moved = own.flip(-1)
    found = losses(own).of_items(items, states, [0, 1, 2, 3])(moved).tolist()
    assert found == pytest.approx([one_loss(engine, i, GOLD[i], moved[i], loss) for i in range(4)], abs=1e-4)


def test_shuffled_labels_are_drawn_for_each_item_and_neighbor(models):
    engine, losses, items = world(models, 0, "nll")
    own = torch.randn(2, len(engine.layers), 8, generator=torch.Generator().manual_seed(1)).softmax(-1)
    near = Neighborhood(torch.tensor([[0], [0]]), torch.ones(2, 1), torch.ones(2, 1), torch.zeros(2))
    bank: Any = SimpleNamespace(items=items, groups=None)
    found = losses(own).of_neighbors(bank, near, [5, 6])(own).tolist()
    for q, seed in enumerate([5, 6]):
        drawn = item_seed(seed, 0) % 3
        assert found[q] == pytest.approx(one_loss(engine, 0, drawn, own[q], "nll"), abs=1e-4)
