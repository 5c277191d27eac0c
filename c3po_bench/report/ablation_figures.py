"""Charts of a sweep: a heat map for each method and pair of settings, a curve for each setting."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import altair as alt
import pandas as pd

from c3po_bench.analysis.ablation import axes, by_value, known, leading_number, shown
from c3po_bench.analysis.roles import BASE, role, title
from c3po_bench.analysis.verdict import summary_rows
from c3po_bench.report.figures import FIT, Figure

MOST_MAPS = 20


def ablation_figures(table: pd.DataFrame) -> list[Figure]:
    """Heat maps and curves of the difference to base over the settings that the sweep in `table` varies."""
    names = axes(table)
    cells = _cells(shown(table, names))
    if not names or not cells:
        return []
    curves = [curve(cells, name) for name in names]
    return _heat_maps(cells, names) + [figure for figure in curves if figure]


def _cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The accuracy row that speaks for each run (see `summary_rows`), and the gaps among those."""
    rows = [r for r in rows if r["metric"] == "acc" and r["arm"] != BASE]
    told = summary_rows([r for r in rows if r["status"] == "done"])
    spoken = {(r["arm"], r["model"], r["task"]) for r in told}
    return told + [
        r for r in rows if r["status"] == "missing" and (r["arm"], r["model"], r["task"]) in spoken
    ]


def _ordered(values: Iterable[object]) -> list[str]:
    """Distinct settings as text, by the size they name, then by name."""
    distinct = set(map(str, values))

    def key(text: str) -> tuple[float, str]:
        size = leading_number(text)
        return (float("inf") if size != size else size, text)

    return sorted(distinct, key=key)


def _slug(*parts: str) -> str:
    """A figure's name, which is also its file's: a plugin's settings may be called anything."""
    return re.sub(r"[^\w-]+", "_", "_".join(parts))


