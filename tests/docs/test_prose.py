"""How the documentation is written: short sentences, the words of the README's table, none that were retired."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.test_docs import PAGES, name

LONGEST = 35  # words of a sentence
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "results" / "README.md"]
NOT_PROSE = re.compile(r"^```.*?^```|<svg.*?</svg>|<!--.*?-->", re.M | re.S)
STARTS = re.compile(r"(?:[-*]|\d+\.) +")  # of an item of a list
ENDS = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!et al\.)(?<=[.?!])[)*\"”]* +")


def paragraphs(text: str) -> list[str]:
    """Running text and items of lists, without code, tables, headings, pictures and comments."""
    matches, lines = [], []
    for line in [*NOT_PROSE.sub("\n", text).splitlines(), ""]:
        line = line.strip()
        item = STARTS.match(line)
        if not line or item or line.startswith(("|", "#", ":::")):
            matches += [" ".join(lines)] if lines else []
            lines = []
        if line and not line.startswith(("|", "#", ":::")):
            lines.append(line[item.end() :] if item else line)
    return matches


def sentences(text: str) -> list[str]:
    """Sentences of a page; a span of code, the target of a link and an interval count as one word or none."""
    matches = []
    for paragraph in paragraphs(text):
        plain = re.sub(r"`[^`]+`", "CODE", paragraph)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        matches += ENDS.split(re.sub(r"\[[^\]A-Za-z]*\]", "INTERVAL", plain))
    return matches


def rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    part = page.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"
    ]
    return cells[2:]


OWN_WORDS = [row[0] for row in rows(ROOT / "README.md", "Words")]
RETIRED = {row[0].strip("`"): row[1] for row in rows(ROOT / "CONTRIBUTING.md", "Retired words")}


def retired_in(text: str) -> list[str]:
    """Retired words of a text; one that is written in capitals was a name, and is sought as such."""
    matches = []
    for word in RETIRED:
        case = 0 if word != word.lower() else re.IGNORECASE
        matches += [word] if re.search(rf"(?<![\w.]){re.escape(word)}(?![\w(])", text, case) else []
    return matches


def test_sentences_are_told_apart():
    text = (
        "# Head\n\nOne `a b c` two. arXiv three [x. y](z.md)!\n\n- item one\n  goes on. Two [−0.1, 0.2].\n\n"
    )
    text += "| no | table. |\n"
    assert sentences(text) == ["One CODE two.", "arXiv three x.", "y!", "item one goes on.", "Two INTERVAL."]
    assert sentences("```\ncode. more\n```\n<!-- c. d -->\n(In brackets.) Next.") == [
        "(In brackets.",
        "Next.",
    ]


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_no_sentence_is_long(page):
    long = [text for text in sentences(page.read_text(encoding="utf-8")) if len(text.split()) > LONGEST]
    assert not long, f"{name(page)}: over {LONGEST} words: {long}"


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_no_word_is_retired(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "CONTRIBUTING.md":
        text = text.split("## Retired words", 1)[0]
    assert not {word: RETIRED[word] for word in retired_in(text)}, name(page)


def test_retired_words_are_found():
    assert retired_in("Every call is a line in a ledger.") == ["ledger"]
    assert retired_in("method.mass=kept, the own pathway") == ["own pathway", "method.mass"]
    assert not retired_in("raw material, experts_implementation, model.experts_implementation, a warm-up")


def test_the_projects_own_words_are_used_and_none_is_retired():
    """The README's table is the list of words that only this project uses, or uses in its own sense."""
    text = " ".join(page.read_text(encoding="utf-8").lower() for page in PAGES if page.name != "README.md")
    assert len(OWN_WORDS) > 12
    assert not [word for word in OWN_WORDS if word not in text]
    assert not [word for word in OWN_WORDS if retired_in(word)]
