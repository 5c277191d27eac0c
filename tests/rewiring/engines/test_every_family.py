"""The invariants of every family that `test_engines` doesn't have, under every engine that runs it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rewiring_world import FAMILIES as FIRST
from rewiring_world import all_rows, make_prompts

from c3po_bench.errors import UserError
from c3po_bench.models import families
from c3po_bench.models.families import FAMILIES, REFUSED, family_by_type
from c3po_bench.models.routing import family_of, mix, selection_scores
from c3po_bench.models.tiny import tiny_model
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.engines import suffix as suffix_module
from c3po_bench.rewiring.engines.facts import facts_of
from c3po_bench.rewiring.engines.naive import NaiveEngine
from c3po_bench.rewiring.engines.suffix import SuffixEngine
from c3po_bench.rewiring.pathway import Mixer, core_experts

KINDS = [kind for kind in FAMILIES if kind not in FIRST]
SUFFIX = [kind for kind in KINDS if not FAMILIES[kind].naive_only]
HALF = {"atol": 0.3, "rtol": 0.02}
"""How far log-likelihoods of up to five tokens may lie apart in bfloat16, as in `test_precision`."""


def engines(model, position="last", layers=None):
    layers = layers or list(family_of(model).layers)
    return [load_engine(name, model, layers, position) for name in ("naive", "suffix")]


def other_pathways(own: torch.Tensor, score: str) -> torch.Tensor:
    logits = torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
    return logits.sigmoid() if score == "sigmoid" else logits.softmax(-1)


def core_of(engine, own: torch.Tensor, spec: str) -> torch.Tensor:
    return core_experts(selection_scores(engine.family, own), spec, engine.family.top_k)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_scores_are_the_models_and_its_own_pathway_leaves_them(models, kind):
    model, prompts = models(kind), make_prompts(3)
    rows = all_rows(prompts)
    only_naive = bool(FAMILIES[kind].naive_only)
    for engine, expected in zip(
        engines(model), (NaiveEngine, NaiveEngine if only_naive else SuffixEngine), strict=True
    ):
        assert isinstance(engine, expected)
        states = engine.read(prompts)
        batch, own = engine.batch(states, rows), engine.original_pathways(states)
        plain, _ = batch.score(None)
        for row, (i, c) in enumerate(rows):
            context, answer = prompts[i].context, prompts[i].continuations[c]
            with torch.no_grad():
                whole = torch.tensor([context + answer])
                log_probs = model(whole, use_cache=False).logits[0, len(context) - 1 : -1].log_softmax(-1)
            expected = log_probs.gather(-1, torch.tensor(answer)[:, None]).sum()
            assert plain[row].item() == pytest.approx(expected.item(), abs=1e-4)
        owner = torch.tensor([i for i, _ in rows])
        for _ in range(2):  # the second score opens the first layer
            mixture = Mixer(engine.family)(own, own, core_of(engine, own, "top:4"), "hard")
            torch.testing.assert_close(batch.score(mixture, owner)[0], plain, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_override_is_a_forward_in_which_routers_answer_so(models, kind):
    """The pathway is that of other tokens, and the expected forward is given what their routers answered."""
    model = models(kind)
    family = family_of(model)
    prompts, others = make_prompts(3, seed=1), make_prompts(3, seed=2)
    answers = []
    for prompt in others:
        seen = {}
        handles = [
            family.router_of(model, i).register_forward_hook(
                lambda _m, _a, out, i=i, seen=seen: seen.update({i: out})
            )
            for i in family.layers
        ]
        model(torch.tensor([prompt.context]), use_cache=False)
        answers.append(seen)
        for handle in handles:
            handle.remove()
    for engine in engines(model)[: 1 if FAMILIES[kind].naive_only else 2]:
        states = engine.read(prompts)
        own, pathway = (engine.original_pathways(engine.read(p)) for p in (prompts, others))
        mixture = Mixer(engine.family)(pathway, own, core_of(engine, own, "all"), "hard")
        batch = engine.batch(states, [(i, 0) for i in range(3)])
        for _ in range(2):
            scores, _ = batch.score(mixture, torch.arange(3))
            for n, prompt in enumerate(prompts):
                context, answer = prompt.context, prompt.continuations[0]
                handles = [
                    family.router_of(model, i).register_forward_hook(
                        answering(answers[n][i], len(context) - 1)
                    )
                    for i in family.layers
                ]
                with torch.no_grad():
                    logits = model(torch.tensor([context + answer]), use_cache=False).logits
                for handle in handles:
                    handle.remove()
                log_probs = logits[0, len(context) - 1 : -1].log_softmax(-1)
                expected = log_probs.gather(-1, torch.tensor(answer)[:, None]).sum()
                assert scores[n].item() == pytest.approx(expected.item(), abs=2e-4)


def answering(given, at: int):
    """A hook by which a router answers for token `at` what it has answered, `given`, for the last of others."""

    def hook(_module, _args, out):
        out[1][at], out[2][at] = given[1][-1], given[2][-1]
        return out

    return hook


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_finite_difference(models, kind):
    prompts = make_prompts(2, seed=3, answers=1)[1:]
    engine = engines(models(kind))[1]
    states = engine.read(prompts)
    batch, own = engine.batch(states, [(0, 0)]), engine.original_pathways(states)
    core, mixer = core_of(engine, own, "all"), Mixer(engine.family)

    def score(pathway: torch.Tensor) -> torch.Tensor:
        return batch.score(mixer(pathway, own, core, "dense"), torch.tensor([0]))[0][0]

    pathway = other_pathways(own, engine.family.score).requires_grad_()
    (gradient,) = torch.autograd.grad(score(pathway), pathway)
    direction = torch.randn(own.shape, generator=torch.Generator().manual_seed(6))
    step = 2e-3
    with torch.no_grad():
        slope = (score(pathway + step * direction) - score(pathway - step * direction)) / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=0.03, abs=3e-3)


@pytest.mark.parametrize("kind", SUFFIX)
@pytest.mark.parametrize("position", ["last", "continuation"])
def test_engines_agree(models, kind, position):
    """Scores and gradients, over prompts longer than the window, hard and dense."""
    model, prompts = models(kind), make_prompts(4, seed=1, answers=2)
    rows, found = all_rows(prompts), []
    owner = torch.tensor([i for i, _ in rows])
    for engine in engines(model, position, list(family_of(model).layers)[-2:]):
        states = engine.read(prompts)
        own = engine.original_pathways(states)
        found.append([own])
        batch, core = engine.batch(states, rows), core_of(engine, own, "top:6")
        for mixing in ("hard", "dense"):
            pathway = other_pathways(own, engine.family.score).requires_grad_()
            scores, _ = batch.score(Mixer(engine.family)(pathway, own, core, mixing), owner)
            found[-1] += [scores.detach(), torch.autograd.grad(scores.sum(), pathway)[0]]
    for naive, suffix in zip(*found, strict=True):
        torch.testing.assert_close(suffix, naive, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_invariants_in_half_precision(kind):
    model, prompts = tiny_model(kind).to(torch.bfloat16), make_prompts(2, answers=2)
    rows, found = all_rows(prompts), []
    for engine in engines(model):
        states = engine.read(prompts)
        batch, own = engine.batch(states, rows), engine.original_pathways(states)
        plain, _ = batch.score(None)
        mixture = Mixer(engine.family)(own, own, core_of(engine, own, "top:4"), "hard")
        same, _ = batch.score(mixture, torch.tensor([i for i, _ in rows]))
        torch.testing.assert_close(same, plain, **HALF)
        found.append(plain)
    torch.testing.assert_close(*found, **HALF)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("laguna", {"scale_after": False}),  # its scale would be applied twice
        ("gemma4_text", {"probabilities": False}),  # a softmax of probabilities
        ("gemma4_text", {"expert_scale": None}),
        ("deepseek_v3", {"score": "softmax"}),  # a sigmoid family recorded as softmax
        ("deepseek_v3", {"bias": None}),
        ("deepseek_v3", {"group_score": None}),
        ("kolibri1", {"bias_on": "scores"}),
        ("ernie4_5_moe", {"least_sum_key": None}),
        ("lfm2_moe", {"scale_key": None}),
        ("cohere2_moe", {"score": "softmax"}),
    ],
)
def test_a_row_without_its_field_is_wrong(models, monkeypatch, kind, change):
    """Each would be silent: the model runs on, under weights that are not its own."""

    def apart() -> float:
        family = family_of(model)
        layer = family.layers[-1]
        seen = []
        handle = family.router_of(model, layer).register_forward_hook(lambda _m, _a, out: seen.append(out))
        with torch.no_grad():
            model(torch.arange(5, 45)[None], use_cache=False)
        handle.remove()
        routed, weights, indices = seen[0]
        ours, chosen = mix(family.at([layer]), family.pathway(routed)[:, None])
        none = torch.zeros(len(routed), family.num_experts)
        found = none.scatter(-1, chosen[:, 0], ours[:, 0])
        return (found - none.scatter(-1, indices, weights.float())).abs().max().item()

    model = models(kind)
    assert apart() < 1e-6
    monkeypatch.setattr(families, "FAMILIES", {kind: replace(FAMILIES[kind], **change)})
    assert apart() > 1e-3


@pytest.mark.parametrize("kind", ["exaone_moe", "kolibri1"])
def test_windows_are_seen_not_read_off_modules(models, kind):
    """Every attention of these has a `sliding_window`; the layer in the middle sees all tokens."""
    model = models(kind)
    told = tuple(layer.self_attn.sliding_window for layer in model.model.layers)
    assert told == (5, 5, 5)
    naive, suffix = engines(model)
    assert suffix.facts.windows == (5, None, 5)
    prompts = make_prompts(5, seed=1)
    rows, found = all_rows(prompts), []
    for windows in (suffix.facts.windows, told):
        suffix.facts = replace(suffix.facts, windows=windows)
        suffix.forget()
        found.append(suffix.batch(suffix.read(prompts), rows).score(None)[0])
    expected = naive.batch(naive.read(prompts), rows).score(None)[0]
    torch.testing.assert_close(found[0], expected, atol=2e-4, rtol=1e-4)
    assert (found[1] - expected).abs().max() > 1e-2


def test_an_engine_that_says_otherwise_gives_way_to_naive(monkeypatch):
    model = tiny_model("laguna")
    monkeypatch.setattr(
        suffix_module, "facts_of", lambda family, model: without_positions(facts_of(family, model))
    )
    engine = engines(model)[1]
    assert isinstance(engine, NaiveEngine)
    (note,) = engine.notes
    assert note.startswith("engine=naive answers in the place of suffix, for laguna: its log-likelihoods")


def without_positions(facts):
    return replace(facts, rotaries=(facts.rotaries[0],) * len(facts.rotaries))


class Fused(torch.nn.Module):
    """A block that computes a mixture by itself, as `Mxfp4GptOssMLP` does, calling its router or not."""

    def __init__(self, block, route: bool):
        super().__init__()
        self.router, self.experts, self.route = block.router, block.experts, route

    def forward(self, hidden):
        flat = hidden.flatten(0, -2)
        if self.route:
            self.router(flat)
        mean = torch.einsum("td,edh->th", flat, self.experts.gate_up_proj)[:, : hidden.shape[-1]]
        return mean.view_as(hidden), None


@pytest.mark.parametrize("route", [False, True])
def test_a_fused_kernel_is_refused_in_one_line(route):
    model = tiny_model("gpt_oss")
    for layer in model.model.layers:
        layer.mlp = Fused(layer.mlp, route)
    with pytest.raises(UserError, match="fused kernel.*model.quantization=mxfp4_dequantized") as refused:
        load_engine("naive", model, [3, 4])
    assert "\n" not in str(refused.value)


def test_a_router_of_another_width_is_refused():
    model = tiny_model("olmoe")
    model.model.layers[2].mlp.gate.register_forward_hook(lambda _m, _a, out: (out[0][:, :4], *out[1:]))
    with pytest.raises(UserError, match="router of layer 2 scores 4 experts, its weights are of 8"):
        load_engine("suffix", model, [3, 4])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_covered_says_why(kind):
    with pytest.raises(UserError, match=f"model_type {kind} can't be rewired") as refused:
        family_by_type(SimpleNamespace(model_type=kind))
    assert "\n" not in str(refused.value)
