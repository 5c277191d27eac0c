"""The report's charts as Altair specifications: drawn by Vega in the page, and written as SVG and PNG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product
from operator import itemgetter
from typing import Any

import altair as alt
import pandas as pd
from more_itertools import map_reduce

from c3po_bench.analysis.ablation import axes, by_value, leading_number, shown
from c3po_bench.analysis.arms import BASE, METHODS, display_name
from c3po_bench.analysis.frames import MACRO, headlines, known, records
from c3po_bench.analysis.verdict import bracket, summary_rows
from c3po_bench.report.marks import (
    BARS,
    FIT,
    NAMED,
    WIDE,
    Figure,
    chart_of,
    key_of,
    long_names,
    named,
    names_start,
    placed,
    role_of,
    role_scales,
    room,
    tall,
    zero,
)

MOST_MAPS = 20
MOST_LINES = 60
"""Lines of the chart of differences; of more, only those over all items are drawn."""
MOST_SETTINGS = 60
"""Values of a setting that are drawn side by side: of more, numbers lie on a scale, and others stand in the table alone."""
HEADING = "\u2063"  # before a line of that chart that names the task of those below it; not seen


def comparison_figures(rows: pd.DataFrame, to: str = "base") -> list[Figure]:
    """Effects with their intervals, and cost against gain, over the rows of `compare` that are no feedback's.

    `to` is what the differences are to.
    """
    summaries = {(row["run_id"], row["task"]) for row in summary_rows(records(rows))}
    compared = [
        _point(row) | {"speaks": (row["run_id"], row["task"]) in summaries}
        for row in headlines(records(rows))
        if known(row["difference"]) and not row["scope"]
    ]
    if not compared:
        return []
    figures = [effects(compared, to)]
    summary = [p for p in compared if p["speaks"] and known(p["seconds"]) and p["seconds"] > 0]
    if summary:
        figures.append(cost(summary, to))
    return figures


def _point(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": row["run_id"],
        "arm": display_name(row),
        "role": role_of(row),
        "task": row["task"],
        "difference": 100 * row["difference"],
        "low": 100 * row["diff_low"] if known(row["diff_low"]) else None,
        "high": 100 * row["diff_high"] if known(row["diff_high"]) else None,
        "seconds": row["seconds_per_item"],
        "interval": bracket(row["diff_low"], row["diff_high"]),
    }


def effects(points: list[dict[str, Any]], to: str = "base") -> Figure:
    """Differences with paired 95% intervals: a line an arm, under its task where there are several."""
    points = [p for p in points if p["task"] != MACRO] or points
    every = len(points)
    if every > MOST_LINES:
        speaking = [p for p in points if p["speaks"]]
        points = (speaking or points)[:MOST_LINES]
    tasks = list(dict.fromkeys(p["task"] for p in points))
    order: list[str] = []
    lines = []
    for task in tasks:
        order += [HEADING + task] * (len(tasks) > 1)
        for point in (p for p in points if p["task"] == task):
            name = point["arm"] + HEADING + str(tasks.index(task)) * (len(tasks) > 1)
            order.append(name)
            lines.append(point | {"line": name})
    whole = f"(split(datum.label, '{HEADING}')[0] || split(datum.label, '{HEADING}')[1])"
    broken = f"split(replace({whole}, regexp('^(.{{5,17}}) (.*)$'), '$1\\n$2'), '\\n')"
    shown_name = f"{WIDE} || length({whole}) < 18 ? {whole} : {broken}"  # on a phone in two lines
    bold: Any = {
        "condition": {"test": f"datum.value[0] == '{HEADING}'", "value": "bold"},
        "value": "normal",
    }
    axis = alt.Axis(domain=False, ticks=False, labelExpr=shown_name, labelFontWeight=bold)
    y = alt.Y("line:N", scale=alt.Scale(domain=order), title=None, axis=axis)
    color, shape = role_scales(lines)
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("task:N"),
        alt.Tooltip("difference:Q", format="+.1f", title="points"),
        alt.Tooltip("interval:N", title="95% interval"),
    ]
    x = alt.X("low:Q", title=f"difference to {to}, points")
    base = chart_of(lines)
    bars = base.mark_rule(strokeWidth=2).encode(x, alt.X2("high:Q"), y, color, tooltip=tooltip)
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        alt.X("difference:Q"), y, color, shape, tooltip=tooltip
    )
    chart = alt.layer(zero("x"), bars, marks).properties(
        width="container", height=len(order) * 26, autosize=FIT
    )
    heading = f"Difference to {to}, item by item"
    caption = f"{heading}. {BARS}"
    if len(points) < every:
        caption += f" {every - len(points)} lines more are in the table."
    listed = [f"{p['arm']} on {p['task']}: {p['difference']:+.1f} {p['interval']}" for p in points[:40]]
    return Figure("effects", "comparison", heading, caption, f"{heading}. {'; '.join(listed)}.", chart)


def cost(points: list[dict[str, Any]], to: str = "base") -> Figure:
    """Gain against seconds an item: up and to the left is better."""
    points = [p for p in points if p["seconds"] and p["seconds"] > 0]
    color, shape = role_scales(points)
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("seconds:Q", format=".2~f", title="seconds an item"),
        alt.Tooltip("difference:Q", format="+.1f", title="points"),
        alt.Tooltip("interval:N", title="95% interval"),
    ]
    few = len(points) <= NAMED
    ends = [p[end] for p in points for end in ("low", "difference", "high") if p[end] is not None] + [0.0]
    margin = (max(ends) - min(ends) or 1) / 20
    span, height = (min(ends) - margin, max(ends) + margin), tall(points, 300)
    spots = placed(points, "seconds", "difference", span, height) if few else points
    seconds = [p["seconds"] for p in points]
    low, high = math.log10(min(seconds)) - 0.08, math.log10(max(seconds)) + 0.08
    beyond = f"{high - low} * {room(points)} / (width - {room(points)})" if few else "0"
    scale = alt.Scale(
        type="log", nice=False, domainMin=10**low, domainMax=alt.ExprRef(f"pow(10, {high} + {beyond})")
    )
    axis = alt.Axis(values=_round_between(10**low, 10**high), format="~g")
    x = alt.X("seconds:Q", title="seconds an item (log scale)", scale=scale, axis=axis)
    title = f"difference to {to}, points"
    y = alt.Y("difference:Q", title=title, scale=alt.Scale(domain=span, nice=False))
    base = chart_of(spots)
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        x, alt.Y("low:Q", title=title), alt.Y2("high:Q"), color, tooltip=tooltip
    )
    marks = base.mark_point(filled=True, size=90, opacity=1).encode(x, y, color, shape, tooltip=tooltip)
    layers = named(x, y, [bars, marks], spots, color) if few else [bars, marks]
    chart = alt.layer(zero("y", names_start(points) if few else ""), *layers).properties(
        width="container", height=height, autosize=FIT
    )
    heading = "Cost against gain"
    caption = f"{heading}: up and to the left is better. {BARS}"
    listed = [f"{p['arm']}: {p['difference']:+.1f} points at {p['seconds']:.2g} s" for p in points[:40]]
    words = f"{heading}, by arm. {'; '.join(listed)}."
    numbered = few and long_names(points)
    return Figure("cost", "cost", heading, caption, words, chart, key_of(spots) if few else (), numbered)


def _round_between(low: float, high: float) -> list[float]:
    """Round numbers in between for a logarithmic axis: 1, 2 and 5 in each decade, or all digits where two lack."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), range(1, 10), range(10, 100)):
        found = [digit * 10.0 ** (decade - (digit > 9)) for decade in decades for digit in digits]
        found = [round(number, 10) for number in found if low <= number <= high]
        if len(found) > 1:
            break
    return found


