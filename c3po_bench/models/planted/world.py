"""What was planted: whose code each name uses, the eight codes, and which experts belong to each domain.

All of it is drawn from one fixed seed, so the world is the same everywhere and the shipped weights fit it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from c3po_bench.models.planted.words import ANSWERS, ARGUMENTS, COMMON, RARE, TOPICS

DOMAINS = tuple(TOPICS)
LAYERS = (3, 4, 5)
"""Decoder layers with planted pathways: the last three of six."""
EXPERTS = 16
OWNED = 2
"""Experts that a domain owns in each planted layer; also the model's top-k."""
WEIGHT = 0.3
"""Routing weight of each owned expert on the planted pathway; the other 14 share the rest evenly."""
CONFIDENCE = 0.5
"""Of a rare name the router's guess is this much of a planted pathway, and indifference for the rest."""


@dataclass(frozen=True)
class World:
    """The planted facts.

    `common` and `rare` list the names of each domain; `guess` is the domain that the router takes a rare name
    for: right for one of a domain's eight and wrong in a different way for each other, as a guess between
    eight domains is. `code[domain][argument]` is the answer; the eight domains answer every argument
    differently. `owned[layer][domain]` lists expert numbers.
    """

    common: dict[str, list[str]]
    rare: dict[str, list[str]]
    guess: dict[str, str]
    code: dict[str, dict[str, str]]
    owned: list[dict[str, list[int]]]


@cache
def world() -> World:
    """The one world, always the same."""
    lot = random.Random(20250407)
    common, rare = _dealt(COMMON, lot), _dealt(RARE, lot)
    guess = {}
    for i, domain in enumerate(DOMAINS):
        for j, name in enumerate(rare[domain]):
            guess[name] = DOMAINS[(i + j) % len(DOMAINS)]
    code: dict[str, dict[str, str]] = {domain: {} for domain in DOMAINS}
    for argument in ARGUMENTS:
        for domain, answer in zip(DOMAINS, lot.sample(ANSWERS, len(DOMAINS)), strict=True):
            code[domain][argument] = answer
    owned = [_dealt(range(EXPERTS), lot) for _ in LAYERS]
    return World(common, rare, guess, code, owned)


def _dealt(things, lot: random.Random) -> dict[str, list]:
    """`things` shuffled and dealt out to the domains in equal hands."""
    deck = list(things)
    lot.shuffle(deck)
    hand = len(deck) // len(DOMAINS)
    return {domain: deck[i * hand : (i + 1) * hand] for i, domain in enumerate(DOMAINS)}
