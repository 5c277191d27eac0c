"""What a task's functions draw is the same in every process, and no question stands in its own examples."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml

from c3po_bench.errors import UserError
from c3po_bench.tasks import TaskSet, functions
from c3po_bench.tasks.functions import fixed_draws

DOCS = [
    {"id": n, "question": f"Number {n}?", "right": f"r{n}", "wrong": [f"a{n}", f"b{n}", f"c{n}"]}
    for n in range(9)
]
MIXING = """
import random
import numpy

def mixed(docs):
    def one(doc):
        choices = [doc["right"], *doc["wrong"]]
        random.shuffle(choices)
        return {"choices": choices, "answer": choices.index(doc["right"])}
    return docs.map(one)

def ask(doc):
    return f"{doc['question']} {numpy.random.randint(10**6)}"

def rate(doc, results):
    return {"acc": random.random()}

def wait(doc):
    while doc["answer"]:
        pass
    return doc["question"]

def leave(docs):
    import os
    os.chdir("/")
    return docs
"""


def task_file(
    folder: Path, docs: list[dict[str, Any]], functions: dict[str, str] | None = None, **config: Any
) -> str:
    """A task of the user's own, with only a test split."""
    (folder / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "helpers.py").write_text(MIXING)
    plain = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        **config,
    }
    functions = functions or {}
    text = yaml.safe_dump({k: v for k, v in plain.items() if k not in functions})
    (folder / "own.yaml").write_text(
        text + "".join(f"{k}: !function helpers.{f}\n" for k, f in functions.items())
    )
    return str(folder / "own.yaml")


def requests(tasks: TaskSet) -> list[Any]:
    return [item.requests for item in tasks.items()]


def test_shuffled_options_are_shuffled_alike_in_every_run(tmp_path: Path) -> None:
    name = task_file(tmp_path, DOCS, {"process_docs": "mixed"})
    random.seed(1)
    first = TaskSet([name])
    hashes = first.request_hashes()
    random.seed(2)
    again = TaskSet([name])
    assert again.request_hashes() == hashes and again.data_hashes() == first.data_hashes()
    other = TaskSet([name], seed=1)
    assert other.request_hashes() != hashes
    golds = {first.gold(first.load()["own"], doc) for doc in first.load()["own"].eval_docs}
    assert len(golds) > 1


def test_a_prompt_that_is_drawn_depends_on_its_document_alone(tmp_path: Path) -> None:
    docs = [{"question": f"Number {n}?", "choices": ["a", "b"], "answer": 0} for n in range(6)]
    (tmp_path / "back").mkdir()
    tasks = TaskSet([task_file(tmp_path, docs, {"doc_to_text": "ask"})])
    back = TaskSet([task_file(tmp_path / "back", docs[::-1], {"doc_to_text": "ask"})])
    assert requests(tasks) == requests(tasks) == requests(back)[::-1]
    assert len({pairs[0][0] for pairs in requests(tasks)}) == 6


def test_a_score_that_is_drawn_depends_on_its_document_alone(tmp_path: Path) -> None:
    docs = [{"question": f"Number {n}?", "choices": ["a", "b"], "answer": 0} for n in range(3)]
    name = task_file(tmp_path, docs, {"process_results": "rate"}, metric_list=[{"metric": "acc"}])
    task = TaskSet([name]).load()["own"]
    scores = [
        task.process_results(doc, [(-1.0, False)] * 2)["acc"] for doc in [*task.eval_docs, task.eval_docs[0]]
    ]
    assert scores[0] == scores[-1] and len(set(scores)) == 3


