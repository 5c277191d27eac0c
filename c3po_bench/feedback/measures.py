"""S_in, S_near, S_out, S_overall, and what rules miss: degeneration, and likeness to the base answer."""

import difflib
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from c3po_bench.contract import Item
from c3po_bench.feedback.answering import Answer

MEASURES = ("drift", "similarity", "repetition", "broken_ending", "tokens", "length_ratio")
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
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def compared(item: Item, text: str, finished: bool, tokens: int, baseline: Answer) -> dict[str, Any]:
    """What the record of an answer to a prompt about feedback keeps, beside the base model's answer (`baseline`).

    `finished` and `tokens`: whether the model ended the answer itself, and how many tokens it wrote.
    """
    return {
        "scope": item.metadata["scope"],
        "feedback_id": item.metadata["feedback"],
        "category": item.metadata["category"],
        "prompt": item.prompt,
        "response": text,
        "baseline_response": baseline.text,
        "drift": None,
        "similarity": round(similarity(text, baseline.text), 6),
        "degeneration": degeneration(text, finished, tokens, baseline.tokens),
    }


def measure(row: dict[str, Any], name: str) -> float | None:
    """A measure of a row, wherever it lives."""
    value = row.get(name, (row.get("degeneration") or {}).get(name))
    return None if value is None else float(value)


def s_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The S metrics of the rows of one or more pieces: the mean over prompts, then over pieces.

    S_in is the mean signed score in scope, S_near and S_out the mean absolute score there, and
    S_overall = (S_in + 1 - (S_near + S_out) / 2) / 2. A metric without rows is left out.
    """
    metrics: dict[str, float] = {}
    for scope in ("in", "near", "out"):
        by_feedback: dict[str, list[float]] = {}
        for row in rows:
            if row.get("scope") == scope and row.get("score") is not None:
                value = row["score"] if scope == "in" else abs(row["score"])
                by_feedback.setdefault(row["feedback_id"], []).append(value)
        if by_feedback:
            metrics[f"S_{scope}"] = fmean(fmean(values) for values in by_feedback.values())
    if len(metrics) == 3:
        metrics["S_overall"] = (metrics["S_in"] + 1 - (metrics["S_near"] + metrics["S_out"]) / 2) / 2
    return metrics


def extra_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By task the mean measures; under ``feedback`` and ``feedback/ID`` the S metrics."""
    extra: dict[str, dict[str, float]] = {}
    answers = [row for row in rows if "feedback_id" in row]
    for task in dict.fromkeys(row["task"] for row in answers):
        values = {name: [measure(r, name) for r in answers if r["task"] == task] for name in MEASURES}
        known = {name: [v for v in column if v is not None] for name, column in values.items()}
        extra[task] = {name: fmean(column) for name, column in known.items() if column}
    if answers:
        extra["feedback"] = {**s_metrics(answers), "n": len(answers)}
    for feedback_id in dict.fromkeys(row["feedback_id"] for row in answers):
        own = [row for row in answers if row["feedback_id"] == feedback_id]
        extra[f"feedback/{feedback_id}"] = {**s_metrics(own), "n": len(own)}
    return extra
