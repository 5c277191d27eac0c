"""Feedback on the page: which arm follows it, and where it leaks.

A score of 1 is what was asked for in scope, and a leak outside. The chart sets the one against the other,
with lines of equal S_overall, so that what lies higher or further left on them is better, and base, which
does nothing, lies at 0.5.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from c3po_bench.analysis.arms import BASE, display_name, settings_text
from c3po_bench.analysis.frames import known, note, records
from c3po_bench.analysis.overall import NONE_JUDGED
from c3po_bench.analysis.verdict import amount, p_text
from c3po_bench.report.marks import (
    FIT,
    NAMED,
    Figure,
    chart_of,
    key_of,
    long_names,
    named,
    placed,
    role_of,
    role_scales,
    room,
    tall,
)
from c3po_bench.report.tables import Cell, Column, Row, columns_named

TITLES = {
    "s_overall": "S overall",
    "follows": "Follows",
    "leaks_near": "Leaks near",
    "leaks_out": "Leaks out",
    "drift": "Drift",
    "repetition": "Repetition",
    "broken_ending": "Broken endings",
    "length_ratio": "Length ratio",
    "similarity": "Similarity",
}
OPTIONAL = ("repetition", "broken_ending", "length_ratio", "similarity")
LINES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Values of S_overall whose lines the chart has."""


def columns(arms: pd.DataFrame) -> list[Column]:
    """The columns of the table of feedback arms."""
    to: str = next((row["to"] for row in records(arms) if note(row, "to")), "")
    names = [title for name, title in TITLES.items() if name not in OPTIONAL]
    made = columns_named(
        ["Arm"], [*names[:1], f"To {to}" if 0 < len(to) < 24 else "To the best", *names[1:], "s/item"]
    )
    return made + [Column(TITLES[name], optional=True) for name in OPTIONAL]


def rows(arms: pd.DataFrame, seconds: dict[str, float]) -> list[Row]:
    """The rows of `overall.arms_frame`; `seconds` an item by run id."""
    made = []
    for row in records(arms):
        texts = [settings_text(row).strip().removeprefix("(").removesuffix(")"), note(row, "outdated")]
        cells = [Cell(row["title"], row["label"], ", ".join(filter(None, texts)))]
        own = {name: _measure(row, name) for name in TITLES}
        spent: Any = seconds.get(row["run_id"])
        cost = Cell(amount(spent), spent) if known(spent) else Cell("")
        main = [own[name] for name in TITLES if name not in OPTIONAL]
        cells += [main[0], _gap(row), *main[1:], cost, *(own[name] for name in OPTIONAL)]
        made.append(Row("", row["role"], cells))
    return made


def _measure(row: dict[str, Any], name: str) -> Cell:
    found: Any = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    value, low, high = found
    if not known(value):
        return Cell(NONE_JUDGED if row.get(f"{name}_count") == NONE_JUDGED else "")
    share = name in ("follows", "leaks_near", "leaks_out")
    digits = 3 if name == "drift" else 2
    text = f"{100 * value:.0f}%" if share else f"{value:.{digits}f}"
    interval = ""
    if known(low) and low != high:
        interval = (
            f"[{100 * low:.0f}, {100 * high:.0f}]" if share else f"[{low:.{digits}f}, {high:.{digits}f}]"
        )
    sign = 0 if note(row, "outdated") else row.get(f"{name}_sign") or 0
    tone = ""
    if name.startswith("leaks"):  # a leak is never good news; count it, too
        tone = "down" if sign > 0 else ""
        interval = ", ".join(filter(None, [interval, note(row, f"{name}_count")]))
    elif name in ("follows", "s_overall"):
        tone = {1: "up", -1: "down"}.get(int(sign), "")
    return Cell(text, value, interval, tone)


def _gap(row: dict[str, Any]) -> Cell:
    if not known(row["gap"]) or row["gap"] == 0 and not known(row["gap_p"]):
        return Cell("")
    interval = f"[{row['gap_low']:.2f}, {row['gap_high']:.2f}]" if known(row["gap_low"]) else ""
    p = f", p {p_text(row['gap_p_holm'])}" if known(row["gap_p_holm"]) else ""
    return Cell(f"{row['gap']:+.2f}", row["gap"], interval + p)