@dataclass(frozen=True)
class Quantity:
    """What is drawn over settings: its columns, what it is multiplied by, the value of no effect, digits and words."""

    columns: tuple[str, str, str]
    scale: float
    none: float
    form: str
    title: str
    words: str

    def of(self, cells: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
        """Value and bounds of each finished cell that has them."""
        found: Any = [[cell.get(name) for name in self.columns] for cell in cells if cell["status"] == "done"]
        return [
            (v * self.scale, (a if known(a) else v) * self.scale, (b if known(b) else v) * self.scale)
            for v, a, b in found
            if known(v)
        ]


GAIN = Quantity(
    ("difference", "diff_low", "diff_high"),
    100,
    0.0,
    "+.1f",
    "difference to base, points",
    "Difference to base",
)
OVERALL = Quantity(
    ("s_overall", "s_overall_low", "s_overall_high"), 1, 0.5, ".2f", "S_overall (0.5: as base)", "S_overall"
)


def ablation_figures(table: pd.DataFrame, feedback: pd.DataFrame | None = None) -> list[Figure]:
    """Differences to base over the settings that the sweep in `table` varies; of feedback S_overall.

    There is a heat map for each method and pair of settings, and a curve for each setting. Of each run the
    row is drawn that speaks for it (see `summary_rows`); of those in `feedback` (`arms_frame`) S_overall.
    """
    names = axes(table)
    rows = [r for r in shown(table, names) if r["metric"] == "acc" and r["arm"] != BASE]
    cells = summary_rows([row for row in rows if row["status"] == "done"])
    drawn = {(row["arm"], row["model"], row["task"]) for row in cells}
    cells += [
        row for row in rows if row["status"] == "missing" and (row["arm"], row["model"], row["task"]) in drawn
    ]
    found: list[Figure | None] = [*_heat_maps(cells, names), *(curve(cells, name) for name in names)]
    if feedback is not None and len(feedback) and not any(found):
        own = {row["run_id"]: row for row in records(feedback) if row["arm"] != BASE}
        ours = {row["run_id"]: row | own[row["run_id"]] for row in rows if row["run_id"] in own}
        cells = [row | {"task": "feedback"} for row in ours.values()]
        found = [*_heat_maps(cells, names, OVERALL), *(curve(cells, name, OVERALL) for name in names)]
    return [figure for figure in found if figure]


def _ordered(values: Iterable[object]) -> list[str]:
    """Distinct settings as text, by the size they name, then by name."""

    def key(text: str) -> tuple[float, str]:
        size = leading_number(text)
        return (math.inf if size != size else size, text)

    return sorted(set(map(str, values)), key=key)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _slug(*parts: str) -> str:
    """A figure's name, which is also its file's: a plugin's settings may be called anything."""
    return re.sub(r"[^\w-]+", "_", "_".join(parts))


def _heat_maps(cells: list[dict[str, Any]], names: list[str], of: Quantity = GAIN) -> list[Figure]:
    """A map for each pair of settings and method that varies both, neither as a function of the other."""
    methods = map_reduce((cell for cell in cells if cell["role"] in METHODS), itemgetter("arm"))
    maps: list[tuple[list[dict[str, Any]], str, str, bool]] = []
    for row, column in combinations(names, 2):
        spanning = [own for own in methods.values() if _spans(own, row, column)]
        maps += [(own, row, column, len(spanning) > 1) for own in spanning]
    return [heat_map(own, r, c, several=several, of=of) for own, r, c, several in maps[:MOST_MAPS]]


def _spans(cells: list[dict[str, Any]], row: str, column: str) -> bool:
    counts = [len({str(cell[name]) for cell in cells if known(cell[name])}) for name in (row, column)]
    varied = all(1 < count <= MOST_SETTINGS for count in counts)
    return varied and not (by_value(cells, row, column) or by_value(cells, column, row))


def _averaged(cells: list[dict[str, Any]]) -> str:
    return "the other settings" + (" and the tasks" if len({cell["task"] for cell in cells}) > 1 else "")


def heat_map(
    cells: list[dict[str, Any]], row: str, column: str, *, several: bool = False, of: Quantity = GAIN
) -> Figure:
    """Mean of a quantity of one arm by two settings, averaged over the others; gaps are crossed.

    Where `several` arms have such a map, the figure's name and title say which this is.
    """
    arm, title = cells[0]["arm"], cells[0]["title"]
    groups = map_reduce(cells, lambda cell: (str(cell[row]), str(cell[column])))
    rows, columns = _ordered(r for r, _ in groups), _ordered(c for _, c in groups)
    values = []
    for r, c in product(rows, columns):
        found = [value for value, *_ in of.of(groups.get((r, c), []))]
        mean = sum(found) / len(found) if found else None
        text = "×" if mean is None else format(mean, of.form)
        values.append({"row": r, "column": c, "difference": mean, "text": text, "cells": len(found)})
    filled = [v for v in values if v["difference"] is not None]
    largest = max((abs(v["difference"] - of.none) for v in filled), default=0.0) or 1.0
    ends = [of.none - largest, of.none, of.none + largest]
    tooltip = [
        alt.Tooltip("row:N", title=row),
        alt.Tooltip("column:N", title=column),
        alt.Tooltip("difference:Q", format=of.form, title="mean"),
        alt.Tooltip("cells:Q", title="cells averaged"),
    ]
    base = chart_of(values).encode(
        alt.X("column:N", sort=columns, title=column, axis=alt.Axis(labelAngle=0, labelLimit=90)),
        alt.Y("row:N", sort=rows, title=row, axis=alt.Axis(labelLimit=120)),
        tooltip=tooltip,
    )
    unit = "points" if of is GAIN else "S"
    label = f"datum.value == {of.none} ? '{of.none:g}' : format(datum.value, '{of.form}')"
    legend = alt.Legend(orient="right", gradientLength=100, values=ends, labelExpr=label)
    scale = alt.Scale(domain=[ends[0], ends[2]], domainMid=of.none)
    fill = alt.Color("difference:Q", scale=scale, title=unit, legend=legend)
    boxes = base.transform_filter("datum.difference !== null").mark_rect(cornerRadius=3).encode(fill)
    texts = base.mark_text(fontSize=12).encode(text="text:N")
    chart = alt.layer(boxes, texts).properties(
        width="container", height=max(120, 34 * len(rows)), autosize=FIT
    )
    what = f"Difference of {title} to base" if of is GAIN else f"{of.words} of {title}"
    caption = f"{what} by {row} and {column}{', in points' * (of is GAIN)}, averaged over {_averaged(cells)}."
    if filled:
        best = max(filled, key=lambda v: v["difference"])
        caption += f" Largest mean {best['text']} at {row} {best['row']}, {column} {best['column']}."
    if gaps := len(values) - len(filled):
        caption += f" {gaps} combinations have no finished run (×)."
    name = _slug("heat", row, column, arm) if several else _slug("heat", row, column)
    heading = f"{row} × {column}" + (f", {title}" if several else "")
    return Figure(name, "heat map", heading, caption, caption, chart)


def curve(cells: list[dict[str, Any]], name: str, of: Quantity = GAIN) -> Figure | None:
    """A quantity over one setting, its mean over the others, with one field an arm.

    The bounds of a mean of cells are the means of theirs. Cells share their items, and such bounds hold
    however the cells depend on each other: an interval of the mean that is never too short.
    """
    drawn = (cell for cell in cells if of.of([cell]) and known(cell[name]))
    groups = map_reduce(drawn, lambda cell: (cell["title"], str(cell[name])))
    values = []
    for (arm, setting), group in groups.items():
        bounded = of.of(group)
        mean, low, high = (sum(part) / len(part) for part in zip(*bounded, strict=True))
        value = {"arm": arm, "role": role_of(group[0]), "setting": setting, "difference": mean}
        values.append(value | {"low": low, "high": high, "cells": len(group)})
    order = _ordered(v["setting"] for v in values)
    many, numeric = len(order) > MOST_SETTINGS, all(_is_number(setting) for setting in order)
    if len(order) < 2 or many and not numeric:
        return None
    x = alt.X("setting:N", sort=order, title=name, axis=alt.Axis(labelAngle=0))
    if many:
        values = sorted(({**v, "setting": float(v["setting"])} for v in values), key=itemgetter("setting"))
        x = alt.X("setting:Q", title=name, scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("setting:N", title=name),
        alt.Tooltip("difference:Q", format=of.form, title="mean"),
        alt.Tooltip("low:Q", format=of.form, title="95% from"),
        alt.Tooltip("high:Q", format=of.form, title="to"),
        alt.Tooltip("cells:Q"),
    ]
    arms = list(dict.fromkeys(v["arm"] for v in values))
    color, shape = role_scales(values)
    base = chart_of(values) if len(arms) == 1 else alt.Chart()
    base = base.encode(x)
    y = alt.Y("low:Q", title=of.title)
    none = alt.Chart() if len(arms) > 1 else chart_of([{}])
    none = none.mark_rule(strokeDash=[4, 3], opacity=0.7).encode(y=alt.datum(of.none))
    bars = base.mark_rule(strokeWidth=2, opacity=0.6).encode(y, alt.Y2("high:Q"), color, tooltip=tooltip)
    line = base.mark_line().encode(alt.Y("difference:Q"), color)
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        alt.Y("difference:Q"), color, shape, tooltip=tooltip
    )
    height = 240 if len(arms) == 1 else 130
    chart: Any = alt.layer(none, bars, line, marks).properties(height=height)
    if len(arms) == 1:
        chart = chart.properties(width="container", autosize=FIT)
    else:
        header = alt.Header(labelOrient="top", labelAnchor="start", title=None, labelFontWeight="bold")
        row = alt.Row("arm:N", sort=arms, header=header, title=None)
        chart = chart.facet(row=row, data=alt.Data(values=values)).resolve_axis(x="independent")
    averaged = f", averaged over {_averaged(cells)}" if any(v["cells"] > 1 for v in values) else ""
    listed = "; ".join(f"{v['arm']} at {v['setting']}: {v['difference']:{of.form}}" for v in values[:30])
    caption = f"{of.words} over {name}{averaged}. {BARS}"
    if averaged:
        caption += " Those of a mean are the means of the cells' bounds, which are not too short however cells depend."
    return Figure(_slug("curve", name), "curve", name, caption, f"{caption} {listed}.", chart)
