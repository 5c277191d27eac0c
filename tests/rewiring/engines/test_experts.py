"""Our experts function gives what the model's own gives, values and gradients, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from rewiring_world import FAMILIES

from c3po_bench.models.routing import family_of
from c3po_bench.rewiring.engines import experts as ours


def asked(model, tokens, wanted=2):
    """The last routed layer's experts, of which each token wants some, and what they are given."""
    family = family_of(model)
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, model.config.hidden_size, generator=generator)
    indices = torch.stack(
        [torch.randperm(family.num_experts, generator=generator)[:wanted] for _ in range(tokens)]
    )
    return (
        family.experts_of(model, family.layers[-1]),
        hidden,
        indices,
        torch.rand(tokens, wanted, generator=generator),
    )


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 3, 40])  # a few rows an expert, and more
@pytest.mark.parametrize("wanted", [2, 4, 8])
@pytest.mark.parametrize("packed", [True, False])
def test_values_and_gradients_are_the_models_own(models, kind, tokens, wanted, packed, monkeypatch):
    experts, hidden, indices, weights = asked(models(kind), tokens, wanted)
    if torch.backends.mkldnn.is_available() and not ours.needs_stock(experts):
        assert ours.asks_most(experts, wanted) == (2 * wanted >= experts.num_experts), (
            "both ways should be taken"
        )
    if not packed:  # as when packed weights found no room, or only those for the forward pass did
        monkeypatch.setattr(ours, "packed", lambda *_: None)
        monkeypatch.setattr(ours, "asks_most", lambda _, k: k == wanted == 8)
    found = []
    for function in (experts, lambda *args: ours.moe_step(experts, *args)):
        h, w = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
        out = function(h, indices, w)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), (h, w))))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 40])
def test_the_way_without_a_gradient_gives_the_models_own_values(models, kind, tokens):
    experts, hidden, indices, weights = asked(models(kind), tokens)
    given = hidden.clone()
    torch.testing.assert_close(
        ours.moe_prefill(experts, hidden, indices, weights), experts(hidden, indices, weights).detach()
    )
    assert torch.equal(hidden, given)


def test_the_model_keeps_its_own_way(models):
    model = models("olmoe")
    with pytest.raises(ZeroDivisionError), ours.experts_by(ours.moe_step, model):
        assert model.config._experts_implementation == ours.NAME
        _ = 1 / 0
    assert model.config._experts_implementation == "grouped_mm"


def test_another_way_that_was_asked_for_is_left_alone(models):
    model = models("olmoe")
    model.set_experts_implementation("eager")
    try:
        with ours.experts_by(ours.moe_step, model):
            assert model.config._experts_implementation == "eager"
    finally:
        model.set_experts_implementation("grouped_mm")
