"""Both engines compute the same numbers, for every family; the naive one is checked against plain forwards."""

from __future__ import annotations

import pytest
import torch
from rewiring_world import FAMILIES, all_rows, both_engines, make_prompts

from c3po_bench.errors import UserError
from c3po_bench.models.routing import family_of
from c3po_bench.models.tiny import tiny_model
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.pathway import Mixer, core_experts

MIXES = [
    (False, "hard"),
    (False, "dense"),
    (False, "straight_through"),
    (True, "dense"),
    (True, "hard"),
]


def random_pathways(own: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@pytest.mark.parametrize("kind", FAMILIES)
def test_plain_scores_are_those_of_the_model(models, kind):
    model, prompts = models(kind), make_prompts(4)
    for engine in both_engines(model):
        states = engine.read(prompts)
        scores, greedy = engine.batch(states, all_rows(prompts)).score(None)
        for row, (i, c) in enumerate(all_rows(prompts)):
            context, answer = prompts[i].context, prompts[i].continuations[c]
            with torch.no_grad():
                logits = model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
            logp = logits.log_softmax(-1)
            expected = logp.gather(-1, torch.tensor(answer)[:, None]).sum()
            assert scores[row].item() == pytest.approx(expected.item(), abs=1e-4)
            assert bool(greedy[row]) == (logp.argmax(-1).tolist() == list(answer))


@pytest.mark.parametrize("kind", FAMILIES)
def test_original_pathways_are_the_routers(models, kind):
    model, prompts = models(kind), make_prompts(3)
    naive, suffix = both_engines(model)
    a, b = naive.read(prompts), suffix.read(prompts)
    for x, y in zip(a, b, strict=True):
        assert x.original.shape == (len(naive.family.layers), naive.family.num_experts)
        torch.testing.assert_close(x.original.sum(-1), torch.ones(len(x.original)))
        torch.testing.assert_close(x.original, y.original, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("position", ["last", "continuation"])
@pytest.mark.parametrize("layers", ["last", "mixed", "all"])
def test_engines_agree_under_override(models, kind, position, layers):
    """Scores and gradients, hard, dense and straight-through, total weight as it is or preserved."""
    model, prompts = models(kind), make_prompts(5, seed=1)
    routed = list(family_of(model).layers)
    chosen = {"last": routed[-2:], "mixed": [routed[0], routed[-1]], "all": routed}[layers]
    naive, suffix = both_engines(model, chosen, position)
    rows = all_rows(prompts)
    owner = torch.tensor([i for i, _ in rows])
    batches = [(e, e.batch(e.read(prompts), rows)) for e in (naive, suffix)]
    own = naive.original_pathways(naive.read(prompts))
    core = core_experts(own, "top:6", naive.family.top_k)
    for preserve, mixing in MIXES:
        found = []
        for engine, batch in batches:
            pathway = random_pathways(own).requires_grad_()
            mixture = Mixer(engine.family, preserve)(pathway, own, core, mixing)
            scores, _ = batch.score(mixture, owner)
            (gradient,) = torch.autograd.grad(scores.sum(), pathway)
            found.append((scores.detach(), gradient))
        (s1, g1), (s2, g2) = found
        assert (s1 - batches[0][1].score(None)[0]).abs().max() > 1e-3, "the override changed nothing"
        torch.testing.assert_close(s1, s2, atol=1e-4, rtol=0)
        assert (g1 - g2).norm() < 1e-5 * g1.norm()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mixtral", {"sliding_window": 6}),
        ("qwen2_moe", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 3}),
        ("qwen3_moe", {"sliding_window": 6, "use_sliding_window": True}),
        ("olmoe", {"clip_qkv": 0.5}),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
    ],
)
def test_engines_agree_on_what_a_config_may_ask_for(kind, changes):
    """Windows shorter than the prompts, clipped projections, experts chosen within groups."""
    model, prompts = tiny_model(kind, **changes), make_prompts(5, seed=1)
    rows, found = all_rows(prompts), []
    for engine in both_engines(model):
        states = engine.read(prompts)
        own = engine.original_pathways(states)
        pathway = random_pathways(own).requires_grad_()
        mixture = Mixer(engine.family)(pathway, own, core_experts(own, "all", engine.family.top_k), "hard")
        batch = engine.batch(states, rows)
        scores, _ = batch.score(mixture, torch.tensor([i for i, _ in rows]))
        found.append(
            (own, batch.score(None)[0], scores.detach(), torch.autograd.grad(scores.sum(), pathway)[0])
        )
    for naive, suffix in zip(*found, strict=True):
        torch.testing.assert_close(suffix, naive, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_original_pathway_changes_nothing(models, kind):
    """The identity override: scores are the base model's."""
    prompts = make_prompts(4, seed=2)
    for engine in both_engines(models(kind), position="last"):
        states = engine.read(prompts)
        rows = all_rows(prompts)
        batch = engine.batch(states, rows)
        own = engine.original_pathways(states)
        core = core_experts(own, "top:4", engine.family.top_k)
        mixture = Mixer(engine.family)(own, own, core, "hard")
        scores, greedy = batch.score(mixture, torch.tensor([i for i, _ in rows]))
        plain, plain_greedy = batch.score(None)
        torch.testing.assert_close(scores, plain, atol=1e-4, rtol=1e-5)
        assert greedy.equal(plain_greedy)


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradient_is_the_finite_difference(models, kind):
    prompts = make_prompts(2, seed=3, answers=1)[1:]
    engine = load_engine("suffix", models(kind), list(family_of(models(kind)).layers)[-2:])
    states = engine.read(prompts)
    batch = engine.batch(states, [(0, 0)])
    own = engine.original_pathways(states)
    core = core_experts(own, "all", engine.family.top_k)
    mixer = Mixer(engine.family)

    def score(pathway: torch.Tensor) -> torch.Tensor:
        return batch.score(mixer(pathway, own, core, "dense"), torch.tensor([0]))[0][0]

    pathway = random_pathways(own, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(score(pathway), pathway)
    direction = torch.randn(own.shape, generator=torch.Generator().manual_seed(6))
    step = 2e-3
    with torch.no_grad():
        slope = (score(pathway + step * direction) - score(pathway - step * direction)) / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=0.03, abs=2e-3)


@pytest.mark.parametrize("name", ["naive", "suffix"])
def test_scores_do_not_depend_on_the_batch(models, name):
    model, prompts = models("olmoe"), make_prompts(5, seed=4)
    engine = load_engine(name, model, [3, 4])
    together = engine.batch(engine.read(prompts), all_rows(prompts)).score(None)[0].view(5, 3)
    for i, prompt in enumerate(prompts):
        alone = engine.batch(engine.read([prompt]), all_rows([prompt])).score(None)[0]
        torch.testing.assert_close(alone, together[i], atol=1e-4, rtol=1e-5)


def test_engines_freeze_the_model_and_name_themselves(models):
    engine = load_engine("suffix", models("olmoe"), [4])
    assert not any(p.requires_grad for p in engine.model.parameters())
    with pytest.raises(UserError, match="did you mean 'suffix'"):
        load_engine("sufix", models("olmoe"), [4])


def test_state_knows_its_size(models):
    prompts = make_prompts(2)
    naive, suffix = both_engines(models("olmoe"))
    assert suffix.read(prompts)[1].nbytes() > naive.read(prompts)[1].nbytes() == 5 * 8 * 4
