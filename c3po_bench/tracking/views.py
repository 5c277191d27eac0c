"""What the analysis run holds: tables by kind, and charts with intervals as SVG, which W&B's own bar charts lack."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import pandas as pd

from c3po_bench.analysis.arms import display_name
from c3po_bench.analysis.frames import known, records
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.analysis.overall import arms_frame, by_scope
from c3po_bench.analysis.verdict import summary_rows
from c3po_bench.store.reader import Run

MOST_LINES = 60
LINE, LEFT, WIDTH, RIGHT = 26, 250, 460, 130
COLORS = {"method": "#1f5fbf", "baseline": "#1f5fbf", "control": "#c05a00", "ceiling": "#0b7d5a"}


DIFFERENCES, OVERALL = "figures/differences", "figures/s_overall"


@dataclass(frozen=True)
class Contents:
    """What a store's published runs have: settings that vary, curves, and of which kind they are."""

    axes: list[str]
    curves: list[str]
    alike: bool  # accuracies with differences to base
    feedback: bool
    moved: bool = False  # differences of some arm beside base

    def tables(self) -> list[str]:
        """The tables of the analysis run."""
        return ["comparison"] * self.alike + ["feedback"] * self.feedback + ["ablation"]


def feedback_arms(runs: Sequence[Run], compared: pd.DataFrame) -> pd.DataFrame:
    """`arms_frame` of the runs compared, with the mean of both leaks; empty where none is feedback's."""
    tuned = {row["run_id"] for row in records(compared) if row["scope"]}
    about = [run for run in runs if run.run_id in tuned]
    if not about:
        return pd.DataFrame()
    arms = arms_frame(about, feedback_measures(about))
    return arms.assign(leaks=(arms["leaks_near"] + arms["leaks_out"]) / 2)


def analysis_tables(
    compared: pd.DataFrame, arms: pd.DataFrame, ablation: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """The tables of the analysis run: feedback under what its scores are, others without its columns."""
    alike: Any = compared[compared["scope"] == ""].drop(columns="scope")
    found: dict[str, Any] = {"comparison": alike} if len(alike) else {}
    if len(arms):
        found["feedback"] = arms[[name for name in arms if not str(name).endswith("_sign")]]
        return found | {"ablation": by_scope(ablation)}
    return found | {"ablation": ablation.drop(columns="scope")}


def pictures(compared: pd.DataFrame, arms: pd.DataFrame) -> dict[str, str]:
    """Differences and S_overall with their intervals, as SVG, by the keys that panels ask for."""
    drawn: dict[str, str] = {}
    gaps = [
        Line(
            f"{display_name(row)}, {row['task']}",
            row["role"],
            *(100 * row[name] for name in ("difference", "diff_low", "diff_high")),
        )
        for row in summary_rows(records(compared))
        if known(row["difference"]) and known(row["diff_low"])
    ]
    if gaps:
        title = "difference to base, points, 95% intervals"
        drawn[DIFFERENCES] = intervals_svg(gaps[:MOST_LINES], title, 0.0, "+.1f")
    overall = [
        Line(display_name(row), row["role"], *(row[f"s_overall{end}"] for end in ("", "_low", "_high")))
        for row in records(arms)
        if known(row["s_overall"]) and known(row["s_overall_low"])
    ]
    if overall:
        title = "S overall (0.5: as base, 1: perfect), 95% intervals"
        drawn[OVERALL] = intervals_svg(overall[:MOST_LINES], title, 0.5, ".2f")
    return drawn


class Line(NamedTuple):
    """One line of the chart: a name, the role of its arm, a value and the bounds of its interval."""

    name: str
    role: str
    value: float
    low: float
    high: float


def intervals_svg(lines: Sequence[Line], title: str, none: float, form: str) -> str:
    """The lines as an SVG picture with its own background.

    Args:
        lines: from top to bottom.
        title: of the axis, with the unit.
        none: the value of no effect, which has a labelled line.
        form: how values are written, as of `format`.
    """
    low, high = min(none, *(line.low for line in lines)), max(none, *(line.high for line in lines))
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return LEFT + 10 + (value - low) / span * (WIDTH - 20)

    height = LINE * len(lines) + 50
    bottom = LINE * len(lines) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{escape(title)}</title>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<line x1="{x(none):.1f}" x2="{x(none):.1f}" y1="6" y2="{bottom}" stroke="#888" stroke-dasharray="4 3"/>',
        f'<text x="{x(none):.1f}" y="{bottom + 14}" text-anchor="middle">{none:g}</text>',
        f'<text x="{LEFT + WIDTH / 2:.0f}" y="{bottom + 32}" text-anchor="middle" fill="#555">{escape(title)}</text>',
    ]
    for place, line in enumerate(lines):
        y, color = LINE * place + 18, COLORS.get(line.role, "#666666")
        name = line.name if len(line.name) <= 36 else line.name[:35] + "…"
        numbers = f"{format(line.value, form)} [{format(line.low, form)}, {format(line.high, form)}]"
        parts += [
            f'<text x="{LEFT}" y="{y + 4}" text-anchor="end">{escape(name)}<title>{escape(line.name)}</title></text>',
            f'<line x1="{x(line.low):.1f}" x2="{x(line.high):.1f}" y1="{y}" y2="{y}" stroke="{color}" '
            'stroke-width="2"/>',
            f'<circle cx="{x(line.value):.1f}" cy="{y}" r="4.5" fill="{color}"/>',
            f'<text x="{LEFT + WIDTH + 4}" y="{y + 4}" fill="#555">{numbers}</text>',
        ]
    return "".join([*parts, "</svg>"])
