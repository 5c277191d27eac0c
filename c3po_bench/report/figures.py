"""The report's charts as Altair specifications: drawn by Vega in the page, and written as SVG and PNG.

Charts carry no colors of their own; the page hands Vega the palette of its light or dark theme.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product
from operator import itemgetter
from typing import Any, Literal

import altair as alt
import pandas as pd
from more_itertools import map_reduce

from c3po_bench.analysis.ablation import axes, by_value, leading_number, shown
from c3po_bench.analysis.arms import BASE, METHODS, display_name
from c3po_bench.analysis.frames import MACRO, headlines, known, records
from c3po_bench.analysis.verdict import bracket, summary_rows

alt.data_transformers.disable_max_rows()
WIDE = "width >= 420"  # names would lie over each other on a phone
NAMED = 20
"""Arms up to which the cost chart names each."""
FIT = alt.AutoSizeParams(type="fit-x", contains="padding")
SHAPES = {"method": "circle", "control": "square", "ceiling": "triangle-up", "repeat": "cross"}
MOST_MAPS = 20


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
    compared = [_point(row) for row in headlines(records(rows)) if known(row["difference"])]
    if not compared:
        return []
    figures = [effects(compared)]
    summaries = {(row["run_id"], row["task"]) for row in summary_rows(records(rows))}
    summary = [p for p in compared if (p["run_id"], p["task"]) in summaries]
    if any(known(p["seconds"]) for p in summary):
        figures.append(cost(summary))
    return figures


def _point(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": row["run_id"],
        "arm": display_name(row),
        "role": "method" if row["role"] in METHODS else row["role"],
        "task": row["task"],
        "difference": 100 * row["difference"],
        "low": 100 * row["diff_low"] if known(row["diff_low"]) else None,
        "high": 100 * row["diff_high"] if known(row["diff_high"]) else None,
        "seconds": row["seconds_per_item"],
        "interval": bracket(row["diff_low"], row["diff_high"]),
    }


def _chart(values: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.Data(values=values))


def _zero(axis: Literal["x", "y"]) -> alt.Chart:
    """The line of no difference."""
    return _chart([{"zero": 0}]).mark_rule(strokeDash=[4, 3], opacity=0.7).encode(**{axis: "zero:Q"})


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
    base = _chart(points)
    lines = base.mark_rule(strokeWidth=2).encode(
        x, alt.X2("high:Q"), y, color, yOffset=offset, tooltip=tooltip
    )
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        alt.X("difference:Q"), y, color, shape, yOffset=offset, tooltip=tooltip
    )
    chart = alt.layer(_zero("x"), lines, marks).properties(
        width="container", height=len(order) * max(26, 15 * len(tasks)), autosize=FIT
    )
    heading = "Difference to base, with paired 95% intervals"
    listed = [f"{p['arm']} on {p['task']}: {p['difference']:+.1f} {p['interval']}" for p in points[:40]]
    return Figure("effects", "comparison", heading, heading + ".", f"{heading}. {'; '.join(listed)}.", chart)


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
        "seconds:Q",
        title="seconds an item (log scale)",
        scale=alt.Scale(type="log", nice=False, padding=48),
    )
    color = alt.Color("role:N", scale=alt.Scale(domain=present), title=None, legend=legend)
    points = [p for p in points if p["seconds"] and p["seconds"] > 0]
    base = _chart(_spread(points))
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        x, alt.Y("low:Q", title="difference to base, points"), alt.Y2("high:Q"), color, tooltip=tooltip
    )
    marks = base.mark_point(filled=True, size=90, opacity=1).encode(
        x, alt.Y("difference:Q"), color, shape, tooltip=tooltip
    )
    layers = [bars, marks]
    if len(points) <= NAMED:
        visible, faint = (alt.condition(WIDE, alt.value(v), alt.value(0)) for v in (1, 0.6))
        leaders = base.mark_rule(strokeWidth=0.75).encode(
            x, alt.Y("difference:Q"), alt.X2("name_x:Q"), alt.Y2("name_y:Q"), opacity=faint
        )
        names = base.mark_text(align="left", dx=2, limit=220).encode(
            alt.X("name_x:Q"), alt.Y("name_y:Q"), text="arm:N", opacity=visible
        )
        layers = [leaders, *layers, names]
    chart = alt.layer(_zero("y"), *layers).properties(width="container", height=300, autosize=FIT)
    heading = "Cost against gain"
    caption = f"{heading}: up and to the left is better."
    listed = [f"{p['arm']}: {p['difference']:+.1f} points at {p['seconds']:.2g} s" for p in points[:40]]
    return Figure("cost", "cost", heading, caption, f"{heading}, by arm. {'; '.join(listed)}.", chart)


def _spread(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points with a place for their names, `name_x` and `name_y`: beside each, or the nearest free one.

    Sizes are shares of what the points span: a letter is an eightieth wide, a line a nineteenth high.
    """
    costs = [math.log10(p["seconds"]) for p in points]
    across = max(costs, default=0) - min(costs, default=0) or 1
    highest, lowest = max((p["high"] for p in points), default=0), min((p["low"] for p in points), default=0)
    line = (highest - lowest or 1) / 19
    by_cost = sorted(zip(costs, points, strict=True), key=lambda pair: pair[0])
    taken = [(x - across / 100, x + across / 100, p["difference"]) for x, p in by_cost]
    placed = []
    for x, point in by_cost:
        begin, end = x + across / 50, x + across / 50 + min(36, len(point["arm"])) * across / 80
        levels = [point["difference"] + line * (n + 0.4) for n in sorted(range(-NAMED, NAMED), key=abs)]
        free = (
            y
            for y in levels
            if not any(b < end and begin < e and abs(y - other) < line for b, e, other in taken)
        )
        level = next(free, levels[0])
        taken.append((begin, end, level))
        placed.append({**point, "name_x": 10**begin, "name_y": level})
    return placed


