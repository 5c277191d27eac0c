"""Copies and near-copies of a question: no item may be answered with the help of one of its own."""

import hashlib
import re
import unicodedata
from functools import lru_cache
from typing import Any

_SIGNS = (
    r"(?<=\d)\.(?=\d)",  # 3.5 is not 35
    r"(?<=\d)!(?=\s*\S)",  # 4! + 1
    r"[+=<>^%$~|\\]",  # C++, 5 < 3, 40%
    r"-(?=\s*\d)(?<![^\W\d_][^\W\d_]-)",  # 5 - 3, -3; not Carbon-14
    r"(?<=[^\W_])-(?=[^\W_]\b)(?<=\b.-)",  # x-y; not e-mail
    r"(?<=[^\W_]\s)-(?=\s[^\W_]\b)(?<=\b..-)",  # x - y; not word - word
    r"(?<![^\W\d_])[/&*#@]|[/&*#@](?![^\W\d_])",  # 1/2, C#; not and/or
)
"""Signs that say something, in ASCII. Elsewhere they are punctuation, as are all others."""
_MAYBE_SIGN = re.compile(r"[-+=<>^%$~|\\/&*#@!]|\d\.\d")
_DASHES = re.compile("[\u2010-\u2015\u2212]")


@lru_cache(256)
def _tokens(marks: str, symbols: str, brackets: bool) -> re.Pattern[str]:
    word = f"(?:[^\\W_]|[{marks}])+" if marks else r"[^\W_]+"
    more = ([f"[{symbols}]"] if symbols else []) + ([r"[()\[\]{}]"] if brackets else [])
    return re.compile("|".join([word, *_SIGNS, *more]))


def normalize(text: str) -> str:
    """Lower-case words, digits and meaningful signs of `text`, single-spaced: what copies of a question have in common.

    Punctuation is left out. What is an operator or belongs to a number is not: 5 - 3 is no copy of 5 + 3, C++
    none of C. A text of punctuation alone stays as it is.
    """
    folded = text.casefold()
    beyond = "" if folded.isascii() else "".join(sorted({c for c in folded if c > "\x7f"}))
    if beyond:
        folded = _DASHES.sub("-", unicodedata.normalize("NFC", folded))
    marks, symbols = ("".join(c for c in beyond if unicodedata.category(c)[0] == kind) for kind in "MS")
    if not symbols and not _MAYBE_SIGN.search(folded):
        found = re.findall(r"[^\W_]+", folded) if not marks else _tokens(marks, "", False).findall(folded)
    else:
        found = _tokens(marks, symbols, False).findall(folded)
        if any(token in "+-*/^" for token in found):  # in a formula, brackets count
            found = _tokens(marks, symbols, True).findall(folded)
    return " ".join(found) or " ".join(folded.split())


def question_hash(question: str) -> str:
    """16 hex digits over the normalized question: equal if only case, spacing or punctuation differ."""
    return hashlib.sha256(normalize(question).encode()).hexdigest()[:16]


def near_duplicates(similarity: Any, most: float) -> Any:
    """Where two questions are too alike for one to be a reference for the other: more than `most` (`max_similarity`).

    `similarity` holds cosines of their embeddings, as a tensor or an array of any shape; so does the answer,
    as booleans.
    """
    return similarity > most
