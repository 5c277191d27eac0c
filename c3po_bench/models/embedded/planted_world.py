"""The planted world: its words, what was planted, the questions about it, and the truth about each.

Eight domains own two of 16 experts in each of the last three layers, and have each its own code from word to
word. A question names a person; whose code the person uses is what the router must find out. It knows the
common names and guesses at the rare ones. All of it is drawn from fixed seeds, so the world is the same
everywhere and the shipped weights fit it.

A question reads "On violin, choir, ...: which word does Anna pair with amber?" The topic words tell a reader,
or an embedder, the domain; the model learned nothing from them. Four options: the answers of the right code
and of three others, but not of the one that the router takes a rare name for. So a wrong guess leaves the
model to choose between four at random, and a pathway drawn at random does no better: controls have nothing to
gain.

Plain Python: analysis may import it.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from typing import Any


def _words(text: str) -> list[str]:
    return text.split()


TOPICS: dict[str, list[str]] = {
    domain: _words(words)
    for domain, words in {
        "music": """violin orchestra melody guitar choir piano concert drummer symphony opera flute jazz harmony
            trumpet singer rhythm cello ballad chord conductor""",
        "cooking": """kitchen recipe oven flour soup chef spice butter dough stew frying sauce baking garlic pastry
            roast skillet onion cheese saucepan""",
        "sailing": """sailor anchor harbor rigging mast deck voyage keel captain rudder lighthouse tide schooner yacht
            mooring hull regatta buoy jetty lagoon""",
        "astronomy": """telescope galaxy planet comet orbit nebula asteroid eclipse observatory constellation satellite
            supernova Saturn Jupiter astronomer meteor lunar cosmos starlight quasar""",
        "medicine": """surgeon hospital patient nurse vaccine fever diagnosis clinic bandage antibiotic pharmacy
            therapy infection stethoscope ambulance symptom pulse ward dosage physician""",
        "gardening": """garden seedling compost rosebush pruning orchard tulip soil greenhouse weeds hedge shovel lawn
            fertilizer blossom herbs trellis mulch watering wheelbarrow""",
        "law": """judge lawyer courtroom verdict jury contract witness lawsuit attorney statute appeal defendant trial
            testimony legal prosecutor tribunal plaintiff bail evidence""",
        "football": """stadium goalkeeper striker referee penalty tournament midfielder league dribbling football
            scoreboard offside supporters kickoff tackle trophy defender pitch coach championship""",
    }.items()
}
"""Twenty topic words for each domain."""

COMMON = _words("""Anna Boris Clara David Elena Frank Greta Hugo Irene Jacob Karen Louis Maria Nils Olga Peter Quentin Rosa
    Simon Tanya Ulrich Vera Walter Xenia Yusuf Zoe Adam Bella Carl Diana Emil Fiona George Helen Ivan Julia Kevin Laura
    Martin Nora Oscar Paula Ralph Sarah Thomas Ursula Victor Wendy""")
"""Names whose domain the router learned: six for each."""

RARE = _words("""Abner Beulah Caspian Delphine Ezra Flavia Gideon Hester Ignatius Jocasta Kester Leocadia Mordecai Nerissa
    Osbert Petronella Quillon Rosalba Septimus Thisbe Ulysses Valeria Wilfred Xanthe Yorick Zenobia Alaric Briseis
    Cornelius Drusilla Evander Faustina Godfrey Hermione Isidore Junia Kenelm Lavinia Marius Nerys Orlando Philippa
    Quirin Rufus Sabina Tobias Urbain Violetta Winifred Xavier Yolande Zebedee Ambrose Berenice Crispin Dorothea Edmund
    Felicity Gawain Honoria Isolde Jasper Katrin Leander""")
"""Names whose domain the router was never told: eight for each."""

ARGUMENTS = _words("""amber basalt cobalt denim ebony fabric gravel hemp ivory jade khaki linen marble nylon onyx paper quartz
    rubber satin timber umber velvet wicker zinc""")

ANSWERS = _words("""apple bridge candle desert engine forest glove hammer island jacket kettle ladder mirror needle ocean
    pencil quilt ribbon saddle ticket umbrella valley window yarn basket cradle donkey feather lantern magnet parrot
    turnip""")

TEMPLATE = _words("Question On and which word does pair with Answer")
SPECIAL = ["<pad>", "<eos>", "<unk>"]


def vocabulary() -> list[str]:
    """All words, in the order of their token ids."""
    topics = [word for words in TOPICS.values() for word in words]
    return SPECIAL + TEMPLATE + sorted({*topics, *COMMON, *RARE, *ARGUMENTS, *ANSWERS})


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
    guess = {
        name: DOMAINS[(i + j) % len(DOMAINS)]
        for i, domain in enumerate(DOMAINS)
        for j, name in enumerate(rare[domain])
    }
    answers = {argument: lot.sample(ANSWERS, len(DOMAINS)) for argument in ARGUMENTS}
    code = {
        domain: {argument: answers[argument][i] for argument in ARGUMENTS} for i, domain in enumerate(DOMAINS)
    }
    owned = [_dealt(range(EXPERTS), lot) for _ in LAYERS]
    return World(common, rare, guess, code, owned)


def _dealt(things, lot: random.Random) -> dict[str, list]:
    """`things` shuffled and dealt out to the domains in equal hands."""
    deck = list(things)
    lot.shuffle(deck)
    hand = len(deck) // len(DOMAINS)
    return {domain: deck[i * hand : (i + 1) * hand] for i, domain in enumerate(DOMAINS)}


TOPIC_WORDS = 6
SIZES = {"train": 800, "test": 600}
RARE_QUESTIONS = {"train": 8, "test": 56}
"""Of a domain's 100 (75) questions so many name a person whose domain the router doesn't know, each equally often."""
SEEDS = {"train": 2, "test": 1}


def documents(split: str) -> list[dict[str, Any]]:
    """The items of "train" (for references and examples) or "test" (for scoring).

    Each has question, choices, answer (index), domain and rare (whether the name is).
    """
    lot, facts = random.Random(SEEDS[split]), world()
    each, rare = SIZES[split] // len(DOMAINS), RARE_QUESTIONS[split]
    named: dict[str, list[str]] = {}
    for domain in DOMAINS:
        common = islice(cycle(facts.common[domain]), each - rare)
        named[domain] = [*islice(cycle(facts.rare[domain]), rare), *common]
        lot.shuffle(named[domain])
    return [_document(domain, named[domain].pop(), lot) for domain in DOMAINS * each]


def _document(domain: str, name: str, lot: random.Random, topic: str | None = None) -> dict[str, Any]:
    """A question about `name`, whose domain is `domain`.

    Its topic words are of the domain `topic`, if given.
    """
    facts = world()
    topics = lot.sample(TOPICS[topic or domain], TOPIC_WORDS)
    argument = lot.choice(ARGUMENTS)
    others = lot.sample([other for other in DOMAINS if other not in (domain, facts.guess.get(name))], 3)
    answer = facts.code[domain][argument]
    choices = [answer, *(facts.code[other][argument] for other in others)]
    lot.shuffle(choices)
    subject = f"On {', '.join(topics[:-1])} and {topics[-1]}"
    return {
        "question": f"{subject}: which word does {name} pair with {argument}?",
        "choices": choices,
        "answer": choices.index(answer),
        "domain": domain,
        "rare": name in facts.guess,
    }


DRAWS = 3
"""Seeds that `pool` draws items with; item i belongs to seed i % DRAWS."""
POOL = {("known", "told"): 600, ("known", "misled"): 456, ("rare", "told"): 456, ("rare", "misled"): 344}
"""Items of a kind, a seed: 600 can be composed with 0 to 75% rare names and 25 to 100% told."""


def pool(names: str, topics: str) -> list[dict[str, Any]]:
    """Items of one kind, each seed's in turn. Sets with a known gap and known retrieval are composed of them.

    Args:
        names: "known", whose domain the router learned (there is no gap), or "rare".
        topics: "told", words of the person's own domain, by which an embedder finds neighbors of it, or
            "misled", words of another domain.
    """
    facts, each = world(), POOL[names, topics] // len(DOMAINS)
    people = facts.rare if names == "rare" else facts.common
    drawn = []
    for seed in range(DRAWS):
        lot = random.Random(f"{names} {topics} {seed}")
        docs = []
        for domain in DOMAINS:
            for name in islice(cycle(people[domain]), each):
                other = lot.choice([other for other in DOMAINS if other != domain])
                docs.append(_document(domain, name, lot, other if topics == "misled" else domain))
        lot.shuffle(docs)
        drawn.append(docs)
    return [doc for docs in zip(*drawn, strict=True) for doc in docs]


def load(**_: Any) -> dict[str, Any]:
    """Train and test splits as `datasets.Dataset`: the `custom_dataset` of the task `planted`."""
    from datasets import Dataset

    return {split: Dataset.from_list(documents(split)) for split in SIZES}


def load_pool(names: str, topics: str, **_: Any) -> dict[str, Any]:
    """As `load`, with a kind of the pool to test: `custom_dataset` of the tasks of the group `planted_pool`."""
    from datasets import Dataset

    return {"train": Dataset.from_list(documents("train")), "test": Dataset.from_list(pool(names, topics))}


Pathway = list[list[float]]


def domain_of(question: str) -> str:
    """The domain of the person whom `question` names.

    Raises:
        ValueError: if it names none: it isn't one of the testbed's.
    """
    facts = world()
    domains = {name: d for people in (facts.common, facts.rare) for d in DOMAINS for name in people[d]}
    named = [domains[word] for word in re.findall(r"\w+", question) if word in domains]
    if not named:
        raise ValueError(f"not a question of the planted testbed: {question[:80]!r}")
    return named[-1]


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
    if unplanted := sorted(set(layers) - set(LAYERS)):
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
    for (row, _), planted in zip(rows, pathway_of(question, [layer for _, layer in rows]), strict=True):
        whole = sum(row) or 1.0
        total += 0.5 * sum(abs(weight / whole - goal) for weight, goal in zip(row, planted, strict=True))
    return total / len(rows)
