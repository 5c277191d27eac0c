"""`model=specialists`: the shipped weights, the maker on two tiny domains, and both engines on the finished model."""

from __future__ import annotations

import dataclasses
from copy import deepcopy

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from c3po_bench.config import ModelConfig  # noqa: E402
from c3po_bench.errors import UserError  # noqa: E402
from c3po_bench.models import cache  # noqa: E402
from c3po_bench.models.embedded import smollm, specialists  # noqa: E402
from c3po_bench.models.embedded.specialists import DOMAINS, EMPTY, EXPERTS, ROUTED  # noqa: E402
from c3po_bench.models.loading import load  # noqa: E402
from c3po_bench.models.routing import family_of, mix  # noqa: E402
from c3po_bench.models.specialists import make, measure, training  # noqa: E402
from c3po_bench.models.specialists.states import Suffix  # noqa: E402
from c3po_bench.rewiring.engines import load_engine  # noqa: E402
from c3po_bench.rewiring.hook import override  # noqa: E402
from c3po_bench.rewiring.methods import Queries  # noqa: E402
from c3po_bench.rewiring.methods.right_expert import right_expert  # noqa: E402
from c3po_bench.rewiring.pathway import Mixture  # noqa: E402
from c3po_bench.tasks.skills import generate  # noqa: E402

FEW = training.Recipe(steps=3, batch=4, rate=1e-2)


@pytest.fixture(scope="module")
def dense():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(smollm.checkpoint()).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm.checkpoint())


