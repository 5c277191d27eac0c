"""The feedback triangle.

How far an arm follows a feedback in, near and out of its scope, as one small drawing each.

A corner is good when reached: in scope the answer follows the feedback, near and out of scope it does not
change. Scores are shares of items; what the corners near and out show is one minus the size of the score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from c3po_bench.analysis.compare import records
from c3po_bench.analysis.roles import title

CORNERS = {
    "in": (-90.0, "in scope: follows"),
    "near": (150.0, "near: unchanged"),
    "out": (30.0, "out: unchanged"),
}
SIZE, RADIUS = 200.0, 70.0
CENTRE = (SIZE / 2, SIZE / 2 + 12)


@dataclass(frozen=True)
class Triangle:
    """One arm's drawing: SVG coordinates of its polygon, its rows, and the words that stand for it."""

    arm: str
    polygon: str
    values: dict[str, float]
    rows: list[dict[str, Any]]
    alt: str


def triangles(compared: pd.DataFrame) -> list[Triangle]:
    """A triangle for every run that has all three scopes."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in records(compared):
        if row["scope"] in CORNERS:
            runs.setdefault(row["run_id"], []).append(row)
    return [_triangle(rows) for rows in runs.values() if {row["scope"] for row in rows} == CORNERS.keys()]


def _triangle(rows: list[dict[str, Any]]) -> Triangle:
    scores = {scope: [r["accuracy"] for r in rows if r["scope"] == scope] for scope in CORNERS}
    mean = {scope: sum(found) / len(found) for scope, found in scores.items()}
    reached = {scope: value if scope == "in" else 1 - abs(value) for scope, value in mean.items()}
    name = title(rows[0]["arm"]) + rows[0]["label"][len(rows[0]["arm"]) :]
    said = f"{name}: follows {mean['in']:.0%} in scope, {mean['near']:.0%} near scope, {mean['out']:.0%} out of scope"
    return Triangle(name, outline(reached), mean, rows, said)


def corner(scope: str, share: float = 1.0) -> tuple[float, float]:
    """Where `share` of the way from the centre to the corner of `scope` lies, in SVG units."""
    angle = math.radians(CORNERS[scope][0])
    share = min(1.0, max(0.0, share))
    return CENTRE[0] + RADIUS * share * math.cos(angle), CENTRE[1] + RADIUS * share * math.sin(angle)


def outline(shares: dict[str, float]) -> str:
    """The points attribute of a polygon that reaches `shares` of the way to each corner."""
    return " ".join("{:.1f},{:.1f}".format(*corner(scope, shares[scope])) for scope in CORNERS)
