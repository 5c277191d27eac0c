"""Makes the `facts` items from the fact tables beside this file: four options each, split by entity.

A table is `tables/RELATION.tsv`: header lines `# question:`, `# about:` and perhaps `# options:`, then
entity, answer, and in the third column answers (joined by `|`) that must not serve as wrong options.
Everything is drawn from fixed seeds, so the items are the same on every machine. An entity lies in one split
only, across all relations: a country whose capital is a reference never has its currency in the test.
"""

import difflib
import hashlib
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.table import InMemoryTable

from c3po_bench.tasks.facts import arithmetic

TABLES = Path(__file__).parent / "tables"
SPLITS = ("train", "dev", "test")  # reference items, few-shot examples, evaluated items
DEV = 6  # few-shot examples a relation has at least


@dataclass(frozen=True)
class Table:
    """One fact table: the question's template, how wrong options are made, and its rows."""

    relation: str
    question: str
    options: str
    rows: tuple[tuple[str, str, frozenset[str]], ...]


def read_table(path: Path) -> Table:
    """Parse a TSV table."""
    head: dict[str, str] = {}
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            key, _, value = line[2:].partition(": ")
            head[key] = value
        elif line:
            entity, answer, *also = line.split("\t")
            rows.append((entity, answer, frozenset(also[0].split("|")) if also else frozenset()))
    return Table(path.stem, head["question"], head.get("options", "relation"), tuple(rows))


def relations() -> list[str]:
    """Names of all relations, sorted."""
    return sorted([path.stem for path in TABLES.glob("*.tsv")] + list(arithmetic.RELATIONS))


def _other_answers(table: Table, answer: str, banned: frozenset[str], rng: random.Random) -> list[str]:
    """Three answers of the same relation; with `options: near` among the eight that are spelt most alike."""
    pool = sorted({a for _, a, _ in table.rows} - {answer} - banned)
    rng.shuffle(pool)
    if table.options == "near":
        pool.sort(key=lambda a: -difflib.SequenceMatcher(None, a.casefold(), answer.casefold()).ratio())
        pool = pool[:8]
    return rng.sample(pool, 3)


def _add_s(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh", "o")):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def _add_ed(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if re.search(r"[^aeiou]y$", word) else word + "ed"


def _misformed(table: Table, word: str, answer: str, banned: frozenset[str], rng: random.Random) -> list[str]:
    """Three wrong forms of `word` itself: no plural, or no past tense, that anybody uses."""
    if table.options == "plural":
        endings = (word + "s", word + "es", word[:-1] + "ies", word[:-1] + "ves", word + "en", answer + "es")
        forms = {word, *endings}
    else:
        present = "has" if word == "have" else _add_s(word)
        forms = {word, _add_ed(word), present, answer + ("d" if answer.endswith("e") else "ed"), word + "t"}
    return rng.sample(sorted(forms - {answer} - banned), 3)


def _table_docs(table: Table) -> list[dict[str, Any]]:
    rng = random.Random(f"facts:{table.relation}")
    docs = []
    for entity, answer, banned in table.rows:
        if table.options in ("plural", "past"):
            wrong = _misformed(table, entity, answer, banned, rng)
        else:
            wrong = _other_answers(table, answer, banned, rng)
        docs.append(_doc(table.relation, entity, table.question.format(entity=entity), answer, wrong, rng))
    return docs


def _doc(
    relation: str, entity: str, question: str, answer: str, wrong: list[str], rng: random.Random
) -> dict[str, Any]:
    choices = [answer, *wrong]
    rng.shuffle(choices)
    return {
        "question": question,
        "choices": choices,
        "answer": choices.index(answer),
        "entity": entity,
        "relation": relation,
    }


def _relation_docs(relation: str) -> list[dict[str, Any]]:
    if relation not in arithmetic.RELATIONS:
        return _table_docs(read_table(TABLES / f"{relation}.tsv"))
    rng = random.Random(f"facts:order:{relation}")
    return [
        _doc(relation, entity, question, answer, wrong, rng)
        for entity, question, answer, wrong in arithmetic.rows(relation)
    ]


def entity_key(entity: str) -> str:
    """What decides that two entities are one: the name in lower case without its article."""
    return entity.casefold().removeprefix("the ")


def _assign(docs: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Entity -> split. Small relations first, so that each gets its few-shot examples; then half and half."""
    split: dict[str, str] = {}
    for relation in sorted(docs, key=lambda name: (len(docs[name]), name)):
        keys = [entity_key(doc["entity"]) for doc in docs[relation]]
        count = {name: sum(split.get(key) == name for key in keys) for name in SPLITS}
        free = sorted({key for key in keys if key not in split})
        random.Random(f"facts:split:{relation}").shuffle(free)
        dev = max(DEV, len(keys) // 15)
        for key in free:
            rest = "train" if count["train"] < count["test"] else "test"
            name = "dev" if count["dev"] < dev else rest
            split[key] = name
            count[name] += 1
    return split


@cache
def build() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All items: relation -> split -> documents with question, choices, answer (index), entity, relation."""
    docs = {relation: _relation_docs(relation) for relation in relations()}
    split = _assign(docs)
    return {
        relation: {name: [doc for doc in rows if split[entity_key(doc["entity"])] == name] for name in SPLITS}
        for relation, rows in docs.items()
    }


def load(relation: str, **_: Any) -> dict[str, Any]:
    """The splits of one relation as `datasets.Dataset`s: the `custom_dataset` of the task YAMLs."""
    return {  # named fingerprints: making one up takes ten times as long as all the rest
        name: Dataset(InMemoryTable.from_pylist(rows), fingerprint=f"{relation}-{name}")
        for name, rows in build()[relation].items()
    }


def fingerprint() -> str:
    """SHA-256 over all items."""
    return hashlib.sha256(repr(build()).encode()).hexdigest()