def figures(arms: pd.DataFrame) -> list[Figure]:
    """Follows against leaks of each arm with all three scopes, in a plane of S_overall."""
    points = _points(arms)
    if all(point["role"] == BASE for point in points):
        return []
    bottom = min(0.0, *(p["low"] for p in points))
    right = min(1.0, max(0.5, *(p["right"] + 0.05 for p in points)))
    few, height = len(points) <= NAMED, tall(points, 380)
    beyond = f"{right} * width / (width - {room(points)})" if few else f"{right}"
    x = alt.X(
        "leaks:Q",
        title="leaks, mean of near and out of scope (0: none)",
        scale=alt.Scale(domainMin=0, domainMax=alt.ExprRef(beyond), nice=False),
        axis=alt.Axis(format="%", values=[tenth / 10 for tenth in range(0, int(10 * right) + 1, 2)]),
    )
    y = alt.Y(
        "follows:Q",
        title="follows in scope (0: as base)",
        scale=alt.Scale(domain=[bottom, 1.02], nice=False),
        axis=alt.Axis(format="%", tickCount=6),
    )
    spots = placed(points, "leaks", "follows", (bottom, 1.02), height) if few else points
    base = chart_of(spots)
    color, shape = role_scales(points)
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("overall:Q", format=".2f", title="S overall"),
        alt.Tooltip("follows:Q", format=".0%"),
        alt.Tooltip("leaks:Q", format=".0%"),
    ]
    upright = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        x, alt.Y("low:Q"), alt.Y2("high:Q"), color, tooltip=tooltip
    )
    across = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        alt.X("left:Q"), y, alt.X2("right:Q"), color, tooltip=tooltip
    )
    marks = base.mark_point(filled=True, size=100, opacity=1).encode(x, y, color, shape, tooltip=tooltip)
    layers = [across, upright, marks]
    if few:
        layers = named(x, y, layers, spots, color)
    chart = alt.layer(*_lines(bottom, right, x, y), *layers).properties(
        width="container", height=height, autosize=FIT
    )
    heading = "Follows against leaks"
    caption = (
        f"{heading}: up and to the left is better. All points of a dashed line have the same S overall, which is written at "
        "it; base has 0.5. Bars are 95% intervals, across those of the mean of near and out of scope."
    )
    listed = [
        f"{p['arm']}: S overall {p['overall']:.2f}, follows {p['follows']:.0%}, leaks {p['leaks']:.0%}"
        for p in points
    ]
    words = f"{heading}, by arm. {'; '.join(listed)}."
    numbered = few and long_names(points)
    return [
        Figure("feedback", "feedback", heading, caption, words, chart, key_of(spots) if few else (), numbered)
    ]


def _points(arms: pd.DataFrame) -> list[dict[str, Any]]:
    """The arms that are drawn: those with all three scopes, recorded with today's version."""
    return [
        {
            "arm": display_name(row),
            "role": role_of(row),
            "follows": row["follows"],
            "low": row["follows_low"] if known(row["follows_low"]) else row["follows"],
            "high": row["follows_high"] if known(row["follows_high"]) else row["follows"],
            "leaks": (row["leaks_near"] + row["leaks_out"]) / 2,
            "left": max(0.0, _mean(row, "low")),
            "right": _mean(row, "high"),
            "overall": row["s_overall"],
        }
        for row in records(arms)
        if known(row["s_overall"]) and not note(row, "outdated")
    ]


def _mean(row: dict[str, Any], end: str) -> float:
    """A bound of the mean of both leaks that holds however they depend on each other: the mean of their bounds."""
    bounds = [row[f"{name}_{end}"] for name in ("leaks_near", "leaks_out")]
    values = [row[name] for name in ("leaks_near", "leaks_out")]
    return sum(b if known(b) else v for b, v in zip(bounds, values, strict=True)) / 2


def _lines(bottom: float, right: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The lines of equal S_overall within the plane: S_in = 2 S_overall - 1 + leaks."""
    ends = []
    for overall in LINES:
        begin = max(0.0, bottom - (2 * overall - 1))
        end = min(right, 2 - 2 * overall)
        if begin < end:
            height = 2 * overall - 1
            line = {"leaks": begin, "follows": height + begin, "end": end, "top": height + end}
            ends.append(line | {"name": f"S {overall:g}"})
    lines = (
        chart_of(ends)
        .mark_rule(strokeDash=[3, 4], opacity=0.45)
        .encode(x, y, alt.X2("end:Q"), alt.Y2("top:Q"))
    )
    names = chart_of(ends).mark_text(align="right", dx=-2, dy=9, opacity=0.75, fontSize=11)
    return [lines, names.encode(alt.X("end:Q"), alt.Y("top:Q"), text="name:N")]
