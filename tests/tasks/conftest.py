"""Local data for the task tests: the shared copies where they are, and a made-up miniature of the same layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("C3PO_DATA_DIR", REPO / ".." / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no local benchmark data at {root} (set C3PO_DATA_DIR)")
    return root


def _arc(n: int) -> dict:
    texts = [f"thing {n}", f"stuff {n}", f"matter {n}", f"object {n}"]
    labels = ["A", "B", "C", "D"]
    return {
        "id": f"x{n}",
        "question": f"Which is number {n}?",
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[n % 4],
    }


def _csqa(n: int) -> dict:
    texts, labels = [f"{word} {n}" for word in ("red", "blue", "green", "pink", "gray")], list("ABCDE")
    return {
        "id": f"c{n}",
        "question": f"What color is item {n}?",
        "choices": {"text": texts, "label": labels},
        "answerKey": "C",
    }


ROWS = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "openbookqa": lambda n: {
        **{k: v for k, v in _arc(n).items() if k != "question"},
        "question_stem": f"Number {n} is",
    },
    "commonsense_qa": _csqa,
    "sciq": lambda n: {
        "question": f"What is measured in case {n}?",
        "distractor1": f"mass {n}",
        "distractor2": f"time {n}",
        "distractor3": f"force {n}",
        "correct_answer": f"length {n}",
        "support": f"In case {n} a length is measured.",
    },
    "piqa": lambda n: {
        "goal": f"To do {n},",
        "sol1": f"go to {n}",
        "sol2": f"stay away from {n}",
        "label": n % 2,
    },
    "winogrande": lambda n: {
        "sentence": f"Ann gave Bob {n} coins because _ was kind.",
        "option1": "Ann",
        "option2": "Bob",
        "answer": str(1 + n % 2),
    },
    "hellaswag": lambda n: {
        "activity_label": "Cooking",
        "ctx_a": f"A man cooks {n} eggs.",
        "ctx_b": "he",
        "endings": [
            f"eats {n}.",
            f"throws away {n} [step] shells.",
            f"sings {n} songs.",
            f"sleeps {n} hours.",
        ],
        "label": str(n % 4),
    },
    "copa": lambda n: {
        "premise": f"It rained for {n} days.",
        "choice1": "The river rose.",
        "choice2": "The river dried up.",
        "question": "effect",
        "idx": n,
        "label": n % 2,
    },
    "mmlu/anatomy": lambda n: {
        "question": f"Which bone is number {n}?",
        "subject": "anatomy",
        "choices": [f"bone a{n}", f"bone b{n}", f"bone c{n}", f"bone d{n}"],
        "answer": n % 4,
    },
}
SPLITS = {
    "mmlu/anatomy": ("dev", "validation", "test"),
    "sciq": ("validation", "test"),
    "hellaswag": ("validation",),
}


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature data root: 12 made-up rows a split, numbered without overlap."""
    root = tmp_path_factory.mktemp("data")
    for folder, row in ROWS.items():
        (root / folder).mkdir(parents=True)
        for index, split in enumerate(SPLITS.get(folder, ("train", "validation", "test"))):
            rows = [json.dumps(row(100 * index + n)) for n in range(1, 13)]
            (root / folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    reference = [json.dumps(ROWS["hellaswag"](n)) for n in range(500, 512)]
    (root / "hellaswag" / "reference_from_validation.jsonl").write_text("\n".join(reference))
    return root


def tiny_tasks() -> list[str]:
    return [f"mmlu_{name.split('/')[1]}" if "/" in name else name for name in ROWS]
