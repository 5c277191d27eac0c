"""What NGD and the oracle descend: the loss of the neighbors (eq. 3) and of the item itself, token by token by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rewiring_world import both_engines, make_prompts

from c3po_bench.models.families import mix
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.neighbors import Neighborhood
from c3po_bench.rewiring.pathway import core_experts
from c3po_bench.rewiring.questions import Question
from c3po_bench.rewiring.rewirer import Recipe, Rewirer
from c3po_bench.rewiring.surrogates.ngd import ngd

PROMPTS = make_prompts(5, seed=3)[1:]  # each with answers of unlike lengths
GOLD = [1, 0, 2, 1]


def world(models: Any, kind: int, loss: str) -> tuple[Rewirer, list[Question]]:
    """A rewirer over a bank of the four prompts, and their questions."""
    engine = both_engines(models("olmoe"))[kind]
    rows = tuple((0, c) for c in range(3))
    questions = [Question(("t", i), str(i), (p,), rows, GOLD[i], str(i)) for i, p in enumerate(PROMPTS)]
    bank: Any = SimpleNamespace(
        questions=questions,
        prompts=lambda pairs: [PROMPTS[i] for i, _ in pairs],
        groups=None,
        embeddings=np.zeros((4, 2), dtype=np.float32),
        pathways=np.zeros((4, 8, 8), dtype=np.float32),
    )
    method = MethodConfig(loss=loss, mixing="hard", experts="all")
    return Rewirer(engine, method, Recipe(ngd), bank=bank), questions


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
    rewirer, _ = world(models, kind, loss)
    generator = torch.Generator().manual_seed(0)
    pathway = torch.randn(2, len(rewirer.engine.layers), 8, generator=generator).softmax(-1)
    index, weights = torch.tensor([[0, 2, 1], [3, 1, 0]]), torch.tensor([[0.7, 0.2, 0.0], [0.3, 0.3, 0.6]])
    near = Neighborhood(index, torch.ones(2, 3), weights, torch.zeros(2))
    core = core_experts(pathway, "all", 2)
    found = rewirer._neighbors_loss(near, pathway, core, [0, 1])(pathway).tolist()
    for q in range(2):
        each = [one_loss(rewirer.engine, i, GOLD[i], pathway[q], loss) for i in index[q].tolist()]
        mean = sum(w * one for w, one in zip(weights[q].tolist(), each, strict=True)) / float(
            weights[q].sum()
        )
        assert found[q] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("loss", ["nll", "choice"])
def test_the_oracles_loss_is_the_items_own(models, loss):
    rewirer, questions = world(models, 0, loss)
    states = rewirer.engine.read([question.prompts[0] for question in questions], rewirer.meter)
    own = rewirer.engine.original_pathways(states)
    core = core_experts(own, "all", 2)
    moved = own.flip(-1)
    found = rewirer._own_loss(questions, states, [0, 1, 2, 3], own, core)(moved).tolist()
    assert found == pytest.approx(
        [one_loss(rewirer.engine, i, GOLD[i], moved[i], loss) for i in range(4)], abs=1e-4
    )
