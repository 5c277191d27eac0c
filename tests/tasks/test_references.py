"""Reference items: labelled, from other splits, the same on every call, with what stands for what said aloud."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from c3po_bench.errors import UserError
from c3po_bench.tasks import TaskSet, reference_items
from c3po_bench.tasks.duplicates import question_hash
from c3po_bench.tasks.references import shares


def test_items_come_from_training_splits_and_are_those_of_lm_eval(tiny_root: Path) -> None:
    items, notes = reference_items(["arc_easy", "openbookqa"], data_root=tiny_root, limit=10, seed=3)
    assert Counter(item.id[0] for item in items) == {"arc_easy": 5, "openbookqa": 5} and notes == []
    tasks = TaskSet(["arc_easy"], data_root=tiny_root)
    task = tasks.load()["arc_easy"]
    docs = list(task.training_docs())
    mine = [item for item in items if item.id[0] == "arc_easy"]
    assert mine == tasks.references(task.task_name, [(item.id[1], docs[item.id[1]]) for item in mine])
    assert all(0 <= item.gold < len(item.requests) for item in items)


def test_the_draw_depends_on_the_seed_only(tiny_root: Path) -> None:
    def draw(seed: int) -> list:
        return reference_items(["arc_easy", "sciq"], data_root=tiny_root, limit=8, seed=seed)[0]

    assert draw(1) == draw(1) != draw(2)
    more = reference_items(["arc_easy", "sciq"], data_root=tiny_root, limit=12, seed=1)[0]
    assert set(draw(1)) < set(more), "a larger limit must add items, not exchange them"


def test_substitutes_are_used_and_noted(tiny_root: Path) -> None:
    items, notes = reference_items(["bigbench", "super_glue", "knowref"], data_root=tiny_root, limit=45)
    assert {item.id[0] for item in items} == {"commonsense_qa", "openbookqa", "sciq", "copa", "winogrande"}
    said = " | ".join(notes)
    assert "bigbench references: used commonsense_qa, openbookqa, sciq instead" in said
    assert "super_glue references: used copa instead" in said
    assert "knowref references: used winogrande instead" in said
    assert "sciq references: validation split (no train data)" in said
    assert "only" in said  # copa has 12 items


def test_hellaswag_has_a_stand_in(tiny_root: Path) -> None:
    items, notes = reference_items(["hellaswag"], data_root=tiny_root, limit=4)
    assert len(items) == 4 and "held-out validation items" in notes[0]
    tests = TaskSet(["hellaswag"], data_root=tiny_root)
    task = tests.load()["hellaswag"]
    assert not {question_hash(tests.question_text(task, doc)) for doc in task.eval_docs} & {
        question_hash(i.question) for i in items
    }


def test_no_item_is_drawn_twice(tiny_root: Path) -> None:
    items, _ = reference_items(["bigbench", "commonsense_qa", "openbookqa", "sciq"], data_root=tiny_root)
    assert len({(item.id[0], item.id[1]) for item in items}) == len(items) == 36


def test_few_shot_examples_are_not_references(tiny_root: Path) -> None:
    items, _ = reference_items(["arc_easy"], data_root=tiny_root, num_fewshot=3)
    assert len(items) == 9
    shots = items[0].requests[0][0].split("\n\n")[:3]
    assert not any(item.question in shot for item in items for shot in shots)


def test_test_items_are_never_references(tiny_root: Path) -> None:
    (tiny_root / "qasc").mkdir(exist_ok=True)
    (tiny_root / "qasc" / "validation.jsonl").write_text((tiny_root / "arc_easy" / "test.jsonl").read_text())
    assert len(reference_items(["qasc"], data_root=tiny_root, tested=["arc_easy"])[0]) == 12
    with pytest.raises(UserError, match="only its test items"):
        reference_items(["qasc"], data_root=tiny_root, tested=["qasc"])


def test_the_limit_is_shared_out_as_in_the_paper() -> None:
    names = ["bigbench", "super_glue", "commonsense_qa", "social_iqa", "openbookqa", "sciq", "knowref"]
    assert list(shares(names, 34000).values()) == [8000, 8000, 6000, 6000, 2000, 2000, 2000]
    assert sum(v or 0 for v in shares(names, 1001).values()) == 1001
    assert shares(["arc_easy", "sciq"], 7) == {"arc_easy": 3, "sciq": 4}
    assert shares(["arc_easy", "sciq"], None) == {"arc_easy": None, "sciq": None}


def test_errors(tiny_root: Path) -> None:
    with pytest.raises(UserError, match="references.tasks is empty"):
        reference_items([], data_root=tiny_root)
    with pytest.raises(UserError, match="did you mean 'sciq'"):
        reference_items(["scq"], data_root=tiny_root)
    with pytest.raises(UserError, match="holds nothing for 'knowref'"):
        reference_items(["knowref"], data_root=Path(__file__).parent)


def test_question_hashes_find_copies() -> None:
    assert question_hash("Which  planet is RED?") == question_hash("which planet is red")
    assert question_hash("Which planet is red?") != question_hash("Which planet is blue?")
    assert question_hash("¿Qué es?") != question_hash("")


def test_reference_mixtures_on_the_shared_data(data_root: Path) -> None:
    names = ["bigbench", "super_glue", "commonsense_qa", "social_iqa", "openbookqa", "sciq", "knowref"]
    items, notes = reference_items(names, data_root=data_root, limit=170)
    assert len(items) == 170 and len(notes) >= 3
    assert len({(item.id[0], item.id[1]) for item in items}) == 170
