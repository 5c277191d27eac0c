"""Makes the items of `skills`: short questions under a rule, in pairs of skills that share their content.

A *family* draws the content (a word, a story about three people), a *skill* asks one thing of it (its first
or its last letter). The options of an item are the same for all skills of its family, so the right answer
to the wrong question is always among them. Contents are dealt to four splits, and a content lies in one
split only, for all skills of its family:

- `train`: what the experts and routers of `model=specialists` were trained on. No task offers it.
- `development`: what choices of the maker were looked at on. No task offers it.
- `reference`: the reference sets of the tasks (their training split).
- `test`: the evaluated items.

How a skill is asked is in `phrasings.yaml`: A and further phrasings for training, B and C for development;
and in `shifted.yaml`: D, several wordings dealt to the items in turn, for results alone. Everything is
drawn from fixed seeds, so the items are the same on every machine.
"""

import hashlib
import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from datasets.table import InMemoryTable

from c3po_bench.tasks.fields import without_cues

HERE = Path(__file__).parent
SPLITS = {"test": 200, "reference": 200, "development": 200, "train": 1600}
"""Contents of each split, dealt in this order. `train` takes what there is, up to its number."""


def _words_of(text: str) -> list[str]:
    return text.split()


NAMES = _words_of(
    """
    Anna Ben Carl David Emma Frank Grace Henry Ivan Jack Kate Laura Mark Nancy Oscar Paul Rose Sam Tom
    Victor Alice Bob Clara Dan Eric Fred George Helen Jane Kevin Lucy Maria Nick Peter Ruth Sarah Tim Will
    Adam Amy Brian Chris Diana Ellen James John Julia Linda Lisa Martin Mary Mike Nina Robert Simon Steve
    Susan
    """
)
PLACES = _words_of(
    """
    garden kitchen office park library school church hotel market museum station bank beach forest farm
    garage hospital theater village castle bridge tower river lake island shop stadium temple airport harbor
    bakery attic barn
    """
)
THINGS = _words_of(
    """
    book ball pen cup hat key coin ring map bag box lamp clock phone bike coat apple letter ticket knife
    rope flag doll stone
    """
)
LETTERS = list(string.ascii_lowercase)
Content = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Skills that share their content.

    `draw` makes one content: `key` (equal contents are one), `options`, what phrasings name, and each
    skill's answer under the skill's name. `answers` lists every answer that the family's questions can
    have.
    """

    skills: tuple[str, ...]
    draw: Callable[[random.Random], Content]
    answers: Sequence[str]


def _letters(rng: random.Random) -> Content:
    word = rng.choice(_words())
    first, last = word[0], word[-1]
    inside = sorted(set(word) - {first, last})
    others = rng.sample(sorted(set(LETTERS) - set(word)), 4)
    options = [first, last, *(rng.sample(inside, 1) if inside else []), *others][:4]
    return {"key": word, "word": word, "options": options, "first_letter": first, "last_letter": last}


@cache
def _words() -> list[str]:
    """Common words whose first and last letters differ."""
    words = (HERE / "words.txt").read_text(encoding="utf-8").split()
    return [word for word in words if word[0] != word[-1]]


def _ages(rng: random.Random) -> Content:
    names = rng.sample(NAMES, 3)
    oldest, middle, youngest = names
    facts = [f"{oldest} is older than {middle}.", f"{middle} is older than {youngest}."]
    rng.shuffle(facts)
    content = {"oldest": oldest, "middle": middle, "youngest": youngest}
    return {"key": " ".join(names), "story": " ".join(facts), "options": names, **content}


def _places(rng: random.Random) -> Content:
    name, places = rng.choice(NAMES), rng.sample(PLACES, 3)
    first, second, third = places
    sentence = rng.choice(
        (
            "{name} went to the {first}, then to the {second}, and then to the {third}.",
            "{name} walked from the {first} to the {second} and on to the {third}.",
            "{name} was in the {first}. Later {name} was in the {second}, and later still in the {third}.",
            "From the {first} {name} ran to the {second}, and from there to the {third}.",
        )
    )
    story = sentence.format(name=name, first=first, second=second, third=third)
    content = {"first_place": first, "last_place": third, "name": name}
    return {"key": " ".join([name, *places]), "story": story, "options": places, **content}


def _gifts(rng: random.Random) -> Content:
    names, thing = rng.sample(NAMES, 3), rng.choice(THINGS)
    giver, receiver, other = names
    sentence = rng.choice(
        (
            "{giver} gave the {thing} to {receiver}.",
            "{giver} handed {receiver} the {thing}.",
            "{receiver} got the {thing} from {giver}.",
            "{receiver} was given the {thing} by {giver}.",
            "{giver} sold the {thing} to {receiver}.",
            "{receiver} bought the {thing} from {giver}.",
        )
    )
    facts = [sentence.format(giver=giver, receiver=receiver, thing=thing), f"{other} looked on."]
    rng.shuffle(facts)
    content = {"giver": giver, "receiver": receiver, "thing": thing}
    return {"key": " ".join([*names, thing]), "story": " ".join(facts), "options": names, **content}


FAMILIES = {
    "letters": Family(("first_letter", "last_letter"), _letters, LETTERS),
    "ages": Family(("oldest", "middle", "youngest"), _ages, NAMES),
    "places": Family(("first_place", "last_place"), _places, PLACES),
    "gifts": Family(("giver", "receiver"), _gifts, NAMES),
}
SKILLS = {skill: name for name, family in FAMILIES.items() for skill in family.skills}
"""Every skill, with its family."""


@cache
def contents(family: str) -> dict[str, list[Content]]:
    """The contents of a family by split; no content lies in two."""
    rng = random.Random(f"skills:{family}")
    wanted, seen, dealt = sum(SPLITS.values()), set(), []
    for _ in range(20 * wanted):
        content = FAMILIES[family].draw(rng)
        if content["key"] not in seen:
            seen.add(content["key"])
            rng.shuffle(content["options"])
            dealt.append(content)
        if len(dealt) == wanted:
            break
    rows = iter(dealt)
    return {split: list(islice(rows, n)) for split, n in SPLITS.items()}


@cache
def phrasings(skill: str) -> dict[str, list[str]]:
    """The phrasings of a skill that development knows: `trained` (A first) and `development` (B, C)."""
    return yaml.safe_load((HERE / "phrasings.yaml").read_text(encoding="utf-8"))[skill]


@cache
def shifted(skill: str) -> list[str]:
    """Phrasing D of a skill: several wordings."""
    return yaml.safe_load((HERE / "shifted.yaml").read_text(encoding="utf-8"))[skill]


def asked_in(skill: str, phrasing: str) -> list[str]:
    """The wordings of phrasing "A" or "D"."""
    return shifted(skill) if phrasing == "D" else phrasings(skill)["trained"][:1]


def document(skill: str, content: Content, phrasing: str) -> dict[str, Any]:
    """One item: the question as it is asked, its options and the index of the right one."""
    return {
        "question": phrasing.format(**content),
        "choices": list(content["options"]),
        "answer": content["options"].index(content[skill]),
        "skill": skill,
        "content": content["key"],
    }


def documents(skill: str, split: str, *wordings: str) -> list[dict[str, Any]]:
    """The items of a split of a skill, dealt to the wordings in turn."""
    rows = contents(SKILLS[skill])[split]
    return [document(skill, row, wordings[i % len(wordings)]) for i, row in enumerate(rows)]


def training_documents(skill: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """What an expert is trained on: the training contents, dealt to the trained phrasings in turn.

    `limit` takes the first so many contents. Each has `phrasing`, the index of its phrasing (0 is A).
    """
    wordings = phrasings(skill)["trained"]
    for number, content in enumerate(contents(SKILLS[skill])["train"][:limit]):
        phrasing = number % len(wordings)
        yield document(skill, content, wordings[phrasing]) | {"phrasing": phrasing}


def load(skill: str, phrasing: str = "A", **_: Any) -> dict[str, Any]:
    """The splits that tasks offer, as `datasets.Dataset`s: the `custom_dataset` of the task YAMLs.

    `phrasing` is "A", as trained, or "D", the shifted one.
    """
    return {
        split: Dataset(
            InMemoryTable.from_pylist(documents(skill, split, *asked_in(skill, phrasing))),
            fingerprint=f"{skill}-{phrasing}-{split}-{fingerprint()[:16]}",
        )
        for split in ("reference", "test")
    }


@cache
def _skills_of_questions() -> dict[str, str]:
    """Every question that a task asks, without its cues, with its skill."""
    return {
        without_cues(doc["question"]): skill
        for skill in SKILLS
        for phrasing in ("A", "D")
        for split in ("test", "reference")
        for doc in documents(skill, split, *asked_in(skill, phrasing))
    }


def skill_of(question: str) -> str | None:
    """The skill that a task's question asks for, with or without its cues ("Question:", "Answer:")."""
    return _skills_of_questions().get(without_cues(question))


@cache
def fingerprint() -> str:
    """SHA-256 over all contents and phrasings."""
    wordings = [(skill, phrasings(skill), shifted(skill)) for skill in SKILLS]
    return hashlib.sha256(repr(([contents(family) for family in FAMILIES], wordings)).encode()).hexdigest()