def test_a_function_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "SECONDS", 0.2)
    docs = [{"question": f"Number {n}?", "choices": ["a", "b"], "answer": n // 2} for n in range(3)]
    with pytest.raises(UserError, match=r"document 2 \(row 3 of .*does not end within 0\.2 s"):
        TaskSet([task_file(tmp_path, docs, {"doc_to_text": "wait"})]).request_hashes()


def test_a_function_that_changes_the_working_folder_changes_it_for_itself_alone(tmp_path: Path) -> None:
    before = Path.cwd()
    docs = [{"question": f"Number {n}?", "choices": ["a", "b"], "answer": 0} for n in range(3)]
    assert len(requests(TaskSet([task_file(tmp_path, docs, {"process_docs": "leave"})]))) == 3
    assert Path.cwd() == before


def test_templates_draw_by_their_document(tmp_path: Path) -> None:
    docs = [
        {"question": f"Number {n}?", "choices": ["a", "b"], "answer": 0, "hints": list("uvwxyz")}
        for n in range(9)
    ]
    name = task_file(tmp_path, docs, doc_to_text="{{question}} {{hints|random}}")
    assert requests(TaskSet([name])) == requests(TaskSet([name]))
    assert len({pairs[0][0][-1] for pairs in requests(TaskSet([name]))}) > 1


def test_draws_are_put_back_after_an_error() -> None:
    before, numbers = random.getstate(), numpy.random.get_state()[1].tolist()  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ZeroDivisionError), fixed_draws("key"):
        random.random()
        _ = numpy.random.rand() / 0
    assert random.getstate() == before
    assert numpy.random.get_state()[1].tolist() == numbers  # pyright: ignore[reportIndexIssue]


SAME = [
    {"id": n, "question": f"Number {n % 4}?", "choices": [f"a{n % 4}", f"b{n % 4}"], "answer": n % 2}
    for n in range(8)
]


@pytest.mark.parametrize("sampler", ["default", "first_n"])
@pytest.mark.parametrize("split", [None, "test"])
def test_no_question_stands_in_its_own_examples(sampler: str, split: str | None, tmp_path: Path) -> None:
    name = task_file(tmp_path, SAME, fewshot_split=split, fewshot_config={"sampler": sampler})
    prompts = [pairs[0][0] for pairs in requests(TaskSet([name], num_fewshot=2))]
    for doc, prompt in zip(SAME, prompts, strict=True):
        *shots, asked = prompt.split("\n\n")
        assert asked == doc["question"] and len(shots) == 2
        assert not any(shot.startswith(doc["question"]) for shot in shots)
    if sampler == "first_n":
        assert prompts[5].startswith("Number 0? a0\n\nNumber 2? a2\n\nNumber 1?")


def test_examples_of_another_split_are_the_same_for_every_question(tmp_path: Path) -> None:
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("test", "train")}
    train = [{"question": f"Train {n}?", "choices": ["a", "b"], "answer": 0} for n in range(5)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in train))
    docs = [{key: doc[key] for key in ("question", "choices", "answer")} for doc in SAME]
    name = task_file(tmp_path, docs, training_split="train", dataset_kwargs={"data_files": files})
    heads = {pairs[0][0].rpartition("\n\n")[0] for pairs in requests(TaskSet([name], num_fewshot=2))}
    assert len(heads) == 1


def test_options_without_a_question_are_not_shuffled_alike(tmp_path: Path) -> None:
    docs = [{"question": "", "choices": [f"Good {n}.", f"Bad {n}."], "answer": 0} for n in range(24)]
    name = task_file(tmp_path, docs, doc_to_target=0)
    tasks = TaskSet([name], rule="letters")
    golds = [tasks.gold(tasks.load()["own"], doc) for doc in tasks.load()["own"].eval_docs]
    assert 0 < sum(golds) < 24


def test_a_bad_file_is_not_blamed_on_the_hub(tmp_path: Path) -> None:
    name = task_file(tmp_path, SAME)
    (tmp_path / "test.jsonl").write_text('{"question": 1}\n{"question": "2"}\n')
    with pytest.raises(
        UserError, match=r"test.jsonl, line 2: field 'question' is text, and a number"
    ) as caught:
        TaskSet([name]).load()
    assert "hub" not in str(caught.value)
