"""Copies and near-copies of a question: no item may be answered with the help of one of its own."""

import hashlib
import re
from typing import Any


def normalize(text: str) -> str:
    """Lower-case words and digits of `text`, single-spaced: what copies of a question have in common."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def question_hash(question: str) -> str:
    """16 hex digits over the normalized question: equal if only case, spacing or punctuation differ."""
    return hashlib.sha256(normalize(question).encode()).hexdigest()[:16]


def near_duplicates(similarity: Any, most: float) -> Any:
    """Where two questions are too alike for one to be a reference for the other: more than `most` (`max_similarity`).

    `similarity` holds cosines of their embeddings, as a tensor or an array of any shape; so does the answer, as booleans.
    """
    return similarity > most
