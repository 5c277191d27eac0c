"""What all charts share: a figure with its words, one colour and shape a role, the line of zero, places for names.

Charts carry no colors of their own; the page hands Vega the palette of its light or dark theme, and a role's
place in `SHAPES` is its place in that palette, in every chart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import numpy as np
from scipy.optimize import isotonic_regression

from c3po_bench.analysis.arms import METHODS

alt.data_transformers.disable_max_rows()
WIDE = (
    "width >= 420"  # names would lie over each other on a phone: points have numbers there, and a key below
)
LONG = 26  # letters of a name from which points have numbers at any width
LINE = 16
"""Pixels from the name of a point to the next."""
GAP = 34
"""Pixels between the points and the column of their names."""
NAMED = 20
"""Arms up to which a chart of points names each."""
FIT = alt.AutoSizeParams(type="fit-x", contains="padding")
SHAPES = {
    "method": "circle",
    "control": "square",
    "ceiling": "triangle-up",
    "repeat": "cross",
    "base": "diamond",
}
BARS = "Bars are 95% intervals."


@dataclass(frozen=True)
class Figure:
    """A chart with the words that stand for it where it cannot be seen, and of numbered points their names."""

    name: str
    group: str  # the section of the page it belongs to
    title: str
    caption: str
    alt: str
    chart: alt.Chart | alt.LayerChart | alt.FacetChart
    key: tuple[str, ...] = ()
    numbered: bool = False  # whether points have numbers at any width, because their names are long

    def spec(self, width: int = 0) -> dict[str, Any]:
        """The Vega-Lite specification; where `width` is given, of a picture about so many pixels wide."""
        if not width:
            return self.chart.to_dict()
        if not isinstance(self.chart, alt.FacetChart):
            return self.chart.properties(width=width).to_dict()
        spec = self.chart.to_dict()
        spec["spec"]["width"] = width - 60
        return spec


def role_of(row: dict[str, Any]) -> str:
    """The role under which a row is drawn: a baseline is drawn as a method is."""
    return "method" if row["role"] in METHODS else row["role"]


def chart_of(values: list[dict[str, Any]]) -> alt.Chart:
    """A chart over these rows."""
    return alt.Chart(alt.Data(values=values))


def zero(axis: Literal["x", "y"], end: str = "") -> alt.Chart:
    """The line of no difference, all across or up to `end`, a Vega expression."""
    line = chart_of([{"zero": 0}]).mark_rule(strokeDash=[4, 3], opacity=0.7).encode(**{axis: "zero:Q"})
    return line.encode(x=alt.value(0), x2=alt.value(alt.ExprRef(end))) if end else line


def role_scales(rows: Iterable[dict[str, Any]]) -> tuple[alt.Color, alt.Shape]:
    """Color and shape by role, the same in every chart.

    The legend has the roles that occur, if several do.
    """
    own = {row["role"] for row in rows}
    present = [role for role in SHAPES if role in own]
    legend = alt.Legend(orient="top", values=present) if len(present) > 1 else None
    color = alt.Color("role:N", scale=alt.Scale(domain=list(SHAPES)), title=None, legend=legend)
    scale = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    return color, alt.Shape("role:N", scale=scale, title=None, legend=legend)


def placed(
    points: list[dict[str, Any]], across: str, height: str, span: tuple[float, float], pixels: int
) -> list[dict[str, Any]]:
    """The points from top to bottom, numbered, with the height of their names, `name_y`, in a column to the right.

    Names keep a line between them and are else as near to their points as they can be. Of points at the same
    height the one to the left has the lowest name, so that the lines to their names do not cross.

    Args:
        points: those that are drawn.
        across: the name of the horizontal value.
        height: the name of the vertical value.
        span: the ends of the vertical axis.
        pixels: how high the axis is; `tall` says what it must be at least.
    """
    line = LINE * (span[1] - span[0]) / pixels
    ordered = sorted(points, key=lambda point: (point[height], point[across]))
    steps = line * np.arange(len(ordered))
    free = isotonic_regression([point[height] for point in ordered] - steps).x
    levels = steps + np.clip(free, span[0] + line / 2, span[1] - line / 2 - steps[-1])
    rows = [{**point, "name_y": float(level)} for point, level in zip(ordered, levels, strict=True)]
    return [{**row, "number": str(number)} for number, row in enumerate(reversed(rows), start=1)]


def tall(points: list[dict[str, Any]], least: int) -> int:
    """Pixels of a chart that has a line for each point's name, and `least` at least."""
    return max(least, LINE * len(points))


def long_names(points: list[dict[str, Any]]) -> bool:
    """Whether some name is too long to stand beside its point."""
    return any(len(point["arm"]) > LONG for point in points)


def room(points: list[dict[str, Any]]) -> str:
    """A Vega expression: pixels that the column of names takes to the right of the points."""
    wide = 0 if long_names(points) else max(len(point["arm"]) for point in points)
    return f"({WIDE} ? {GAP + max(14, 7 * wide)} : {GAP + 14})"


def named(
    x: alt.X, y: alt.Y, layers: list[alt.Chart], spots: list[dict[str, Any]], color: alt.Color
) -> list[alt.Chart]:
    """`layers` with the names of `placed` points in a column at the right, and lines that lead to them.

    Where the chart is narrow or a name is long, numbers stand for names.
    """
    base = chart_of(spots)
    leaders = base.mark_rule(strokeWidth=0.75, opacity=0.6).encode(
        x, y, alt.X2Value(alt.ExprRef(f"{names_start(spots)} - 3")), alt.Y2("name_y:Q"), color
    )
    shown = "datum.number" if long_names(spots) else f"{WIDE} ? datum.arm : datum.number"
    names = base.transform_calculate(name=shown).mark_text(align="left", baseline="middle")
    return [
        leaders,
        *layers,
        names.encode(alt.XValue(alt.ExprRef(names_start(spots))), alt.Y("name_y:Q"), color, text="name:N"),
    ]


def names_start(points: list[dict[str, Any]]) -> str:
    """A Vega expression: where the column of names begins."""
    return f"(width - {room(points)} + {GAP})"


def key_of(points: list[dict[str, Any]]) -> tuple[str, ...]:
    """What the numbers of `placed` points stand for, in their order."""
    return tuple(point["arm"] for point in points)
