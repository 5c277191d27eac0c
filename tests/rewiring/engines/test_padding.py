"""Both engines against the model itself, given a whole batch padded on the left or on the right, at the accuracy asked for.

The engines pad (or pack) by themselves; here the override is put on a stock forward pass with an attention mask.
"""

from __future__ import annotations

import pytest
import torch
from rewiring_world import FAMILIES, all_rows, both_engines, make_prompts

from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.pathway import Mixer, core_experts
from c3po_bench.rewiring.states import Prompt

ACCURACY = 1e-4  # of a log-likelihood
GRADIENT = 1e-5  # of a pathway's gradient, relative


def stock_scores(model, family, layers, pairs, side, mixture):
    """Log-likelihoods [pairs] of answers in one padded forward pass, pathways overridden at the last context token."""
    width = max(len(c) + len(a) for c, a in pairs)
    ids, mask, last = [], [], []
    for row, (context, answer) in enumerate(pairs):
        empty = width - len(context) - len(answer)
        before, after = (empty, 0) if side == "left" else (0, empty)
        ids.append([5] * before + [*context, *answer] + [5] * after)
        mask.append([0] * before + [1] * (width - empty) + [0] * after)
        last.append(row * width + before + len(context) - 1)
    seen = torch.tensor(mask)
    with override(family, model, layers, torch.tensor(last), mixture):
        logits = model(
            input_ids=torch.tensor(ids), attention_mask=seen, position_ids=(seen.cumsum(-1) - 1).clamp_min(0)
        ).logits
    logp = logits.log_softmax(-1).flatten(0, 1)
    return torch.stack(
        [
            logp[torch.arange(at, at + len(answer)), list(answer)].sum()
            for at, (_, answer) in zip(last, pairs, strict=True)
        ]
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokens", ["one token", "several tokens"])
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("kind", FAMILIES)
def test_engines_are_the_padded_model(models, kind, batch, tokens, side):
    model, prompts = models(kind), make_prompts(batch + 1, seed=7)[1:]
    if tokens == "one token":
        prompts = [Prompt(p.context, tuple(a[:1] for a in p.continuations)) for p in prompts]
    engines, rows = both_engines(model), all_rows(prompts)
    pairs = [(prompts[i].context, prompts[i].continuations[c]) for i, c in rows]
    family, owner = engines[0].family, torch.tensor([i for i, _ in rows])
    own = engines[0].original_pathways(engines[0].read(prompts))
    core, mixer = core_experts(own, "top:6", family.top_k), Mixer(family)
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(8))

    def result(score):
        pathway = (own.log() + noise).softmax(-1).requires_grad_()
        scores = score(mixer(pathway, own, core, "dense"))
        return scores.detach(), torch.autograd.grad(scores.sum(), pathway)[0]

    def stock(mixture):
        each = type(mixture)(mixture.weights[owner], mixture.indices[owner])
        return stock_scores(model, family, engines[0].layers, pairs, side, each)

    expected, slope = result(stock)
    for engine in engines:
        reader = engine.batch(engine.read(prompts), rows)
        found, gradient = result(lambda mixture, reader=reader: reader.score(mixture, owner)[0])
        torch.testing.assert_close(found, expected, atol=ACCURACY, rtol=0)
        assert (gradient - slope).norm() < GRADIENT * slope.norm()
