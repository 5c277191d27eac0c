"""What names a run: whatever can change its numbers, so that no store hands out answers to other questions."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from c3po_bench.config import Config
from c3po_bench.evaluate.run import run
from c3po_bench.rewiring.arms import ARMS
from c3po_bench.tasks.taskset import TaskSet


@pytest.fixture
def experiment(tmp_path):
    """A config on the tiny model: `experiment(**changes)`, a section's key as `section__key`."""

    def make(**changes) -> Config:
        cfg = Config(
            name="tiny", results_dir=str(tmp_path / "results"), limit=2, batch_size=4, log_level="error"
        )
        cfg.tracking.mode = "disabled"
        cfg.model.name = cfg.model.kind = "tiny"
        cfg.model.path, cfg.model.device = "olmoe", "cpu"
        cfg.tasks = ["facts_capitals"]
        cfg.references.tasks, cfg.references.limit, cfg.references.only_correct = ["openbookqa"], 8, False
        cfg.embedder.name = "hidden_states"
        cfg.method.layers, cfg.method.steps, cfg.method.neighbors.max_similarity = "last:2", 1, 0.9999
        for path, value in changes.items():
            section, _, key = path.rpartition("__")
            setattr(getattr(cfg, section) if section else cfg, key, value)
        return cfg

    return make


def data_root(folder: Path, answer: str) -> str:
    """OpenBookQA whose training items are answered so; its test items are the same everywhere."""
    (folder / "openbookqa").mkdir(parents=True)
    for split, right in (("train", answer), ("validation", "A"), ("test", "A")):
        rows = [
            {
                "id": f"{split}{n}",
                "question_stem": f"{split} item number {n} is",
                "choices": {
                    "text": [f"thing {n}", f"stuff {n}", f"matter {n}", f"object {n}"],
                    "label": list("ABCD"),
                },
                "answerKey": right,
            }
            for n in range(12)
        ]
        (folder / "openbookqa" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_other_references_under_the_same_names_are_another_run(experiment, tmp_path):
    arms, options = ["ngd", "icl", "knn_vote", "sft"], {"sft": {"steps": 1, "batch_size": 2}}
    first, second = (
        {
            r.arm: r
            for r in run(
                experiment(arms=arms, arm_options=options, data__root=data_root(tmp_path / name, answer))
            )
        }
        for name, answer in (("a", "A"), ("b", "B"))
    )
    assert first["base"].run_id == second["base"].run_id
    for arm in arms:
        assert first[arm].run_id != second[arm].run_id, arm
    answers = [
        {n["answer"] for row in runs["ngd"].samples() for n in row["neighbors"]} for runs in (first, second)
    ]
    assert all(a.startswith("thing") for a in answers[0]) and all(a.startswith("stuff") for a in answers[1])


QUESTION = {
    "task": "made",
    "test_split": "test",
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{q}}\nA:",
    "doc_to_choice": "{{c}}",
    "doc_to_target": "a",
    "metric_list": [{"metric": "acc"}],
}
WRITTEN = {key: value for key, value in QUESTION.items() if key != "doc_to_choice"} | {
    "output_type": "generate_until",
    "doc_to_target": "{{c[a]}}",
    "metric_list": [{"metric": "exact_match"}],
    "generation_kwargs": {"until": ["\n"]},
}


def made(tmp_path, config: dict, shots: int = 0, example: str = "example") -> str:
    """The hash of what a task asks, the task and its documents being made of the arguments."""
    for split, name in (("test", "question"), ("validation", example)):
        docs = [{"q": f"{name} {n}", "c": ["yes", "no"], "a": n % 2} for n in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("test", "validation")}
    task = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, **config}
    (tmp_path / "made.yaml").write_text(re.sub('"(!function [^"]*)"', r"\1", json.dumps(task)))
    return TaskSet([str(tmp_path / "made.yaml")], num_fewshot=shots).request_hashes(3)["made"]


@pytest.mark.parametrize(
    ("before", "changed"),
    [
        (QUESTION, {"doc_to_text": "Please answer. {{q}}"}),
        (QUESTION, {"doc_to_choice": ["aye", "nay"]}),
        (QUESTION, {"doc_to_target": "{{1 - a}}"}),
        (QUESTION, {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}),
        (WRITTEN, {"doc_to_target": "{{c[1 - a]}}"}),
        (WRITTEN, {"generation_kwargs": {"until": ["\n\n"]}}),
        (WRITTEN, {"filter_list": [{"name": "first", "filter": [{"function": "take_first"}]}]}),
    ],
)
def test_another_prompt_answer_or_scoring_is_another_request(before, changed, tmp_path):
    assert made(tmp_path, before) == made(tmp_path, before) != made(tmp_path, before | changed)


