"""The override hook: what it adds up to, that it touches chosen tokens only, and that it leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from rewiring_world import FAMILIES

from c3po_bench.models.routing import family_of
from c3po_bench.rewiring.hook import override, record_routing
from c3po_bench.rewiring.pathway import Mixture


def capture(module, run):
    """Input hidden states and output of `module` during `run`, seen from outside our own hooks."""
    seen = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args: seen.setdefault("args", args), prepend=True),
        module.register_forward_hook(lambda _m, _a, out: seen.__setitem__("out", out)),
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen["args"][0], seen["out"]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("slots", [1, 2, 5, 8])
def test_overridden_token_is_the_weighted_sum_of_its_experts(models, kind, slots):
    """Against the sum written by hand, one expert at a time; any number of experts, whatever the model's top-k."""
    model = models(kind)
    family = family_of(model)
    layer = family.layers[-1]
    experts = family.experts_of(model, layer)
    ids = torch.arange(3, 15)[None]
    generator = torch.Generator().manual_seed(slots)
    indices = torch.randperm(family.num_experts, generator=generator)[:slots]
    weights = torch.rand(slots, generator=generator)
    mixture = Mixture(weights[None, None], indices[None, None])
    with torch.no_grad():
        with override(family, model, [layer], torch.tensor([7]), mixture):
            hidden, out = capture(experts, lambda: model(ids))
        expected = torch.zeros_like(out[7])
        for weight, index in zip(weights, indices, strict=True):
            one = torch.zeros(1, family.top_k)
            one[0, 0] = 1.0
            expected += weight * experts(hidden[7:8], index.expand(1, family.top_k), one)[0]
    torch.testing.assert_close(out[7], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_other_tokens_and_later_forwards_are_untouched(models, kind):
    model = models(kind)
    family = family_of(model)
    layers = list(family.layers[-2:])
    ids = torch.arange(3, 15)[None]
    mixture = Mixture(torch.rand(1, 2, 5) + 0.2, torch.arange(5).expand(1, 2, 5))
    with torch.no_grad():
        before = model(ids).logits
        with override(family, model, layers, torch.tensor([9]), mixture):
            during = model(ids).logits
        after = model(ids).logits
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    torch.testing.assert_close(during[0, :9], before[0, :9], atol=1e-5, rtol=1e-5)
    assert (during[0, 9] - before[0, 9]).abs().max() > 1e-3


@pytest.mark.parametrize("others", [0, 1])  # all tokens are overridden, or all but one: two ways in the hook
def test_tokens_may_be_named_in_any_order(models, others):
    model = models("olmoe")
    family = family_of(model)
    layers = list(family.layers[-2:])
    ids = torch.arange(3, 15)[None]
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(0))[others:]
    weights, indices = (
        torch.rand(len(rows), 2, 3) + 0.2,
        torch.rand(len(rows), 2, family.num_experts).topk(3).indices,
    )
    order = rows.argsort()
    with torch.no_grad():
        with override(family, model, layers, rows, Mixture(weights, indices)):
            mixed = model(ids).logits
        with override(family, model, layers, rows[order], Mixture(weights[order], indices[order])):
            torch.testing.assert_close(mixed, model(ids).logits)


def test_hooks_are_removed_when_the_forward_fails(models):
    model = models("olmoe")
    family = family_of(model)
    experts = family.experts_of(model, 4)
    mixture = Mixture(torch.ones(1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.long))
    with pytest.raises(ZeroDivisionError), override(family, model, [4], torch.tensor([0]), mixture):
        raise ZeroDivisionError
    assert not experts._forward_pre_hooks and not experts._forward_hooks


def test_recording_keeps_router_logits_by_layer(models):
    model = models("olmoe")
    family = family_of(model)
    with record_routing(family, model, [1, 3]) as seen, torch.no_grad():
        model(torch.arange(3, 9)[None])
    assert sorted(seen) == [1, 3] and seen[1].shape == (6, 8)
    assert not family.router_of(model, 1)._forward_hooks
