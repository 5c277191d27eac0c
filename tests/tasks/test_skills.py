"""Our own skills: the rule holds in every item, contents lie in one split, phrasings are what the docs say."""

from __future__ import annotations

import re
from itertools import combinations

from c3po_bench.models.embedded.specialists import RULES
from c3po_bench.tasks import TaskSet, reference_items
from c3po_bench.tasks.catalog import OWN
from c3po_bench.tasks.skills import generate


def every_document(split="test"):
    for skill in generate.SKILLS:
        asked = generate.phrasings(skill)
        for wording in [*asked["trained"], *asked["development"], *generate.shifted(skill)]:
            yield from generate.documents(skill, split, wording)


def test_every_skill_has_an_expert_two_tasks_and_a_partner():
    assert set(generate.SKILLS) == set(RULES)
    for name, suffix in (("skills", ""), ("skills_shifted", "_shifted")):
        assert list(TaskSet([name]).load()) == [f"skills_{skill}{suffix}" for skill in generate.SKILLS]
    assert {path.stem for path in OWN.glob("skills/skills_*.yaml")} == {
        "skills_shifted",
        *(f"skills_{skill}{suffix}" for skill in generate.SKILLS for suffix in ("", "_shifted")),
    }
    assert all(len(family.skills) >= 2 for family in generate.FAMILIES.values())


def test_contents_lie_in_one_split():
    for family in generate.FAMILIES:
        keys = {split: {row["key"] for row in rows} for split, rows in generate.contents(family).items()}
        assert {split: len(found) for split, found in keys.items() if split != "train"} == {
            split: 200 for split in ("test", "reference", "development")
        }
        assert len(keys["train"]) >= 1000
        for one, other in combinations(keys.values(), 2):
            assert not one & other


def test_options_are_distinct_and_hold_the_answers_of_the_whole_family():
    for name, family in generate.FAMILIES.items():
        for rows in generate.contents(name).values():
            for row in rows:
                answers = [row[skill] for skill in family.skills]
                assert len(set(answers)) == len(answers) and set(answers) <= set(row["options"])
                assert len(set(row["options"])) == len(row["options"]) >= 3
                assert set(row["options"]) <= set(family.answers)


def test_the_rules_hold():
    for row in generate.contents("letters")["test"]:
        assert (row["first_letter"], row["last_letter"]) == (row["word"][0], row["word"][-1])
    for row in generate.contents("ages")["test"]:
        older = re.findall(r"(\w+) is older than (\w+)\.", row["story"])
        assert sorted(older) == sorted([(row["oldest"], row["middle"]), (row["middle"], row["youngest"])])
    for row in generate.contents("places")["test"]:
        told = [word for word in re.findall(r"\w+", row["story"]) if word in generate.PLACES]
        assert (told[0], told[-1]) == (row["first_place"], row["last_place"]) and len(told) == 3


def test_phrasings_are_many_and_all_different():
    for skill in generate.SKILLS:
        asked = generate.phrasings(skill)
        assert len(asked["trained"]) >= 6 and len(asked["development"]) == 2
        texts = [*asked["trained"], *asked["development"], *generate.shifted(skill)]
        assert len(set(texts)) == len(texts)
        assert asked["trained"][0].startswith("Question: ")
    texts = [phrase for skill in generate.SKILLS for phrase in generate.phrasings(skill)["trained"]]
    assert len(set(texts)) == len(texts)  # the question tells the skills of a family apart


def test_nothing_is_left_unfilled_and_no_prompt_ends_in_a_blank():
    for document in every_document():
        assert "{" not in document["question"] and document["question"] == document["question"].strip()


def test_experts_are_trained_on_training_contents_in_all_phrasings():
    for skill in ("oldest", "last_letter"):
        documents = list(generate.training_documents(skill))
        train = {row["key"] for row in generate.contents(generate.SKILLS[skill])["train"]}
        assert {document["content"] for document in documents} == train
        assert {document["phrasing"] for document in documents} == set(
            range(len(generate.phrasings(skill)["trained"]))
        )


def test_questions_know_their_skill():
    for phrasing in ("A", "D"):
        for skill in generate.SKILLS:
            question = generate.load(skill, phrasing)["reference"][0]["question"]
            assert generate.skill_of(question) == skill
            assert generate.skill_of(question.removeprefix("Question: ").removesuffix("\nAnswer:")) == skill
    assert generate.skill_of("What is a whale?") is None


def test_references_come_from_the_reference_split():
    questions = {generate.without_cues(row["question"]) for row in generate.load("oldest")["reference"]}
    items, notes = reference_items(["skills_oldest"], tested=["skills_oldest", "skills_oldest_shifted"])
    assert {item.question for item in items} == questions and len(items) == 200 and not notes
