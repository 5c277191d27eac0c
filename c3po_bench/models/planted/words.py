"""The words of the planted world. One token each.

Topic words are themed so that a text embedder sees the domain.
"""

from __future__ import annotations


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
