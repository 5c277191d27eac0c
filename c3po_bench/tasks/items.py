"""One multiple-choice question as the model sees it, and the hash by which copies of it are found."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A labelled question, rendered. `pairs` are lm-eval's loglikelihood arguments, one for each choice.

    `lengths` is what the scoring rule divides each choice's log-likelihood by; empty where it divides by
    nothing.
    """

    task: str
    doc_id: int
    doc_hash: str
    question: str
    pairs: tuple[tuple[str, str], ...]
    gold: int
    lengths: tuple[float, ...] = ()


def normalize(text: str) -> str:
    """Lower-case words and digits of `text`, single-spaced: what copies of a question have in common."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def question_hash(question: str) -> str:
    """16 hex digits over the normalized question: equal if only case, spacing or punctuation differ."""
    return hashlib.sha256(normalize(question).encode()).hexdigest()[:16]