def ablation_figures(table: pd.DataFrame) -> list[Figure]:
    """Differences to base over the settings that the sweep in `table` varies.

    There is a heat map for each method and pair of settings, and a curve for each setting. Of each run the
    row is drawn that speaks for it (see `summary_rows`).
    """
    names = axes(table)
    rows = [r for r in shown(table, names) if r["metric"] == "acc" and r["arm"] != BASE]
    cells = summary_rows([row for row in rows if row["status"] == "done"])
    drawn = {(row["arm"], row["model"], row["task"]) for row in cells}
    cells += [
        row for row in rows if row["status"] == "missing" and (row["arm"], row["model"], row["task"]) in drawn
    ]
    return [*_heat_maps(cells, names), *filter(None, (curve(cells, name) for name in names))]


def _ordered(values: Iterable[object]) -> list[str]:
    """Distinct settings as text, by the size they name, then by name."""

    def key(text: str) -> tuple[float, str]:
        size = leading_number(text)
        return (math.inf if size != size else size, text)

    return sorted(set(map(str, values)), key=key)


def _slug(*parts: str) -> str:
    """A figure's name, which is also its file's: a plugin's settings may be called anything."""
    return re.sub(r"[^\w-]+", "_", "_".join(parts))


def _heat_maps(cells: list[dict[str, Any]], names: list[str]) -> list[Figure]:
    """A map for each pair of settings and method that varies both, neither as a function of the other."""
    methods = map_reduce((cell for cell in cells if cell["role"] in METHODS), itemgetter("arm"))
    maps: list[tuple[list[dict[str, Any]], str, str, bool]] = []
    for row, column in combinations(names, 2):
        spanning = [own for own in methods.values() if _spans(own, row, column)]
        maps += [(own, row, column, len(spanning) > 1) for own in spanning]
    return [heat_map(own, row, column, several=several) for own, row, column, several in maps[:MOST_MAPS]]


def _spans(cells: list[dict[str, Any]], row: str, column: str) -> bool:
    varied = all(len({cell[name] for cell in cells if known(cell[name])}) > 1 for name in (row, column))
    return varied and not (by_value(cells, row, column) or by_value(cells, column, row))


def _has_gain(cell: dict[str, Any]) -> bool:
    return cell["status"] == "done" and known(cell["difference"])


def _averaged(cells: list[dict[str, Any]]) -> str:
    return "the other settings" + (" and the tasks" if len({cell["task"] for cell in cells}) > 1 else "")


