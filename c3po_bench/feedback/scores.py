"""S_in, S_near, S_out, S_overall and what stands beside them (RLVF, section 5), from the sample rows of one arm."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

MEASURES = ("drift", "similarity", "repetition", "broken_ending", "tokens", "length_ratio")


def measure(row: dict[str, Any], name: str) -> float | None:
    """A measure of a row, wherever it lives."""
    value = row.get(name, (row.get("degeneration") or {}).get(name))
    return None if value is None else float(value)


def s_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The S metrics of the rows of one or more pieces: the mean over prompts, then over pieces.

    S_in is the mean signed score in scope, S_near and S_out the mean absolute score there, and
    S_overall = (S_in + 1 - (S_near + S_out) / 2) / 2. A metric without rows is left out.
    """
    found: dict[str, float] = {}
    for scope in ("in", "near", "out"):
        by_piece: dict[str, list[float]] = {}
        for row in rows:
            if row.get("scope") == scope and row.get("score") is not None:
                value = row["score"] if scope == "in" else abs(row["score"])
                by_piece.setdefault(row["feedback_id"], []).append(value)
        if by_piece:
            found[f"S_{scope}"] = fmean(fmean(values) for values in by_piece.values())
    if len(found) == 3:
        found["S_overall"] = (found["S_in"] + 1 - (found["S_near"] + found["S_out"]) / 2) / 2
    return found


def extra_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By task the mean measures; under ``feedback`` and ``feedback/PIECE`` the S metrics."""
    extra: dict[str, dict[str, float]] = {}
    tuned = [row for row in rows if "feedback_id" in row]
    for task in dict.fromkeys(row["task"] for row in tuned):
        values = {name: [measure(r, name) for r in tuned if r["task"] == task] for name in MEASURES}
        known = {name: [v for v in found if v is not None] for name, found in values.items()}
        extra[task] = {name: fmean(found) for name, found in known.items() if found}
    if tuned:
        extra["feedback"] = {**s_metrics(tuned), "n": len(tuned)}
    for piece in dict.fromkeys(row["feedback_id"] for row in tuned):
        own = [row for row in tuned if row["feedback_id"] == piece]
        extra[f"feedback/{piece}"] = {**s_metrics(own), "n": len(own)}
    return extra
