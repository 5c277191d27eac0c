"""The planted pathway of an item, and how far another pathway is from it.

The domain is read off the topic words of the question, so anything that has the question (an arm, a row of
`samples.jsonl`) can ask. Plain Python: analysis may import it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from c3po_bench.models.planted.words import TOPICS
from c3po_bench.models.planted.world import DOMAINS, EXPERTS, LAYERS, OWNED, WEIGHT, world

_DOMAIN_OF_WORD = {word: domain for domain, words in TOPICS.items() for word in words}

Pathway = list[list[float]]


def domain_of(question: str) -> str:
    """The domain that most topic words of `question` belong to.

    Raises:
        ValueError: if the question has no topic word: it isn't one of the testbed's.
    """
    words = re.findall(r"\w+", question)
    counts = Counter(_DOMAIN_OF_WORD[word] for word in words if word in _DOMAIN_OF_WORD)
    if not counts:
        raise ValueError(f"not a question of the planted testbed: {question[:80]!r}")
    return max(DOMAINS, key=lambda domain: counts[domain])


def planted_pathway(domain: str) -> Pathway:
    """Routing weights [3 planted layers, 16 experts] of `domain`; every row sums to one."""
    rest = (1 - OWNED * WEIGHT) / (EXPERTS - OWNED)
    return [
        [WEIGHT if expert in owned[domain] else rest for expert in range(EXPERTS)] for owned in world().owned
    ]


def pathway_of(question: str, layers: Sequence[int] = LAYERS) -> Pathway:
    """The planted pathway of a question, rows in the order of `layers` (all of them planted).

    Raises:
        ValueError: if one of `layers` is not planted.
    """
    unplanted = sorted(set(layers) - set(LAYERS))
    if unplanted:
        raise ValueError(
            f"layers {unplanted} have no planted pathway; those of the testbed are {list(LAYERS)}"
        )
    rows = planted_pathway(domain_of(question))
    return [rows[LAYERS.index(layer)] for layer in layers]


def distance(pathway: Sequence[Sequence[float]], layers: Sequence[int], question: str) -> float:
    """How far `pathway` is from the planted one: total variation, 0 (the same) to 1 (disjoint).

    Averaged over the planted layers among `layers`; each row is scaled to sum to one first.

    Args:
        pathway: [layers, 16], non-negative.
        layers: decoder layer of each row.
        question: of the item.
    """
    rows = [(row, layer) for row, layer in zip(pathway, layers, strict=True) if layer in LAYERS]
    if not rows:
        raise ValueError(f"none of layers {list(layers)} is planted ({list(LAYERS)})")
    total = 0.0
    for row, layer in rows:
        mass = sum(row) or 1.0
        planted = pathway_of(question, [layer])[0]
        total += 0.5 * sum(abs(weight / mass - goal) for weight, goal in zip(row, planted, strict=True))
    return total / len(rows)
