"""Our own facts: enough of them, one right answer each, no entity on both sides."""

from __future__ import annotations

import re
import time
from collections import Counter

from c3po_bench.tasks import TaskSet, reference_items
from c3po_bench.tasks.catalog import OWN
from c3po_bench.tasks.facts import arithmetic, generate


def _docs() -> list[tuple[str, dict]]:
    return [
        (split, doc) for parts in generate.build().values() for split, docs in parts.items() for doc in docs
    ]


def test_counts() -> None:
    built = generate.build()
    assert len(built) >= 12 and len(_docs()) >= 1200
    for relation, parts in built.items():
        assert len(parts["dev"]) >= 5, relation
        assert len(parts["train"]) >= 10 and len(parts["test"]) >= 10, relation


def test_every_item_has_four_distinct_options_and_one_answer() -> None:
    for _, doc in _docs():
        assert len(doc["choices"]) == 4 == len({choice.casefold() for choice in doc["choices"]}), doc
        assert 0 <= doc["answer"] < 4
        assert all(choice == choice.strip() and choice for choice in doc["choices"])


def test_entities_lie_in_one_split_across_all_relations() -> None:
    seen: dict[str, str] = {}
    for split, doc in _docs():
        assert seen.setdefault(generate.entity_key(doc["entity"]), split) == split, doc


def test_no_question_is_asked_twice() -> None:
    counts = Counter(doc["question"] for _, doc in _docs())
    assert [q for q, n in counts.items() if n > 1] == []


def test_wrong_options_come_from_the_relation_and_are_never_also_right() -> None:
    for path in generate.TABLES.glob("*.tsv"):
        table = generate.read_table(path)
        rows = {entity: (answer, also) for entity, answer, also in table.rows}
        assert len(rows) == len(table.rows), f"{path.name}: an entity twice"
        answers = {answer for answer, _ in rows.values()}
        for docs in generate.build()[table.relation].values():
            for doc in docs:
                answer, also = rows[doc["entity"]]
                assert doc["choices"][doc["answer"]] == answer
                wrong = set(doc["choices"]) - {answer}
                assert not wrong & also
                if table.options in ("plural", "past"):
                    assert answer not in wrong
                else:
                    assert wrong <= answers


def test_arithmetic_is_right() -> None:
    units = {(large, small): factor for large, small, factor in arithmetic.UNITS}
    numerals = {arithmetic.roman(n): n for n in range(1, 400)}
    check = {
        "addition": lambda q: sum(map(int, re.findall(r"\d+", q))),
        "subtraction": lambda q: int.__sub__(*map(int, re.findall(r"\d+", q))),
        "multiplication": lambda q: int.__mul__(*map(int, re.findall(r"\d+", q))),
    }
    for relation in arithmetic.RELATIONS:
        for docs in generate.build()[relation].values():
            for doc in docs:
                question, answer = doc["question"], doc["choices"][doc["answer"]]
                if relation in check:
                    assert int(answer) == check[relation](question)
                elif relation == "sequences":
                    first, second, *_, last = map(int, re.findall(r"\d+", question))
                    assert int(answer) == last + second - first
                elif relation == "roman_numerals":
                    assert numerals[answer] == int(re.findall(r"\d+", question)[0])
                else:
                    small, count, large = re.match(r"How many (\w+) are in (\d+) (\w+)\?", question).groups()  # type: ignore[union-attr]
                    assert int(answer) == int(count) * units[large, small]


def test_answers_stand_in_all_places_alike() -> None:
    places = Counter(doc["answer"] for split, doc in _docs() if split == "test")
    total = sum(places.values())
    assert all(0.2 < places[i] / total < 0.3 for i in range(4)), places


def test_items_never_change() -> None:
    generate.build.cache_clear()
    first = generate.fingerprint()
    generate.build.cache_clear()
    assert generate.fingerprint() == first


def test_each_relation_has_its_yaml_and_the_group_lists_it() -> None:
    tasks = TaskSet(["facts"])
    assert tasks.groups["facts"] == [f"facts_{relation}" for relation in generate.relations()]
    assert {path.stem for path in (OWN / "facts").glob("facts_*.yaml")} == set(tasks.configs)
    for name, task in tasks.load().items():
        parts = generate.build()[name.removeprefix("facts_")]
        assert list(task.eval_docs) == parts["test"] and list(task.training_docs()) == parts["train"]


def test_references_share_no_entity_with_the_test() -> None:
    items, notes = reference_items(["facts"], limit=200, num_fewshot=2)
    assert len(items) == 200 and notes == []
    tests = {generate.entity_key(doc["entity"]) for split, doc in _docs() if split == "test"}
    by_place = {f"facts_{relation}": parts["train"] for relation, parts in generate.build().items()}
    assert not tests & {generate.entity_key(by_place[item.id[0]][item.id[1]]["entity"]) for item in items}


def test_making_the_items_takes_a_fraction_of_a_second() -> None:
    generate.build.cache_clear()
    start = time.process_time()
    generate.build()
    assert time.process_time() - start < 1.0
