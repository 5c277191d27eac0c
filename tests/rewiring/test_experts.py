"""Our experts function gives what the model's own gives, values and gradients, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from rewiring_world import FAMILIES

from c3po_bench.models.families import family_of
from c3po_bench.rewiring.engines import experts as ours
from c3po_bench.rewiring.hook import experts_of


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 3, 40])  # a few rows an expert, and more
@pytest.mark.parametrize("packed", [True, False])
def test_values_and_gradients_are_the_models_own(models, kind, tokens, packed, monkeypatch):
    if not packed:
        monkeypatch.setattr(ours, "packed", lambda *_: None)
    model = models(kind)
    family = family_of(model)
    experts = experts_of(family, model, family.layers[-1])
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, model.config.hidden_size, generator=generator)
    indices = torch.stack([torch.randperm(family.num_experts, generator=generator)[:4] for _ in range(tokens)])
    weights = torch.rand(tokens, 4, generator=generator)
    found = []
    for function in (experts, lambda *args: ours.mix_experts(experts, *args)):
        h, w = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
        out = function(h, indices, w)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), (h, w))))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_the_model_keeps_its_own_way(models):
    model = models("olmoe")
    with pytest.raises(ZeroDivisionError), ours.few_rows(model):
        assert model.config._experts_implementation == ours.NAME
        _ = 1 / 0
    assert model.config._experts_implementation == "grouped_mm"


def test_another_way_that_was_asked_for_is_left_alone(models):
    model = models("olmoe")
    model.set_experts_implementation("eager")
    try:
        with ours.few_rows(model):
            assert model.config._experts_implementation == "eager"
    finally:
        model.set_experts_implementation("grouped_mm")
