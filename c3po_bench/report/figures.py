"""The report's charts as Altair specifications: drawn by Vega in the page, and written as SVG and PNG.

Charts carry no colors of their own; the page hands Vega the palette of its light or dark theme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from c3po_bench.analysis.compare import MACRO, headlines, records
from c3po_bench.analysis.roles import role, title
from c3po_bench.analysis.verdict import bracket, summary_rows

alt.data_transformers.disable_max_rows()
WIDE = "width >= 420"  # names would lie over each other on a phone
NAMED = 20
"""Arms up to which the cost chart names each."""
FIT = alt.AutoSizeParams(type="fit-x", contains="padding")
SHAPES = {"method": "circle", "control": "square", "ceiling": "triangle-up"}


@dataclass(frozen=True)
class Figure:
    """A chart with the words that stand for it where it cannot be seen."""

    name: str
    group: str  # the section of the page it belongs to
    title: str
    caption: str
    alt: str
    chart: alt.Chart | alt.LayerChart | alt.FacetChart

    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification."""
        return self.chart.to_dict()


def comparison_figures(rows: pd.DataFrame) -> list[Figure]:
    """Effects with their intervals, and cost against gain, over the rows of `compare`."""
    compared = [_point(row) for row in headlines(records(rows)) if row["difference"] == row["difference"]]
    if not compared:
        return []
    figures = [effects(compared)]
    told = {(r["run_id"], r["task"]) for r in summary_rows(records(rows))}
    summary = [p for p in compared if (p["run_id"], p["task"]) in told]
    if summary and any(p["seconds"] == p["seconds"] for p in summary):
        figures.append(cost(summary))
    return figures


def _point(row: dict[str, Any]) -> dict[str, Any]:
    label = title(row["arm"]) + row["label"][len(row["arm"]) :]
    return {
        "run_id": row["run_id"],
        "arm": label,
        "role": role(row["arm"]),
        "task": row["task"],
        "difference": 100 * row["difference"],
        "low": 100 * row["diff_low"],
        "high": 100 * row["diff_high"],
        "seconds": row["seconds_per_item"],
        "interval": bracket(row["diff_low"], row["diff_high"]),
    }


