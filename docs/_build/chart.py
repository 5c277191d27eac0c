"""The picture of docs/performance.md, drawn from the page's own table of ratios: `python docs/_build/hook.py` writes it."""

from __future__ import annotations

import math
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "performance.md"
PICTURE = PAGE.with_name("performance.svg")
MACHINES = (("AMD, 2 cores", "#3f51b5"), ("Intel, 2 cores", "#c2700a"), ("H200", "#2e7d32"))
LEFT, RIGHT, TOP, STEP = 225, 690, 62, 30


def rows(page: str) -> list[list[str]]:
    """Cells of the table under "## Ratios" whose first column names a ratio."""
    part = page.split("\n## Ratios\n", 1)[1].split("\n## ", 1)[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if "|" in line
    ]
    return [row for row in cells[2:] if re.match(r"[\d.]", row[1])]


def span(cell: str) -> tuple[float, float] | None:
    """The numbers of "13.4 to 14.1", or of "2.6" twice."""
    numbers = [float(bounds) for bounds in re.findall(r"\d+(?:\.\d+)?", cell)]
    return (numbers[0], numbers[-1]) if numbers else None


def x(value: float) -> float:
    """Place on the logarithmic axis, from a third to 300."""
    return round(LEFT + (RIGHT - LEFT) * math.log(3 * value) / math.log(900), 1)


def draw(page: str) -> str:
    """The chart as SVG: for each ratio a bar from its lowest to its highest value on each machine, and the target."""
    table = rows(page)
    bottom = TOP + STEP * len(table)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {bottom + 42}" role="img" '
        'font-family="sans-serif" font-size="13">',
        "<title>Speed ratios of c3po_bench, by machine, on a logarithmic axis</title>",
        f'<rect width="720" height="{bottom + 42}" fill="#fff"/>',
    ]
    for place, (name, color) in enumerate(MACHINES):
        left = LEFT + 130 * place
        out.append(f'<rect x="{left}" y="14" width="14" height="8" fill="{color}"/>')
        out.append(f'<text x="{left + 20}" y="23" fill="#222">{name}</text>')
    out.append(f'<path d="M{LEFT + 392} 11 v14" stroke="#222" stroke-width="2"/>')
    out.append(f'<text x="{LEFT + 400}" y="23" fill="#222">target</text>')
    for value in (1, 3, 10, 30, 100, 300):
        color = "#222" if value == 1 else "#ccc"
        out.append(f'<path d="M{x(value)} {TOP - 14} V{bottom}" stroke="{color}"/>')
        out.append(f'<text x="{x(value)}" y="{bottom + 17}" text-anchor="middle" fill="#222">{value}</text>')
    out.append(
        f'<text x="{x(math.sqrt(100 / 3))}" y="{bottom + 36}" text-anchor="middle" fill="#222">'
        "times as fast as the stock or naive way (1: as fast)</text>"
    )
    for place, row in enumerate(table):
        top = TOP + STEP * place
        out.append(
            f'<text x="{LEFT - 10}" y="{top + 4}" text-anchor="end" fill="#222">{row[0].replace("`", "")}</text>'
        )
        for line, (cell, (_, color)) in enumerate(zip(row[1:4], MACHINES, strict=True)):
            if bounds := span(cell):
                low, high = x(bounds[0]), max(x(bounds[1]), x(bounds[0]) + 4)
                out.append(
                    f'<rect x="{low}" y="{top - 11 + 8 * line}" width="{high - low:.1f}" height="6" fill="{color}"/>'
                )
        if bounds := span(row[4]):
            out.append(f'<path d="M{x(bounds[0])} {top - 13} v26" stroke="#222" stroke-width="2"/>')
    return "\n".join([*out, "</svg>", ""])
