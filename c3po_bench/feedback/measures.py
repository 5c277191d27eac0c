"""What rules miss: degeneration of an answer, and its likeness to the base model's."""

from __future__ import annotations

import difflib
from typing import Any

NGRAM = 4  # words
_ENDINGS = tuple(".!?:;)]}>\"'`*\u2026\u201d\u2019")


def repetition(text: str) -> float:
    """The share of word 4-grams that occurred before in the same text, 0 (none) to 1 (nothing but a loop)."""
    words = text.lower().split()
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def broken_ending(text: str, finished: bool) -> bool:
    """Whether the model itself stopped where no text ends: nothing said, or in the middle of a sentence.

    An answer cut at the token limit is not broken; one that ends in a name, an emoji or a number on a line of
    its own neither.
    """
    if not text.strip():
        return True
    if not finished or text.rstrip().endswith(_ENDINGS):
        return False
    last_line = text.rstrip().splitlines()[-1].strip()
    return len(last_line.split()) > 6 and last_line[-1].isalpha()


def degeneration(text: str, finished: bool, tokens: int, baseline_tokens: int) -> dict[str, Any]:
    """Repetition, broken ending (0 or 1), length in tokens, and its ratio to the base model's answer."""
    return {
        "repetition": round(repetition(text), 6),
        "broken_ending": float(broken_ending(text, finished)),
        "tokens": tokens,
        "length_ratio": round(tokens / max(1, baseline_tokens), 6),
    }


def similarity(text: str, baseline: str) -> float:
    """The share of words that two answers have in common in order, 0 to 1 (1 = the same words)."""
    first, second = text.split(), baseline.split()
    if not first and not second:
        return 1.0
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
