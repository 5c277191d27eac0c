"""Copies of a question: what makes two questions the same, whatever their case, spacing and punctuation."""

import hashlib
import re


def normalize(text: str) -> str:
    """Lower-case words and digits of `text`, single-spaced: what copies of a question have in common."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def question_hash(question: str) -> str:
    """16 hex digits over the normalized question: equal if only case, spacing or punctuation differ."""
    return hashlib.sha256(normalize(question).encode()).hexdigest()[:16]
