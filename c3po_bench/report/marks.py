"""What all charts share: a figure with its words, one colour and shape a role, the line of zero, places for names.

Charts carry no colors of their own; the page hands Vega the palette of its light or dark theme, and a role's place in
`SHAPES` is its place in that palette, in every chart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from c3po_bench.analysis.arms import METHODS

alt.data_transformers.disable_max_rows()
WIDE = (
    "width >= 420"  # names would lie over each other on a phone: points have numbers there, and a key below
)
LONG = 26  # letters of a name from which points have numbers at any width
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


def zero(axis: Literal["x", "y"]) -> alt.Chart:
    """The line of no difference."""
    return chart_of([{"zero": 0}]).mark_rule(strokeDash=[4, 3], opacity=0.7).encode(**{axis: "zero:Q"})


def role_scales(rows: Iterable[dict[str, Any]]) -> tuple[alt.Color, alt.Shape]:
    """Color and shape by role, the same in every chart; the legend has the roles that occur, if several do."""
    own = {row["role"] for row in rows}
    present = [role for role in SHAPES if role in own]
    legend = alt.Legend(orient="top", values=present) if len(present) > 1 else None
    color = alt.Color("role:N", scale=alt.Scale(domain=list(SHAPES)), title=None, legend=legend)
    scale = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    return color, alt.Shape("role:N", scale=scale, title=None, legend=legend)


def placed(
    points: list[dict[str, Any]],
    along: Callable[[dict[str, Any]], float],
    back: Callable[[float], float],
    height: str,
    span: tuple[float, float],
) -> list[dict[str, Any]]:
    """The points, numbered, with a place for their names, `name_x` and `name_y`: beside each, or the nearest free one.

    Sizes are shares of what is spanned: a letter is an eightieth wide, a line a nineteenth high.

    Args:
        points: those that are drawn.
        along: where a point lies on the horizontal axis as it is drawn (a logarithm where that is one).
        back: the axis' value there.
        height: the name of the vertical value.
        span: the least and the largest vertical value drawn.
    """
    places = [along(point) for point in points]
    across = max(places, default=0) - min(places, default=0) or 1
    line = (span[1] - span[0] or 1) / 19
    ordered = sorted(zip(places, points, strict=True), key=lambda pair: pair[0])
    taken = [(x - across / 100, x + across / 100, point[height]) for x, point in ordered]
    rows = []
    for number, (x, point) in enumerate(ordered, start=1):
        letters = 2 if long_names(points) else len(point["arm"])
        begin, end = x + across / 50, x + across / 50 + letters * across / 80
        levels = [point[height] + line * (n + 0.4) for n in sorted(range(-NAMED, NAMED), key=abs)]
        free = (
            y
            for y in levels
            if not any(b < end and begin < e and abs(y - other) < line for b, e, other in taken)
        )
        level = next(free, levels[0])
        taken.append((begin, end, level))
        rows.append({**point, "number": str(number), "name_x": back(begin), "name_y": level})
    return rows


def long_names(points: list[dict[str, Any]]) -> bool:
    """Whether some name is too long to stand beside its point."""
    return any(len(point["arm"]) > LONG for point in points)


def named(base: alt.Chart, x: alt.X, y: alt.Y, layers: list[alt.Chart], numbered: bool) -> list[alt.Chart]:
    """`layers` with the names of `placed` points and lines that lead to them; numbers if `numbered` or it is narrow."""
    faint = alt.condition(WIDE, alt.value(0.6), alt.value(0))
    leaders = base.mark_rule(strokeWidth=0.75).encode(
        x, y, alt.X2("name_x:Q"), alt.Y2("name_y:Q"), opacity=faint
    )
    text = base.transform_calculate(name="datum.number" if numbered else f"{WIDE} ? datum.arm : datum.number")
    names = text.mark_text(align="left", dx=2, limit=220).encode(
        alt.X("name_x:Q"), alt.Y("name_y:Q"), text="name:N"
    )
    return [leaders, *layers, names]


def key_of(points: list[dict[str, Any]]) -> tuple[str, ...]:
    """What the numbers of `placed` points stand for, in their order."""
    return tuple(point["arm"] for point in points)
