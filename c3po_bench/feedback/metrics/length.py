"""The kind that bounds the length of an answer on both sides, so that an empty or one-word answer does not win."""

from __future__ import annotations

from typing import Any

from c3po_bench.feedback.metrics.kind import Kind


def _bounds(value: Any) -> dict[str, int]:
    """``{min, max}`` in characters; `min` defaults to a fifth of `max`."""
    if not isinstance(value, dict) or not value or set(value) - {"min", "max"}:
        raise ValueError("needs {min: characters, max: characters}, at least one of them")
    if any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in value.values()):
        raise ValueError("needs whole, non-negative numbers of characters")
    high = value.get("max", 1_000_000)
    low = value.get("min", high // 5 if "max" in value else 0)
    if low > high:
        raise ValueError(f"has min {low} above max {high}")
    return {"min": low, "max": high}


LENGTH = Kind(lambda text, bounds: bounds["min"] <= len(text.strip()) <= bounds["max"], _bounds)
