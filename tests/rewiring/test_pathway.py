"""Which layers and experts may move, and how a pathway becomes mixing weights."""

from __future__ import annotations

import pytest
import torch

from c3po_bench.errors import UserError
from c3po_bench.models.routing import family_of, mix
from c3po_bench.rewiring.config import MethodConfig, NeighborsConfig
from c3po_bench.rewiring.pathway import Mixer, check_method, core_experts, critical_layers

SIXTEEN = list(range(16))
# the layer sets of the paper's table (Table 8), counted by hand over OLMoE's 16 layers
PAPER = {
    "first:1": [0],
    "middle:1": [7],
    "last:1": [15],
    "first:1+middle:1": [0, 7],
    "first:1+last:1": [0, 15],
    "middle:1+last:1": [7, 15],
    "first:2": [0, 1],
    "middle:2": [7, 8],
    "last:2": [14, 15],
    "first:2+middle:3": [0, 1, 6, 7, 8],
    "first:2+last:3": [0, 1, 13, 14, 15],
    "middle:2+last:3": [7, 8, 13, 14, 15],
    "first:5": [0, 1, 2, 3, 4],
    "middle:5": [5, 6, 7, 8, 9],
    "last:5": [11, 12, 13, 14, 15],
    "all": SIXTEEN,
}


@pytest.mark.parametrize("spec", PAPER)
def test_layer_sets_of_the_paper(spec):
    assert critical_layers(spec, SIXTEEN) == PAPER[spec]


def test_explicit_layers_and_dense_first_layer():
    assert critical_layers("3, 0,7", SIXTEEN) == [0, 3, 7]
    assert critical_layers("first:2", [1, 2, 3, 4]) == [1, 2]


@pytest.mark.parametrize("spec", ["last:17", "last:0", "lst:5", "0,99", "", "last:5+", "0"])
def test_layers_that_cannot_be(spec):
    with pytest.raises(UserError, match="method.layers"):
        critical_layers(spec, list(range(1, 16)))


def test_core_experts_are_the_models_best():
    own = torch.tensor([[[0.1, 0.4, 0.2, 0.3]]])
    assert core_experts(own, "top:2", 2).tolist() == [[[False, True, False, True]]]
    assert core_experts(own, "top:1", 2).sum() == 2, "never fewer than the model mixes"
    assert core_experts(own, "top:99", 2).all() and core_experts(own, "all", 2).all()
    with pytest.raises(UserError, match="method.experts"):
        core_experts(own, "best", 2)


@pytest.fixture
def pathways():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(3, 2, 8, generator=generator).softmax(-1)
    new = torch.randn(3, 2, 8, generator=generator).softmax(-1)
    return own, new, core_experts(own, "top:5", 2)


@pytest.mark.parametrize("kind", ["olmoe", "mixtral", "deepseek_v2"])
def test_hard_mixing_selects_top_k_within_the_core(models, pathways, kind):
    own, new, core = pathways
    family = family_of(models(kind))
    mixture = Mixer(family)(new, own, core, "hard")
    best = new.masked_fill(~core, -1).topk(family.top_k, -1)
    expected = best.values / best.values.sum(-1, keepdim=True) if family.renormalise else best.values
    torch.testing.assert_close(mixture.weights, expected * family.scale)
    assert mixture.indices.equal(best.indices)


def test_dense_mixing_uses_the_whole_core(models, pathways):
    own, new, core = pathways
    mixture = Mixer(family_of(models("olmoe")))(new, own, core, "dense")
    assert mixture.indices.shape[-1] == 5
    assert core.gather(-1, mixture.indices).all()
    torch.testing.assert_close(mixture.weights, new.gather(-1, mixture.indices))


def test_straight_through_has_the_value_of_hard_and_the_gradient_of_dense(models, pathways):
    own, new, core = pathways
    mixer = Mixer(family_of(models("mixtral")))
    grads, values = {}, {}
    probe = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(1))
    for mixing in ("hard", "dense", "straight_through"):
        pathway = new.clone().requires_grad_()
        mixture = mixer(pathway, own, core, mixing)
        spread = torch.zeros_like(new).scatter(-1, mixture.indices, mixture.weights)
        values[mixing] = spread.detach()
        (grads[mixing],) = torch.autograd.grad((spread * probe).sum(), pathway)
    torch.testing.assert_close(values["straight_through"], values["hard"])
    torch.testing.assert_close(grads["straight_through"], grads["dense"])
    assert (grads["hard"] - grads["dense"]).abs().max() > 1e-3


@pytest.mark.parametrize("mixing", ["hard", "dense"])
def test_a_preserved_total_weight_is_the_models_own(models, pathways, mixing):
    own, new, core = pathways
    family = family_of(models("olmoe"))
    flat = torch.full_like(new, 1 / 8)
    before = mix(family, own)[0].sum(-1)
    assert (Mixer(family)(flat, own, core, "hard").weights.sum(-1) < before).all(), "flattening loses weight"
    torch.testing.assert_close(
        Mixer(family, preserve_total_weight=True)(flat, own, core, mixing).weights.sum(-1), before
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position", "lst"),
        ("parameterization", "logit"),
        ("final_mixing", "straight_through"),
        ("mixing", "soft"),
        ("optimizer", "adm"),
        ("schedule", "cos"),
        ("loss", "ce"),
        ("tune", "test"),
    ],
)
def test_fixed_choices_are_checked(key, value):
    method = MethodConfig()
    check_method(method)
    setattr(method, key, value)
    with pytest.raises(UserError, match=f"method.{key}"):
        check_method(method)


def test_kinds_of_neighborhoods_are_checked():
    with pytest.raises(UserError, match="unknown method.neighbors.kind 'kn'.*'knn'"):
        check_method(MethodConfig(neighbors=NeighborsConfig(kind="kn")))
