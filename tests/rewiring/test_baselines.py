"""Baselines: right prompts and votes, trained adapters that leave the shared model alone, nothing learned from the test."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rewiring_world import FAMILIES, reference, tasks_of

from c3po_bench.config import ModelConfig
from c3po_bench.contract import Phase
from c3po_bench.errors import UserError
from c3po_bench.evaluate.run import run
from c3po_bench.models.loading import load
from c3po_bench.models.tiny import tiny_model
from c3po_bench.registry import load as load_entry
from c3po_bench.rewiring import arms
from c3po_bench.rewiring.backend import RewiringBackend
from c3po_bench.rewiring.bank import ReferenceBank
from c3po_bench.rewiring.baselines import training, virtual_tokens
from c3po_bench.rewiring.baselines.sft import Lora, trainable
from c3po_bench.rewiring.neighbors import Neighborhood
from c3po_bench.rewiring.rewirer import Rewirer
from c3po_bench.tasks.duplicates import question_hash

TRAINED = ["soft_prompt", "prefix_tuning", "router_tuning", "sft"]
STILL = {"steps": 1, "learning_rate": 0.0, "batch_size": 2}


def fingerprint(model) -> tuple[str, list[str], bool]:
    """Weights bit for bit, module names, and whether anything is trainable or hooked."""
    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.numpy().tobytes())
    loose = any(p.requires_grad for p in model.parameters()) or any(
        m._forward_hooks or m._forward_pre_hooks for m in model.modules()
    )
    return digest.hexdigest(), [name for name, _ in model.named_modules()], loose


def by_item(run) -> dict[int, list[float]]:
    return {row["doc_id"]: row["loglikelihoods"] for row in run.samples()}


def close(a: dict, b: dict, tolerance: float = 2e-3) -> bool:
    return all(abs(x - y) < tolerance for key in a for x, y in zip(a[key], b[key], strict=True))


@pytest.fixture
def backend(experiment):
    def make(**changes) -> RewiringBackend:
        cfg = experiment(**changes)
        return RewiringBackend(cfg, tasks_of(cfg))

    return make


def arm_of(backend: RewiringBackend, name: str):
    row = arms.ARMS[name]
    return load_entry(row.factory)(backend, row, **arms.options(backend.cfg, row))


def test_trained_arms_learn_and_leave_the_model_alone(experiment):
    options = {name: {"steps": 12, "batch_size": 20, "learning_rate": 0.05} for name in TRAINED}
    cfg = experiment(arms=["ngd", *TRAINED], arm_options=options)
    model = load(cfg.model).model.requires_grad_(False)
    before = fingerprint(model)
    runs = {r.arm: r for r in run(cfg)}
    assert fingerprint(model) == before and not before[2]
    base = by_item(runs["base"])
    for name in TRAINED:
        result = runs[name].result
        losses = result["curves"]["train_loss"]
        assert len(losses) == 12 and losses[-1] < losses[0] - 0.03, f"{name} learned nothing"
        assert not close(by_item(runs[name]), base, 0.05)
        phase = result["cost"]["phases"]["train"]
        assert phase["seconds"] > 0 and phase["flops"] > 0 and result["counts"]["trained_parameters"] > 0
        assert any("held-out" in note for note in result["notes"]) and result["settings"]["steps"] == 12
        assert result["cost"]["phases"]["score"]["flops"] > 0
    again = experiment(arms=["base", "ngd"], results_dir=f"{cfg.results_dir}-again")
    after = {r.arm: r for r in run(again)}
    assert close(by_item(after["base"]), base, 1e-9) and close(
        by_item(after["ngd"]), by_item(runs["ngd"]), 1e-9
    )


@pytest.mark.parametrize("kind", FAMILIES)
def test_untrained_adapters_are_the_base_model(experiment, kind):
    """With a rate of 0: LoRA and routers answer as the base does; virtual tokens as the base after their first text."""
    names = [name for name in TRAINED if name != "prefix_tuning" or kind not in ("deepseek_v2", "gpt_oss")]
    cfg = experiment(arms=names, arm_options={name: STILL for name in names}, model__path=kind, limit=2)
    runs = {r.arm: by_item(r) for r in run(cfg)}
    model = load(cfg.model).model
    assert close(runs["sft"], runs["base"]) and close(runs["router_tuning"], runs["base"])
    ids = load(cfg.model).tokenizer(virtual_tokens.START)["input_ids"][:8]
    (task,) = tasks_of(cfg).load().values()
    for doc_id, scores in runs["soft_prompt"].items():
        doc = task.eval_docs[doc_id]
        prompt = load(cfg.model).tokenizer(task.doc_to_text(doc))["input_ids"]
        for choice, score in zip(task.doc_to_choice(doc), scores, strict=True):
            answer = load(cfg.model).tokenizer(f" {choice}")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids + prompt + answer])).logits[0, -len(answer) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()
            assert score == pytest.approx(expected, abs=5e-3)
    if "prefix_tuning" in runs:
        assert close(runs["prefix_tuning"], runs["soft_prompt"], 5e-3), "the same text, as keys and values"


@pytest.mark.parametrize(("kind", "why"), [("deepseek_v2", "one shape"), ("gpt_oss", "sliding window")])
def test_prefix_refuses_a_family_that_it_does_not_fit(experiment, kind, why):
    with pytest.raises(UserError, match=f"prefix_tuning.*{why}"):
        run(
            experiment(
                arms=["prefix_tuning"], arm_options={"prefix_tuning": STILL}, model__path=kind, limit=1
            )
        )


@pytest.mark.parametrize("name", TRAINED)
def test_trained_weights_are_kept_and_seeded(backend, name):
    options = {name: {"steps": 3, "batch_size": 2}}
    first = arm_of(backend(arm_options=options), name)
    weights = first.weights()
    record = json.loads((first.folder / "training.json").read_text())
    written = (first.folder / "training.json").stat().st_mtime_ns
    second = arm_of(backend(arm_options=options), name)
    assert second.folder == first.folder and second.weights().keys() == weights.keys()
    assert all(second.weights()[key].equal(weights[key]) for key in weights)
    assert second.cost().phases["train"] == Phase(**record["phase"])
    assert (first.folder / "training.json").stat().st_mtime_ns == written, "trained again"
    results = Path(first.backend.cfg.results_dir)
    repeat = arm_of(backend(arm_options=options, results_dir=str(results / "b")), name).weights()
    assert all(repeat[key].equal(weights[key]) for key in weights), "one seed, one result"
    other = arm_of(backend(arm_options=options, seed=1), name)
    assert other.folder != first.folder and any(not v.equal(weights[k]) for k, v in other.weights().items())


def test_router_tuning_moves_the_critical_routers_only(backend):
    workbench = backend(arm_options={"router_tuning": {"steps": 2, "learning_rate": 0.1}})
    weights = arm_of(workbench, "router_tuning").weights()
    assert sorted(weights) == ["model.layers.3.mlp.gate.weight", "model.layers.4.mlp.gate.weight"]
    own = dict(workbench.loaded.model.named_parameters())
    assert all((weights[name] - own[name]).abs().max() > 0.05 for name in weights)


def test_training_leaves_out_test_items_and_their_likes(backend):
    workbench = backend()
    items = workbench.reference_items[0]
    workbench.test_hashes = {question_hash(items[0].question)}
    workbench.test_questions = [items[1].question, "something quite different"]

    def embed(texts):
        """Each text has an axis of its own; the second reference lies on that of a test question."""
        place = {
            text: n
            for n, text in enumerate([*(item.question for item in items), "something quite different"])
        }
        return np.stack([np.eye(len(place), dtype=np.float32)[place[text]] for text in texts])

    workbench.embedder = embed
    kept, counts = training.training_set(workbench)
    names = {item.id for item in kept}
    assert items[0].id not in names and items[1].id not in names
    assert counts["references_leaked"] == 1 and counts["dropped_duplicates"] == 1
    assert len(names) + 2 == len(items)


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_icl_prompts_by_hand(backend, num_fewshot):
    """Shots are the nearest references, the nearest last, each with its answer and without examples of its own."""
    workbench = backend(arm_options={"icl": {"shots": 2}}, scoring__num_fewshot=num_fewshot)
    arm = arm_of(workbench, "icl")
    assert arm.settings()["prompt_differs"] is True
    arm.prepare()
    (task,) = workbench.tasks.load().values()
    (item,) = workbench.tasks.references("facts_capitals", [(0, task.eval_docs[0])])
    (found,) = arm.answer([item])
    near = found.details["neighbors"]
    assert len(near) == 2 and near[0]["similarity"] >= near[1]["similarity"]
    plain = {i.question: "".join(i.requests[i.gold]) for i in workbench.draw_references(num_fewshot=0)[0]}
    shots = [plain[n["question"]] for n in reversed(near)]
    assert all(n["answer"] in shot for n, shot in zip(reversed(near), shots, strict=True))
    context = "\n\n".join([*shots, item.requests[0][0]])
    assert context.count(near[0]["question"]) == 1
    by_hand = reference(0, item.question, tuple((context, answer) for _, answer in item.requests))
    rewirer = Rewirer(workbench.engine, workbench.tokenizer, workbench.cfg.method)
    (expected,) = rewirer.answer([by_hand])
    assert [round(a, 4) for a, _ in found.scores] == [round(b, 4) for b, _ in expected.scores]


def test_knn_vote_of_letters(experiment):
    """The votes are the neighbors' letters with their kernel weights, and the most voted letter is the answer."""
    cfg = experiment(
        arms=["knn_vote"],
        scoring__rule="letters",
        references__only_correct=False,
        references__limit=60,
        limit=12,
    )
    _, vote = run(cfg)
    predictions = set()
    for row in vote.samples():
        assert (
            len(row["neighbors"]) == 5 and len(row["votes"]) == len(row["choices"]) and sum(row["votes"]) > 0
        )
        letters = [n["answer"] for n in row["neighbors"]]
        voted = {"ABCD"[i] for i, v in enumerate(row["votes"]) if v > 0}
        assert voted == set(letters)
        assert row["prediction"] == max(range(4), key=row["votes"].__getitem__)
        predictions.add(row["prediction"])
    assert len(predictions) > 1 and vote.result["counts"]["silent"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_adapts_every_linear_map_outside_the_experts_and_nothing_else(family):
    model: Any = tiny_model(family)
    shared = [
        name
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and ".experts." not in name
    ]
    wanted = {name for name in shared if model.get_submodule(name) is not model.get_output_embeddings()}
    with Lora(SimpleNamespace(loaded=SimpleNamespace(model=model)), 2).inserted() as adapted:  # type: ignore[arg-type]
        names = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trainable(adapted)}
    assert {name.replace(".base_layer", "") for name in names} == wanted