def test_a_helper_of_the_function_that_scores_is_part_of_the_request(tmp_path):
    config, found = {**WRITTEN, "process_results": "!function utils.process_results"}, []
    for best in (1, 2):
        helper = f"def grade(text):\n    return len(text) * {best}\n"
        scoring = "def process_results(doc, results):\n    return {'exact_match': grade(results[0])}\n"
        (tmp_path / "utils.py").write_text(f"{helper}\n\n{scoring}")
        found.append(made(tmp_path, config))
    assert found[0] != found[1]


def test_other_examples_before_the_question_are_another_request(tmp_path):
    assert made(tmp_path, QUESTION, 2) != made(tmp_path, QUESTION)
    assert made(tmp_path, QUESTION, 2) != made(tmp_path, QUESTION, 2, "another")


def test_an_edited_prompt_is_another_run(experiment, tmp_path):
    cfg = experiment(tasks=[str(tmp_path / "made.yaml")], arms=[])
    made(tmp_path, QUESTION)
    (before,) = run(cfg)
    made(tmp_path, QUESTION | {"doc_to_text": "Please answer. {{q}}"})
    (after,) = run(cfg)
    assert before.run_id != after.run_id and before.result["comparison_key"] != after.result["comparison_key"]
    assert before.samples()[0]["prompt_hash"] != after.samples()[0]["prompt_hash"]


def test_an_edited_plugin_is_another_run(experiment, tmp_path, monkeypatch):
    text = """
from c3po_bench.rewiring.arms import method
from c3po_bench.rewiring.methods import Solution

@method("rolled")
def rolled(problem):
    return Solution(problem.original.roll({by}, -1))
"""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    try:
        for by in (1, 3):
            (tmp_path / "rolling.py").write_text(text.format(by=by))
            sys.modules.pop("rolling", None)
            found.append(
                run(experiment(plugins=["rolling"], arms=["rolled"], references__tasks=["facts_foods"]))[1]
            )
    finally:
        ARMS.remove("rolled")
    assert found[0].run_id != found[1].run_id
    assert found[0].samples()[0]["loglikelihoods"] != found[1].samples()[0]["loglikelihoods"]


IRRELEVANT = {
    "learning_rate": 0.5,
    "steps": 3,
    "mixing": "hard",
    "loss": "choice",
    "optimizer": "adam",
    "schedule": "fixed",
}
RELEVANT = {
    "layers": "last:1",
    "experts": "top:4",
    "position": "continuation",
    "final_mixing": "dense",
    "preserve_total_weight": True,
}


def identities(cfg) -> dict[str, dict]:
    from c3po_bench.rewiring.backend import RewiringBackend

    return {arm.row.name: arm.identity() for arm in RewiringBackend(cfg, TaskSet(cfg.tasks)).arms()}


def test_what_an_arm_does_not_read_is_no_part_of_its_name(experiment, tmp_path):
    known = {"arms": ["ngd", "mode_finding", "routing_temperature"], "references__tasks": ["facts_foods"]}
    plain, changed = experiment(**known), experiment(**known, results_dir=str(tmp_path / "other"))
    for key, value in IRRELEVANT.items():
        setattr(changed.method, key, value)
    changed.method.neighbors.kind, changed.embedder.batch_size = "epsilon", 1
    before, after = identities(plain), identities(changed)
    assert before["ngd"] != after["ngd"]
    for arm in ("base", "mode_finding", "routing_temperature"):
        assert before[arm] == after[arm], arm
    (_, _, *first), (_, _, *second) = run(plain), run(changed)
    for one, two in zip(first, second, strict=True):
        assert one.run_id == two.run_id and one.result["settings"] == two.result["settings"]
        assert [r["loglikelihoods"] for r in one.samples()] == [r["loglikelihoods"] for r in two.samples()]
    for key, value in RELEVANT.items():
        other = experiment(**known)
        setattr(other.method, key, value)
        after = identities(other)
        assert all(before[arm] != after[arm] for arm in known["arms"]), key
    other = experiment(**known)
    other.method.neighbors.k = 1
    assert identities(other)["mode_finding"] != before["mode_finding"]


def test_the_size_of_the_embedders_batches_is_no_part_of_a_name(experiment):
    known = {"arms": ["ngd", "knn_vote"], "references__tasks": ["facts_foods"]}
    assert identities(experiment(**known)) == identities(experiment(**known, embedder__batch_size=1))
