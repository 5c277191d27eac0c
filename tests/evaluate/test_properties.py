"""What must change nothing changes nothing: labels, the order of questions, batches, limits, shards; same seed, same bytes.

Each example is drawn with a fixed seed; `C3PO_PROPERTIES=50` draws so many of each instead of 2.
"""

from __future__ import annotations

import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.config import Config
from c3po_bench.evaluate import run as harness
from c3po_bench.launch.merge import merge_shards
from c3po_bench.store.reader import Run

pytestmark = pytest.mark.slow
EXAMPLES = range(int(os.environ.get("C3PO_PROPERTIES", "2")))
ARMS = ["base", "mode_finding", "kernel_regression", "ngd", "knn_vote", "icl"]
ITEMS = 9
NEAR = 2e-3  # of log-likelihoods across batches


@cache
def questions(split: str, number: int) -> tuple[dict[str, Any], ...]:
    """Questions of different lengths with two to four choices, none like another."""
    draw = random.Random(split)
    rows = []
    for index in range(number):
        words = " ".join(
            draw.choice(["iron", "moss", "rain", "lamp", "oak", "salt"]) for _ in range(draw.randint(3, 9))
        )
        choices = [
            f"{word} {index}" for word in draw.sample(["red", "blue", "grey", "pink"], draw.randint(2, 4))
        ]
        question = f"{split} {index}: {words}?"
        rows.append({"question": question, "choices": choices, "answer": draw.randrange(len(choices))})
    return tuple(rows)


def task(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A task's file over these rows, and over references that are the same for all."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, own in (("test", rows), ("train", list(questions("train", 14)))):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    fields = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {s: str(folder / f"{s}.jsonl") for s in ("test", "train")}},
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
    }
    (folder / "own.yaml").write_text(json.dumps(fields))
    return folder / "own.yaml"


def config(file: Path, results: Path, **changes: Any) -> Config:
    cfg = Config(arms=list(ARMS), tasks=[str(file)], results_dir=str(results), batch_size=4, seed=3)
    cfg.model.name, cfg.model.kind, cfg.model.path, cfg.model.device = "tiny", "tiny", "olmoe", "cpu"
    cfg.references.tasks, cfg.references.only_correct = [str(file)], False
    cfg.embedder.name, cfg.tracking.mode, cfg.method.steps = "hidden_states", "disabled", 2
    cfg.method.neighbors.max_similarity = 1.01
    for name, value in changes.items():
        setattr(cfg, name, value)
    return cfg


def by_question(runs: list[Run]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of all arms, by arm and question."""
    return {(run.arm, row["question"]): row for run in runs for row in run.samples()}


def same(found: dict[tuple[str, str], Any], expected: dict[tuple[str, str], Any]) -> None:
    """The same predictions, and log-likelihoods that batched arithmetic may move by `NEAR`."""
    for key, row in found.items():
        known = expected[key]
        gaps = [abs(a - b) for a, b in zip(row["loglikelihoods"], known["loglikelihoods"], strict=True)]
        assert max(gaps) <= NEAR, (key, gaps)
        top = sorted(known["loglikelihoods"])[-2:]
        if top[1] - top[0] > NEAR:
            assert row["prediction"] == known["prediction"], key


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, list[Run]]:
    """The task, and the runs that nothing was changed of."""
    folder = tmp_path_factory.mktemp("plain")
    file = task(folder, list(questions("test", ITEMS)))
    return file, harness.run(config(file, folder / "store"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_labels_move_no_prediction(plain, tmp_path, example):
    draw, rows = random.Random(example), []
    for row in questions("test", ITEMS):
        rows.append(row | {"answer": draw.randrange(len(row["choices"]))})
    runs = harness.run(config(task(tmp_path, rows), tmp_path / "store"))
    found, expected = by_question(runs), by_question(plain[1])
    assert found.keys() == expected.keys()
    for key, row in found.items():
        assert row["loglikelihoods"] == expected[key]["loglikelihoods"], key
        assert row["prediction"] == expected[key]["prediction"], key


@pytest.mark.parametrize("example", EXAMPLES)
def test_order_batch_and_limit_move_no_prediction(plain, tmp_path, example):
    draw = random.Random(f"order {example}")
    rows = draw.sample(list(questions("test", ITEMS)), ITEMS)
    limit = draw.choice([None, 1, 4, ITEMS - 1])
    changes = {"batch_size": draw.choice([1, 2, 3, 7, 64]), "limit": limit}
    runs = harness.run(config(task(tmp_path, rows), tmp_path / "store", **changes))
    found = by_question(runs)
    assert len(found) == len(ARMS) * (limit or ITEMS)
    same(found, by_question(plain[1]))


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_give_the_bytes_of_the_whole(plain, tmp_path, shards):
    file, whole = plain
    for share in range(shards, 0, -1):
        harness.run(config(file, tmp_path / "store", shard=f"{share}/{shards}"))
    (runs,) = merge_shards(tmp_path / "store", harness.run)
    for one, other in zip(runs, whole, strict=True):
        assert one.run_id == other.run_id and one.stored_samples == other.stored_samples


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_same_seed_gives_the_same_bytes_also_after_an_interrupt(plain, tmp_path, example):
    """Of a finished run everything is taken away but a first part of its journal, cut anywhere."""
    file, whole = plain
    cfg = config(file, tmp_path / "store")
    runs = harness.run(cfg)
    draw = random.Random(f"cut {example}")
    for run in runs:
        for name in ("result.json", "samples.jsonl", "provenance.json"):
            (run.path / name).unlink()
        journal = run.path / "journal.jsonl"
        data = journal.read_bytes()
        journal.write_bytes(data[: draw.randrange(len(data) + 1)])
    for one, other in zip(harness.run(cfg), whole, strict=True):
        assert one.run_id == other.run_id and one.stored_samples == other.stored_samples
        left_out = ("cost", "crc", "notes")
        mine, theirs = ({k: v for k, v in r.result.items() if k not in left_out} for r in (one, other))
        assert mine == theirs


def test_another_seed_is_another_run(plain, tmp_path):
    runs = harness.run(config(plain[0], tmp_path / "store", seed=4, arms=["base", "ngd"]))
    ours, theirs = ({run.arm: run.run_id for run in each} for each in (runs, plain[1]))
    assert ours["base"] == theirs["base"] and ours["ngd"] != theirs["ngd"]