def _heat_maps(cells: list[dict[str, Any]], names: list[str]) -> list[Figure]:
    """A map for each pair of settings and each method that varies both, neither as a function of the other."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if role(cell["arm"]) == "method":
            methods.setdefault(cell["arm"], []).append(cell)
    wanted: list[tuple[str, str, str, bool]] = []
    for row, column in combinations(names, 2):
        arms = [arm for arm, own in methods.items() if _spans(own, row, column)]
        wanted += [(arm, row, column, len(arms) > 1) for arm in arms]
    return [
        heat_map(methods[arm], row, column, several=several)
        for arm, row, column, several in wanted[:MOST_MAPS]
    ]


def _spans(cells: list[dict[str, Any]], row: str, column: str) -> bool:
    varied = all(len({cell[name] for cell in cells if known(cell[name])}) > 1 for name in (row, column))
    return varied and not (by_value(cells, row, column) or by_value(cells, column, row))


def _averaged(cells: list[dict[str, Any]]) -> str:
    return "the other settings" + (" and the tasks" if len({cell["task"] for cell in cells}) > 1 else "")


def heat_map(cells: list[dict[str, Any]], row: str, column: str, *, several: bool = False) -> Figure:
    """Mean difference of one arm to base by two settings, averaged over the others.

    Gaps are empty and crossed.

    Where `several` arms have such a map, the figure's name and title say which this is.
    """
    arm = cells[0]["arm"]
    groups: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        found = groups.setdefault((str(cell[row]), str(cell[column])), [])
        if cell["status"] == "done" and known(cell["difference"]):
            found.append(100 * cell["difference"])
    rows, columns = _ordered(r for r, _ in groups), _ordered(c for _, c in groups)
    values = []
    for r in rows:
        for c in columns:
            found = groups.get((r, c), [])
            mean = sum(found) / len(found) if found else None
            text = "×" if mean is None else f"{mean:+.1f}"
            values.append({"row": r, "column": c, "difference": mean, "text": text, "cells": len(found)})
    largest = max((abs(v["difference"]) for v in values if v["difference"] is not None), default=0.0) or 1.0
    tooltip = [
        alt.Tooltip("row:N", title=row),
        alt.Tooltip("column:N", title=column),
        alt.Tooltip("difference:Q", format="+.2f", title="points, mean"),
        alt.Tooltip("cells:Q", title="cells averaged"),
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        alt.X("column:N", sort=columns, title=column, axis=alt.Axis(labelAngle=0, labelLimit=90)),
        alt.Y("row:N", sort=rows, title=row, axis=alt.Axis(labelLimit=120)),
        tooltip=tooltip,
    )
    scale = alt.Scale(domain=[-largest, largest], domainMid=0)
    fill = alt.Color(
        "difference:Q", scale=scale, title="points", legend=alt.Legend(orient="right", gradientLength=120)
    )
    filled = base.transform_filter("datum.difference !== null").mark_rect(cornerRadius=3).encode(fill)
    texts = base.mark_text(fontSize=12).encode(text="text:N")
    chart = alt.layer(filled, texts).properties(width="container", height=34 * len(rows), autosize=FIT)
    gaps = sum(v["difference"] is None for v in values)
    heading = f"Difference of {title(arm)} to base by {row} and {column}"
    best = max(
        (v for v in values if v["difference"] is not None), key=lambda v: v["difference"], default=None
    )
    said = f" Largest mean {best['text']} at {row} {best['row']}, {column} {best['column']}." if best else ""
    said += f" {gaps} combinations have no finished run (×)." if gaps else ""
    caption = f"{heading}, in points, averaged over {_averaged(cells)}.{said}"
    name = _slug("heat", row, column, arm) if several else _slug("heat", row, column)
    heading = f"{row} × {column}" + (f", {title(arm)}" if several else "")
    return Figure(name, "heat map", heading, caption, caption, chart)


def curve(cells: list[dict[str, Any]], name: str) -> Figure | None:
    """Difference to base over one setting by arm that has it.

    The mean over the other settings, and the range of cells.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["status"] == "done" and known(cell["difference"]) and known(cell[name]):
            groups.setdefault((title(cell["arm"]), str(cell[name])), []).append(cell)
    values = []
    for (arm, setting), found in groups.items():
        gains = [100 * cell["difference"] for cell in found]
        single = len(found) == 1
        values.append(
            {
                "arm": arm,
                "setting": setting,
                "difference": sum(gains) / len(gains),
                "low": 100 * found[0]["diff_low"] if single else min(gains),
                "high": 100 * found[0]["diff_high"] if single else max(gains),
                "cells": len(found),
            }
        )
    order = _ordered(v["setting"] for v in values)
    if len(order) < 2:
        return None
    several = any(v["cells"] > 1 for v in values)
    arms = list(dict.fromkeys(v["arm"] for v in values))
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("setting:N", title=name),
        alt.Tooltip("difference:Q", format="+.2f", title="points, mean"),
        alt.Tooltip("low:Q", format="+.2f"),
        alt.Tooltip("high:Q", format="+.2f"),
        alt.Tooltip("cells:Q"),
    ]
    color = alt.Color("arm:N", title=None, legend=alt.Legend(orient="top") if len(arms) > 1 else None)
    base = alt.Chart(alt.Data(values=values)).encode(
        alt.X("setting:N", sort=order, title=name, axis=alt.Axis(labelAngle=0))
    )
    y = alt.Y("low:Q", title="difference to base, points")
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(y, alt.Y2("high:Q"), color, tooltip=tooltip)
    line = base.mark_line(point=alt.OverlayMarkDef(size=60, filled=True)).encode(
        alt.Y("difference:Q"), color, tooltip=tooltip
    )
    zero = (
        alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeDash=[4, 3], opacity=0.7).encode(y="zero:Q")
    )
    chart = alt.layer(zero, bars, line).properties(width="container", height=260, autosize=FIT)
    span = f"the range over {_averaged(cells)}" if several else "the paired 95% interval"
    said = "; ".join(f"{v['arm']} at {v['setting']}: {v['difference']:+.1f}" for v in values[:30])
    caption = f"Difference to base over {name}; bars are {span}."
    return Figure(_slug("curve", name), "curve", name, caption, f"{caption} {said}.", chart)
