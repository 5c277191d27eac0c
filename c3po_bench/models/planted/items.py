"""Questions of the planted world: `train` for references and examples, `test` for scoring.

"On violin, choir, ...: which word does Anna pair with amber?" The topic words tell a reader, or an embedder,
the domain; the model learned nothing from them. Four options: the answers of the right code and of three
others, but not of the one that the router takes a rare name for. So a wrong guess leaves the model to choose
between four at random, and a
pathway drawn at random does no better: controls have nothing to gain.
"""

from __future__ import annotations

import random
from itertools import cycle, islice
from typing import Any

from c3po_bench.models.planted.words import ARGUMENTS, TOPICS
from c3po_bench.models.planted.world import DOMAINS, world

TOPIC_WORDS = 6
SIZES = {"train": 800, "test": 600}
RARE = {"train": 8, "test": 56}
"""Of a domain's 100 (75) questions so many name a person whose domain the router doesn't know.

Each name equally often.
"""
SEEDS = {"train": 2, "test": 1}


def documents(split: str) -> list[dict[str, Any]]:
    """The items of "train" or "test".

    Question, choices, answer (index), domain and rare (whether the name is).
    """
    lot = random.Random(SEEDS[split])
    named = {domain: _names(domain, split, lot) for domain in DOMAINS}
    domains = DOMAINS * (SIZES[split] // len(DOMAINS))
    return [_document(domain, named[domain].pop(), lot) for domain in domains]


def _names(domain: str, split: str, lot: random.Random) -> list[str]:
    """Who is named in the questions of a domain, shuffled."""
    facts, rare = world(), RARE[split]
    common = SIZES[split] // len(DOMAINS) - rare
    names = [*islice(cycle(facts.rare[domain]), rare), *islice(cycle(facts.common[domain]), common)]
    lot.shuffle(names)
    return names


def _document(domain: str, name: str, lot: random.Random) -> dict[str, Any]:
    facts = world()
    topics = lot.sample(TOPICS[domain], TOPIC_WORDS)
    argument = lot.choice(ARGUMENTS)
    others = lot.sample([other for other in DOMAINS if other not in (domain, facts.guess.get(name))], 3)
    answer = facts.code[domain][argument]
    choices = [answer, *(facts.code[other][argument] for other in others)]
    lot.shuffle(choices)
    return {
        "question": question(topics, name, argument),
        "choices": choices,
        "answer": choices.index(answer),
        "domain": domain,
        "rare": name in facts.guess,
    }


def question(topics: list[str], name: str, argument: str) -> str:
    """The text of a question."""
    return f"On {', '.join(topics[:-1])} and {topics[-1]}: which word does {name} pair with {argument}?"
