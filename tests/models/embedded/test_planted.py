"""The planted testbed: what its world promises, and that the shipped weights keep it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from c3po_bench.models.embedded import planted_world as truth
from c3po_bench.models.embedded.planted_world import (
    ANSWERS,
    ARGUMENTS,
    COMMON,
    DOMAINS,
    DRAWS,
    EXPERTS,
    LAYERS,
    OWNED,
    POOL,
    RARE,
    SIZES,
    TOPICS,
    documents,
    pool,
    vocabulary,
    world,
)


def test_words_mean_one_thing_each():
    words = vocabulary()
    assert len(words) == len(set(words))
    assert len(COMMON) == 48
    assert len(RARE) == 64


def test_every_expert_has_one_owner_in_each_layer():
    for owned in world().owned:
        assert sorted(expert for experts in owned.values() for expert in experts) == list(range(EXPERTS))
        assert all(len(experts) == OWNED for experts in owned.values())


def test_the_eight_codes_never_agree():
    for argument in ARGUMENTS:
        answers = {world().code[domain][argument] for domain in DOMAINS}
        assert len(answers) == len(DOMAINS)
        assert answers <= set(ANSWERS)


def test_guesses_are_right_as_often_as_chance():
    for domain in DOMAINS:
        assert Counter(world().guess[name] for name in world().rare[domain]) == dict.fromkeys(DOMAINS, 1)


@pytest.mark.parametrize("split", SIZES)
def test_items_are_sound(split):
    docs = documents(split)
    assert len(docs) == SIZES[split]
    assert docs == documents(split)
    assert Counter(doc["domain"] for doc in docs) == dict.fromkeys(DOMAINS, SIZES[split] // len(DOMAINS))
    for doc in docs:
        assert len(set(doc["choices"])) == 4
        name, argument = (
            doc["question"].removesuffix("?").split()[-4],
            doc["question"].removesuffix("?").split()[-1],
        )
        assert doc["choices"][doc["answer"]] == world().code[doc["domain"]][argument]
        assert doc["rare"] == (name in world().guess)
        if doc["rare"] and world().guess[name] != doc["domain"]:
            assert world().code[world().guess[name]][argument] not in doc["choices"]
        assert truth.domain_of(doc["question"]) == doc["domain"]


@pytest.mark.parametrize(("names", "topics"), POOL)
def test_the_pool_has_each_kind_for_each_seed(names, topics):
    docs, train = pool(names, topics), {doc["question"] for doc in documents("train")}
    assert len(docs) == DRAWS * POOL[names, topics]
    assert docs == pool(names, topics)
    assert len({doc["question"] for doc in docs}) == len(docs)
    for doc in docs:
        assert doc["rare"] == (names == "rare")
        assert truth.domain_of(doc["question"]) == doc["domain"]
        assert doc["question"] not in train
        first = doc["question"].split()[1].strip(",")
        assert (first in TOPICS[doc["domain"]]) == (topics == "told")
    for seed in range(DRAWS):
        each = Counter(doc["domain"] for doc in docs[seed::DRAWS])
        assert each == dict.fromkeys(DOMAINS, POOL[names, topics] // len(DOMAINS))


def test_no_test_item_is_a_reference():
    train = {doc["question"] for doc in documents("train")}
    assert not train & {doc["question"] for doc in documents("test")}


def test_distance_is_zero_at_the_planted_pathway_and_one_where_nothing_is_shared():
    name = world().common["law"][0]
    question = f"On {TOPICS['law'][0]} and {TOPICS['law'][1]}: which word does {name} pair with jade?"
    planted = truth.pathway_of(question)
    assert all(sum(row) == pytest.approx(1) for row in planted)
    assert truth.distance(planted, LAYERS, question) == pytest.approx(0)
    scaled = [[3 * weight for weight in row] for row in planted]
    assert truth.distance(scaled, LAYERS, question) == pytest.approx(0)
    uniform = [[1 / EXPERTS] * EXPERTS] * 4  # a layer that isn't planted is left out
    assert truth.distance(uniform, (2, *LAYERS), question) == pytest.approx(0.6 - 2 / EXPERTS)


def test_what_is_not_planted_is_refused():
    with pytest.raises(ValueError, match="not a question"):
        truth.domain_of("What is the capital of France?")
    with pytest.raises(ValueError, match=r"\[1\]"):
        truth.pathway_of(documents("test")[0]["question"], layers=(1, 4))


def test_the_truth_needs_no_torch():
    code = "import sys; from c3po_bench.models.embedded import planted_world; planted_world.documents('test')"
    outcome = subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], timeout=60)
    assert outcome.returncode == 0


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def scored(request):
    """The shipped model's logits of the options for 600 items, without and with the planted pathway (its top two)."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from c3po_bench.models.embedded.planted import checkpoint
    from c3po_bench.models.routing import family_of, mix

    folder = checkpoint(request.param)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    family = family_of(model)
    docs = documents("test")
    tokens = torch.tensor([tokenizer(f"Question: {doc['question']}\nAnswer:")["input_ids"] for doc in docs])
    options = torch.tensor([tokenizer.convert_tokens_to_ids(doc["choices"]) for doc in docs])
    planted = torch.tensor([truth.pathway_of(doc["question"]) for doc in docs])
    rows = torch.arange(1, len(docs) + 1) * tokens.shape[1] - 1
    own: list = []

    def logits(pathway=None):
        def hook(position):
            def answer(_module, _args, output):
                own.append(family.pathway(output[0][rows]))
                if pathway is None:
                    return None
                weights, indices = mix(family.at([LAYERS[position]]), pathway[:, position, None])
                return (
                    output[0],
                    output[1].index_copy(0, rows, weights[:, 0]),
                    output[2].index_copy(0, rows, indices[:, 0]),
                )

            return answer

        handles = [
            family.router_of(model, layer).register_forward_hook(hook(i)) for i, layer in enumerate(LAYERS)
        ]
        try:
            return model(tokens, logits_to_keep=1).logits[:, -1].gather(1, options)
        finally:
            for handle in handles:
                handle.remove()

    base = logits()
    routing = torch.stack(own[: len(LAYERS)], dim=1)
    # sixteen sigmoids learned one by one leave a little more on the fourteen experts beside the planted two
    near = 0.15 if request.param == "softmax" else 0.3
    return docs, base, logits(planted), routing, near