@pytest.mark.parametrize("weights", [[1.0] * 5, [3e-4] * 5])
def test_the_most_voted_choice_wins_whatever_its_length_and_the_weights(backend, weights):
    answers = ["ox", "ox", "ox", "hippopotamus", "hippopotamus"]
    references = [
        SimpleNamespace(item=reference(i, "q", (("c", f" {a}"),), 0)) for i, a in enumerate(answers)
    ]
    workbench = backend(arm_options={"knn_vote": {"k": 5}})
    workbench.bank = ReferenceBank(references, np.zeros((5, 2), dtype=np.float32), np.zeros((5, 0)), {})
    arm = arm_of(workbench, "knn_vote")
    arm.prepare()
    near = Neighborhood(torch.arange(5)[None], torch.ones(1, 5), torch.tensor([weights]), torch.zeros(1))
    arm._retriever = lambda questions: near
    choices = ["bee", "ox", "hippopotamus"]
    item = reference(0, "q", tuple(("c", f" {c}") for c in choices))
    (found,) = arm.answer([item])
    scores = [score for score, _ in found.scores]
    for lengths in ([1, 1, 1], [len(c) for c in choices]):
        ranked = [s / n for s, n in zip(scores, lengths, strict=True)]
        assert max(range(3), key=ranked.__getitem__) == 1
    assert found.details["votes"] == [0, 0.6, 0.4]
    # mutual information asks each option without its context, too
    further = replace(item, requests=item.requests * 2)
    (again,) = arm.answer([further])
    assert again.scores[:3] == found.scores and again.details == found.details and len(again.scores) == 6