@pytest.fixture(scope="module")
def model():
    return load(ModelConfig(name="specialists", kind="specialists")).model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two domains of a few items, made twice: in one go, and again by an interrupted maker."""
    domains = [make.rule_domain(skill, FEW, limit=20) for skill in ("first_letter", "last_letter")]
    once, again = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("again")
    tensors = make.make(domains, once)
    make.make(domains[:1], again)
    return tensors, make.make(domains, again), sorted(path.name for path in again.iterdir())


def questions(tokenizer, skill="oldest", n=6):
    documents = generate.documents(skill, "test", generate.phrasings(skill)["trained"][0])[:n]
    return [make._question(tokenizer, doc["question"], doc["choices"][doc["answer"]]) for doc in documents]


def test_the_shipped_file_is_small_and_complete():
    assert specialists.WEIGHTS.stat().st_size < 10_000_000
    weights = specialists.load()
    assert weights["router"].shape == (len(ROUTED), EXPERTS, 576)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    strength = weights["down"].abs().sum(dim=(2, 3))
    assert (strength[:, : len(DOMAINS)] > 0).all() and (strength[:, len(DOMAINS) :] == 0).all()
    assert max(EMPTY) < EXPERTS and min(EMPTY) >= len(DOMAINS)


def test_it_is_a_stock_qwen2_moe_with_experts_in_five_layers(model):
    assert type(model).__name__ == "Qwen2MoeForCausalLM"
    family = family_of(model)
    assert (family.layers, family.num_experts, family.top_k, family.renormalise) == (ROUTED, EXPERTS, 2, True)


def test_damaged_routers_send_every_skill_to_its_partner():
    """What the router gave a skill's own expert it now gives another skill's; nothing else moves."""
    router = specialists.load()["router"]
    states = torch.randn(len(ROUTED), 8, router.shape[-1], generator=torch.Generator().manual_seed(0))
    before, after = (states @ weights.mT for weights in (router, specialists.damaged(router)))
    assert sorted(specialists.PARTNERS) == sorted(specialists.PARTNERS.values()) == sorted(specialists.RULES)
    for skill, partner in specialists.PARTNERS.items():
        assert skill != partner
        assert torch.equal(after[..., DOMAINS.index(partner)], before[..., DOMAINS.index(skill)])
    others = [expert for expert in range(EXPERTS) if expert not in map(DOMAINS.index, specialists.RULES)]
    assert torch.equal(after[..., others], before[..., others])


@pytest.mark.slow
def test_building_is_deterministic(tmp_path):
    specialists._build(smollm.checkpoint(), tmp_path, specialists.load())
    for path in tmp_path.iterdir():
        assert cache.file_hash(path) == cache.file_hash(specialists.checkpoint() / path.name)


@pytest.mark.slow
def test_a_second_run_makes_the_same_tensors_and_goes_on_where_it_stopped(tiny):
    tensors, again, files = tiny
    assert set(tensors) == set(again) == {"gate_up", "gate_up_scale", "down", "down_scale", "router"}
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    assert [name.split("-")[0] for name in files] == ["first_letter", "last_letter"]
    assert tensors["down"].dtype == torch.int8 and tensors["down"].abs().max() == 127


def test_what_ships_is_loaded_exactly(tiny, tmp_path):
    save_file(tiny[0], tmp_path / "weights.safetensors")
    weights = specialists.load(tmp_path / "weights.safetensors")
    for number, expert in enumerate(training.loaded(tiny[0])):
        for layer, (gate_up, down) in enumerate(expert):
            assert torch.equal(weights["gate_up"][layer, number], gate_up)
            assert torch.equal(weights["down"][layer, number], down)
    assert torch.equal(weights["router"], tiny[0]["router"])


def test_training_lowers_the_loss_of_its_domain_alone(dense, tokenizer):
    suffix = Suffix(dense, ROUTED)
    kept = suffix.read(questions(tokenizer, n=12), seed=0)
    before = training.answer_loss(suffix, suffix.batch(kept), None, None)
    recipe = dataclasses.replace(FEW, steps=12, batch=12)
    expert = training.train_expert(suffix, kept, recipe, seed=0)
    assert training.answer_loss(suffix, suffix.batch(kept), training.alone(expert), None) < 0.7 * before
    assert not any(parameter.requires_grad for parameter in dense.parameters())


def test_the_dense_layers_of_training_are_the_dense_model(dense, tokenizer):
    suffix, asked = Suffix(dense, ROUTED), questions(tokenizer)
    states = suffix.run(suffix.batch(suffix.read(asked, seed=0, fast=False)))[:, 0]
    for state, question in zip(states, asked, strict=True):
        logits = dense(torch.tensor([question.prompt])).logits[0, -1]
        assert (state @ dense.lm_head.weight.T - logits).abs().max() < 1e-4


@pytest.mark.parametrize("expert", ["oldest", "last_letter"])
def test_the_stock_model_is_the_training_code(dense, model, tokenizer, expert):
    """Earlier tokens with the empty experts, the last one with one expert: what training computes."""
    suffix, asked, number = Suffix(dense, ROUTED), questions(tokenizer), DOMAINS.index(expert)
    weights = specialists.load()
    own = [
        (weights["gate_up"][layer, number], weights["down"][layer, number]) for layer in range(len(ROUTED))
    ]
    states = suffix.run(suffix.batch(suffix.read(asked, seed=0, fast=False)), training.alone(own))[:, 0]
    for state, question in zip(states, asked, strict=True):
        tokens = len(question.prompt)
        indices = torch.tensor(EMPTY).expand(tokens, len(ROUTED), 2).clone()
        indices[-1, :, 0] = number
        mixing = torch.tensor([1.0, 0.0]).expand(indices.shape)
        forced = Mixture(mixing, indices)
        with override(family_of(model), model, list(ROUTED), torch.arange(tokens), forced), torch.no_grad():
            logits = model(torch.tensor([question.prompt])).logits[0, -1]
        assert (state @ dense.lm_head.weight.T - logits).abs().max() < 1e-4


def test_two_empty_experts_are_the_dense_model(dense, model, tokenizer):
    ids = torch.tensor([questions(tokenizer)[0].prompt])
    indices = torch.tensor(EMPTY).expand(ids.shape[1], len(ROUTED), 2)
    empty = Mixture(torch.full(indices.shape, 0.5), indices)
    with override(family_of(model), model, list(ROUTED), torch.arange(ids.shape[1]), empty), torch.no_grad():
        assert (model(ids).logits - dense(ids).logits).abs().max() < 1e-4


def test_engines_agree_and_the_original_pathway_changes_nothing(model, tokenizer):
    documents = generate.documents("giver", "test", generate.phrasings("giver")["trained"][0])[:4]
    prompts = [measure.prompt_of(tokenizer, document) for document in documents]
    rows = [(i, j) for i, prompt in enumerate(prompts) for j in range(len(prompt.continuations))]
    owner = torch.tensor([i for i, _ in rows])
    generator = torch.Generator().manual_seed(0)
    other = torch.rand(len(prompts), len(ROUTED), EXPERTS, generator=generator).softmax(dim=-1)
    scores, gradients = {}, {}
    for name in ("naive", "suffix"):
        engine = load_engine(name, model, list(ROUTED))
        states = engine.read(prompts)
        own, pathway = engine.original_pathways(states), other.clone().requires_grad_()
        plain = engine.batch(states, rows).score(None, owner)[0]
        unchanged = engine.batch(states, rows).score(Mixture(*mix(engine.family, own)), owner)[0]
        assert (plain - unchanged).abs().max() < 1e-5
        moved = engine.batch(states, rows).score(Mixture(*mix(engine.family, pathway)), owner)[0]
        moved.sum().backward()
        scores[name] = torch.stack([plain, moved.detach()])
        gradients[name] = pathway.grad
        assert (plain - moved).abs().max() > 0.01
    assert (scores["naive"] - scores["suffix"]).abs().max() < 1e-4
    assert (gradients["naive"] - gradients["suffix"]).norm() < 1e-3 * gradients["naive"].norm()


def test_a_gradient_is_the_finite_difference(model, tokenizer):
    double = deepcopy(model).double()
    double.set_experts_implementation("eager")
    engine = load_engine("suffix", double, list(ROUTED))
    documents = generate.documents("middle", "test", generate.phrasings("middle")["trained"][0])[:1]
    states = engine.read([measure.prompt_of(tokenizer, document) for document in documents])
    batch = engine.batch(states, [(0, 0)])
    pathway = torch.full((1, len(ROUTED), EXPERTS), 1 / EXPERTS, dtype=torch.double)
    pathway[..., DOMAINS.index("middle")] = 0.4
    pathway[..., DOMAINS.index("oldest")] = 0.3

    def score(at):
        return batch.score(Mixture(*mix(engine.family, at)), torch.tensor([0]))[0].double().sum()

    pathway.requires_grad_()
    (gradient,) = torch.autograd.grad(score(pathway), pathway)
    step = torch.zeros_like(pathway)
    step[..., DOMAINS.index("middle")], step[..., DOMAINS.index("oldest")] = 1e-3, -1e-3
    with torch.no_grad():
        slope = score(pathway + step) - score(pathway - step)
    assert slope == pytest.approx(2 * float((gradient * step).sum()), rel=1e-2, abs=1e-6)


def queries(texts, layers=ROUTED, experts=EXPERTS):
    original = torch.full((len(texts), len(layers), experts), 1 / experts)
    nothing = {"core": original > 0, "neighborhood": None, "references": original[:0], "method": None}
    return Queries(
        original, loss=lambda pathway: pathway, seeds=[0], texts=texts, layers=list(layers), **nothing
    )


@pytest.mark.parametrize("skill", DOMAINS[:3])
def test_the_right_expert_is_known_from_the_question(skill):
    for phrasing in ("A", "D"):
        document = generate.load(skill, phrasing)["test"][0]
        pathway = right_expert(queries([document["question"]])).pathway
        assert (pathway[0].argmax(dim=-1) == DOMAINS.index(skill)).all() and pathway.sum() == len(ROUTED)


@pytest.mark.parametrize(
    "wrong",
    [{"texts": ["What is a whale?"]}, {"texts": ["a"], "layers": (3,)}, {"texts": ["a"], "experts": 8}],
)
def test_the_right_expert_of_another_question_or_model_is_refused(wrong):
    with pytest.raises(UserError, match="arm right_expert"):
        right_expert(queries(**wrong))


def test_text_domains_need_their_data(tmp_path):
    with pytest.raises(UserError, match="no file .*commonsense_qa"):
        make.text_domain("commonsense", tmp_path)
    assert make.main(["--data", str(tmp_path), "--output", str(tmp_path / "weights")]) == 2