def accuracy(docs, logits, keep=lambda doc: True) -> float:
    right = [int(row.argmax()) == doc["answer"] for doc, row in zip(docs, logits, strict=True) if keep(doc)]
    return sum(right) / len(right)


def test_the_gap_is_there(scored):
    docs, base, optimum, _, _ = scored
    assert accuracy(docs, base) <= 0.60
    assert accuracy(docs, optimum) >= 0.98


def test_the_router_knows_common_names_and_guesses_at_rare_ones(scored):
    docs, base, _, routing, near = scored
    assert accuracy(docs, base, lambda doc: not doc["rare"]) >= 0.98
    assert 0.25 <= accuracy(docs, base, lambda doc: doc["rare"]) <= 0.45
    for doc, pathway in zip(docs, routing.tolist(), strict=True):
        if not doc["rare"]:
            assert truth.distance(pathway, LAYERS, doc["question"]) < near


def test_weights_are_small():
    from c3po_bench.models.embedded.planted import CONFIGS, weights_of

    assert all(weights_of(score).stat().st_size < 4_000_000 for score in CONFIGS)


def test_the_recipe_learns_and_repeats():
    torch = pytest.importorskip("torch")
    from c3po_bench.models.makers.planted import train

    torch.set_num_threads(1)
    first, second = train(steps=2), train(steps=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.slow
def test_training_from_scratch_plants_the_pathways():
    from c3po_bench.models.makers.planted import Sampler, forward, train

    torch = pytest.importorskip("torch")
    model = train().requires_grad_(False)
    sampler = Sampler(torch.Generator().manual_seed(1))
    batch = sampler.batch(256, shots=0)
    domain = sampler.below(len(DOMAINS), 256)
    logits, router_logits = forward(model, batch.tokens, sampler.planted[domain])
    assert (logits.argmax(-1) == sampler.code[domain, batch.argument]).float().mean() > 0.98
    wrong = 0.5 * (router_logits.softmax(-1) - sampler.planted[batch.domain]).abs().sum(-1).mean(-1)
    assert wrong[~batch.rare].mean() < 0.1
    assert wrong[batch.rare].mean() > 0.3