def effects(points: list[dict[str, Any]]) -> Figure:
    """Differences to base with paired 95% intervals: one line an arm, one mark a task."""
    points = [p for p in points if p["task"] != MACRO] or points
    tasks = list(dict.fromkeys(p["task"] for p in points))
    order = list(dict.fromkeys(p["arm"] for p in points))
    offset = alt.YOffset("task:N", sort=tasks)
    y = alt.Y("arm:N", sort=order, title=None, axis=alt.Axis(domain=False, ticks=False))
    legend = alt.Legend(orient="top") if len(tasks) > 1 else None
    color = alt.Color("task:N", scale=alt.Scale(domain=tasks), title=None, legend=legend)
    shape = alt.Shape("task:N", scale=alt.Scale(domain=tasks), title=None, legend=legend)
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("task:N"),
        alt.Tooltip("difference:Q", format="+.1f", title="points"),
        alt.Tooltip("interval:N", title="95% interval"),
    ]
    x = alt.X("low:Q", title="difference to base, points")
    base = alt.Chart(alt.Data(values=points))
    lines = base.mark_rule(strokeWidth=2).encode(
        x, alt.X2("high:Q"), y, color, yOffset=offset, tooltip=tooltip
    )
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        alt.X("difference:Q"), y, color, shape, yOffset=offset, tooltip=tooltip
    )
    zero = (
        alt.Chart(alt.Data(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[4, 3], opacity=0.7)
        .encode(x=alt.X("zero:Q"))
    )
    chart = alt.layer(zero, lines, marks).properties(
        width="container", height=len(order) * max(26, 15 * len(tasks)), autosize=FIT
    )
    said = "; ".join(
        f"{p['arm']} on {p['task']}: {p['difference']:+.1f} {p['interval']}" for p in points[:40]
    )
    heading = "Difference to base, with paired 95% intervals"
    return Figure("effects", "comparison", heading, heading + ".", f"{heading}. {said}.", chart)


def cost(points: list[dict[str, Any]]) -> Figure:
    """Gain over base against seconds an item: up and to the left is better."""
    present = [r for r in SHAPES if any(p["role"] == r for p in points)]
    shapes = alt.Scale(domain=present, range=[SHAPES[r] for r in present])
    legend = alt.Legend(orient="top")
    shape = alt.Shape("role:N", scale=shapes, title=None, legend=legend)
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("seconds:Q", format=".2~f", title="seconds an item"),
        alt.Tooltip("difference:Q", format="+.1f", title="points"),
        alt.Tooltip("interval:N", title="95% interval"),
    ]
    x = alt.X(
        "seconds:Q", title="seconds an item (log scale)", scale=alt.Scale(type="log", nice=False, padding=48)
    )
    color = alt.Color("role:N", scale=alt.Scale(domain=present), title=None, legend=legend)
    points = [p for p in points if p["seconds"] and p["seconds"] > 0]
    base = alt.Chart(alt.Data(values=_spread(points)))
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        x, alt.Y("low:Q", title="difference to base, points"), alt.Y2("high:Q"), color, tooltip=tooltip
    )
    marks = base.mark_point(filled=True, size=90, opacity=1).encode(
        x, alt.Y("difference:Q"), color, shape, tooltip=tooltip
    )
    layers = [bars, marks]
    if len(points) <= NAMED:
        leaders = base.mark_rule(strokeWidth=0.75).encode(
            x,
            alt.Y("difference:Q"),
            alt.X2("name_x:Q"),
            alt.Y2("name_y:Q"),
            opacity=alt.condition(WIDE, alt.value(0.6), alt.value(0)),
        )
        names = base.mark_text(align="left", dx=2, limit=220).encode(
            alt.X("name_x:Q"),
            alt.Y("name_y:Q"),
            text="arm:N",
            opacity=alt.condition(WIDE, alt.value(1), alt.value(0)),
        )
        layers = [leaders, *layers, names]
    zero = (
        alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeDash=[4, 3], opacity=0.7).encode(y="zero:Q")
    )
    chart = alt.layer(zero, *layers).properties(width="container", height=300, autosize=FIT)
    said = "; ".join(
        f"{p['arm']}: {p['difference']:+.1f} points at {p['seconds']:.2g} s" for p in points[:40]
    )
    heading = "Cost against gain"
    return Figure(
        "cost",
        "cost",
        heading,
        f"{heading}: up and to the left is better.",
        f"{heading}, by arm. {said}.",
        chart,
    )


def _spread(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points with a place for each one's name, `name_x` and `name_y`.

    Beside it, or the nearest that is free.

    Sizes are shares of what the points span: a letter is an eightieth wide, a line a nineteenth high.
    """
    costs = [math.log10(p["seconds"]) for p in points]
    across = max(costs, default=0) - min(costs, default=0) or 1
    line = (
        max((p["high"] for p in points), default=0) - min((p["low"] for p in points), default=0) or 1
    ) / 19
    taken = [
        (x - across / 100, x + across / 100, p["difference"]) for x, p in zip(costs, points, strict=True)
    ]
    found = []
    for x, point in sorted(zip(costs, points, strict=True), key=lambda pair: pair[0]):
        begin, end = x + across / 50, x + across / 50 + min(36, len(point["arm"])) * across / 80
        levels = [point["difference"] + line * (n + 0.4) for n in sorted(range(-NAMED, NAMED), key=abs)]
        free = (
            y
            for y in levels
            if not any(b < end and begin < e and abs(y - other) < line for b, e, other in taken)
        )
        level = next(free, levels[0])
        taken.append((begin, end, level))
        found.append({**point, "name_x": 10**begin, "name_y": level})
    return found