def test_knn_vote_says_when_it_guessed(experiment):
    _, vote = run(experiment(arms=["knn_vote"], limit=30))
    silent = [row for row in vote.samples() if not any(row["votes"])]
    assert vote.result["counts"]["silent"] == len(silent) > 20
    assert any("guessed" in note for note in vote.result["notes"])
    assert len({row["prediction"] for row in silent}) == 4, "guesses should be spread over the places"


def test_arms_for_choices_refuse_written_answers(backend, monkeypatch):
    workbench = backend()
    (task,) = workbench.tasks.load().values()
    monkeypatch.setattr(type(task), "OUTPUT_TYPE", "generate_until", raising=False)
    monkeypatch.setattr(task, "OUTPUT_TYPE", "generate_until", raising=False)
    for name in ("oracle", "knn_vote"):
        workbench.cfg.arms = ["base", name]
        with pytest.raises(UserError, match=name):
            arms.check_tasks(workbench.cfg, workbench.tasks)
    workbench.cfg.arms = ["base", "ngd", "icl"]
    arms.check_tasks(workbench.cfg, workbench.tasks)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("icl", {"shots": 0}),
        ("knn_vote", {"k": 0}),
        ("sft", {"step": 3}),
        ("soft_prompt", {"tokens": "x"}),
        ("soft_prompt", {"tokens": 0}),
        ("sft", {"rank": 0}),
        ("sft", {"learning_rate": -1.0}),
        ("sft", {"batch_size": 0}),
        ("sft", {"steps": -1}),
        ("kernel_regression", {"points": 0}),
        ("kernel_regression", {"alpha": 5.0}),
        ("mode_finding", {"iterations": -1}),
        ("routing_temperature", {"temperature": 0.0}),
    ],
)
def test_options_of_baselines_are_checked(experiment, name, options):
    with pytest.raises(UserError, match=name):
        run(experiment(arms=[name], arm_options={name: options}))


def test_tiny_model_config_is_shared():
    """The fixtures above rely on one model object in a process, as arms do."""
    cfg = ModelConfig(name="tiny", kind="tiny", path="olmoe", device="cpu")
    assert load(cfg) is load(cfg)


def test_a_trained_baseline_runs_once_for_each_training_seed(experiment):
    """On the same items and references; what does not train runs once."""
    cfg = experiment(
        arms=["base", "icl", "soft_prompt"],
        seeds=[3, 1],
        arm_options={"soft_prompt": {"steps": 2}, "icl": {"shots": 1}},
    )
    runs = run(cfg)
    assert [(r.arm, r.result["seed"]) for r in runs] == [
        *(("base", 0), ("icl", 0)),
        *(("soft_prompt", seed) for seed in (3, 1)),
    ]
    scores = [[row["loglikelihoods"] for row in r.samples()] for r in runs[2:]]
    assert scores[0] != scores[1]
    again = run(
        experiment(arms=["base", "soft_prompt"], seed=0, seeds=[1], arm_options={"soft_prompt": {"steps": 2}})
    )
    assert again[1].run_id == runs[3].run_id
    assert len({r.result["comparison_key"] for r in runs}) == 1