def heat_map(cells: list[dict[str, Any]], row: str, column: str, *, several: bool = False) -> Figure:
    """Mean difference of one arm to base by two settings, averaged over the others; gaps are crossed.

    Where `several` arms have such a map, the figure's name and title say which this is.
    """
    arm, title = cells[0]["arm"], cells[0]["title"]
    groups = map_reduce(cells, lambda cell: (str(cell[row]), str(cell[column])))
    rows, columns = _ordered(r for r, _ in groups), _ordered(c for _, c in groups)
    values = []
    for r, c in product(rows, columns):
        gains = [100 * cell["difference"] for cell in groups.get((r, c), []) if _has_gain(cell)]
        mean = sum(gains) / len(gains) if gains else None
        text = "×" if mean is None else f"{mean:+.1f}"
        values.append({"row": r, "column": c, "difference": mean, "text": text, "cells": len(gains)})
    filled = [v for v in values if v["difference"] is not None]
    largest = max((abs(v["difference"]) for v in filled), default=0.0) or 1.0
    tooltip = [
        alt.Tooltip("row:N", title=row),
        alt.Tooltip("column:N", title=column),
        alt.Tooltip("difference:Q", format="+.2f", title="points, mean"),
        alt.Tooltip("cells:Q", title="cells averaged"),
    ]
    base = _chart(values).encode(
        alt.X("column:N", sort=columns, title=column, axis=alt.Axis(labelAngle=0, labelLimit=90)),
        alt.Y("row:N", sort=rows, title=row, axis=alt.Axis(labelLimit=120)),
        tooltip=tooltip,
    )
    fill = alt.Color(
        "difference:Q",
        scale=alt.Scale(domain=[-largest, largest], domainMid=0),
        title="points",
        legend=alt.Legend(orient="right", gradientLength=120),
    )
    boxes = base.transform_filter("datum.difference !== null").mark_rect(cornerRadius=3).encode(fill)
    texts = base.mark_text(fontSize=12).encode(text="text:N")
    chart = alt.layer(boxes, texts).properties(width="container", height=34 * len(rows), autosize=FIT)
    caption = (
        f"Difference of {title} to base by {row} and {column}, in points, averaged over {_averaged(cells)}."
    )
    if filled:
        best = max(filled, key=lambda v: v["difference"])
        caption += f" Largest mean {best['text']} at {row} {best['row']}, {column} {best['column']}."
    if gaps := len(values) - len(filled):
        caption += f" {gaps} combinations have no finished run (×)."
    name = _slug("heat", row, column, arm) if several else _slug("heat", row, column)
    heading = f"{row} × {column}" + (f", {title}" if several else "")
    return Figure(name, "heat map", heading, caption, caption, chart)


def curve(cells: list[dict[str, Any]], name: str) -> Figure | None:
    """Difference to base over one setting, by arm: the mean over the others, and the range of cells."""
    drawn = (cell for cell in cells if _has_gain(cell) and known(cell[name]))
    groups = map_reduce(drawn, lambda cell: (cell["title"], str(cell[name])))
    values = []
    for (arm, setting), group in groups.items():
        gains = [100 * cell["difference"] for cell in group]
        low, high = min(gains), max(gains)
        if len(group) == 1:
            low, high = 100 * group[0]["diff_low"], 100 * group[0]["diff_high"]
        value = {"arm": arm, "setting": setting, "difference": sum(gains) / len(gains)}
        values.append(value | {"low": low, "high": high, "cells": len(group)})
    order = _ordered(v["setting"] for v in values)
    if len(order) < 2:
        return None
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("setting:N", title=name),
        alt.Tooltip("difference:Q", format="+.2f", title="points, mean"),
        alt.Tooltip("low:Q", format="+.2f"),
        alt.Tooltip("high:Q", format="+.2f"),
        alt.Tooltip("cells:Q"),
    ]
    legend = alt.Legend(orient="top") if len({v["arm"] for v in values}) > 1 else None
    color = alt.Color("arm:N", title=None, legend=legend)
    base = _chart(values).encode(alt.X("setting:N", sort=order, title=name, axis=alt.Axis(labelAngle=0)))
    y = alt.Y("low:Q", title="difference to base, points")
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(y, alt.Y2("high:Q"), color, tooltip=tooltip)
    line = base.mark_line(point=alt.OverlayMarkDef(size=60, filled=True)).encode(
        alt.Y("difference:Q"), color, tooltip=tooltip
    )
    chart = alt.layer(_zero("y"), bars, line).properties(width="container", height=260, autosize=FIT)
    several = any(v["cells"] > 1 for v in values)
    span = f"the range over {_averaged(cells)}" if several else "the paired 95% interval"
    listed = "; ".join(f"{v['arm']} at {v['setting']}: {v['difference']:+.1f}" for v in values[:30])
    caption = f"Difference to base over {name}; bars are {span}."
    return Figure(_slug("curve", name), "curve", name, caption, f"{caption} {listed}.", chart)
