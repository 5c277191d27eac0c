"""The page's tables as rows of cells, with what a column is sorted by; and the feedback triangle.

The triangle shows how far an arm follows a feedback in, near and out of its scope. A corner is good when it
is reached: in scope the answer follows the feedback, near and out of scope it does not change. Scores are
shares of items. What the corners near and out show is one minus the size of the score.
"""

import math
import re
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import pandas as pd
from more_itertools import map_reduce

from c3po_bench.analysis.ablation import shown
from c3po_bench.analysis.arms import display_name, settings_text
from c3po_bench.analysis.frames import known, note, records
from c3po_bench.analysis.gold import LOST, gold_bracket, gold_direction
from c3po_bench.analysis.measures import MEASURES, SCOPES
from c3po_bench.analysis.tables import OVER_SEEDS, measure_interval, movement_cells
from c3po_bench.analysis.verdict import amount, bracket, direction, gap_bracket, p_text


@dataclass(frozen=True)
class Column:
    """A column's heading."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a smaller detail after it, the value it sorts by, and whether it is good news."""

    text: str
    value: object = ""
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """A row with the task it is filtered by and the role of its arm."""

    task: str
    role: str
    cells: list[Cell]


def _columns(names: list[str], numbers: list[str]) -> list[Column]:
    return [Column(name, numeric=False) for name in names] + [Column(name) for name in numbers]


TONES = {1: "up", -1: "down", 0: ""}
COLUMNS = _columns(
    ["Arm", "Task"],
    [
        *("n", "Accuracy", "Difference", "p", "Fixed / broken", "p(right)"),
        *("Against control", "s/item", "GFLOPs/item"),
    ],
)
FEEDBACK_COLUMNS = _columns(
    ["Arm", "Scope"], ["S", "Drift", "Similarity", "Repetition", "Broken endings", "Length ratio"]
)
JUDGE_COLUMNS = _columns(
    ["Arm", "Scope"], ["n", "Judged", "Sensitivity", "Specificity", "Corrected", "By people"]
)
MOVEMENT_COLUMNS = _columns(
    ["Arm"],
    ["Moved", "Natural spread", "Times", "Own top-k kept", "Weight", "Entropy", "Loss", "Similarity"],
)
SEED_COLUMNS = _columns(
    ["Arm", "Task"],
    [
        "Seeds",
        "Items",
        "Accuracy",
        "Over seeds",
        "To base, 95% over seeds",
        "Two seeds agree",
        "All seeds agree",
    ],
)


def comparison_rows(compared: pd.DataFrame, controls: pd.DataFrame) -> list[Row]:
    """The rows of `compare`, with those of `compare_controls` beside them, ready to be shown."""
    run_and_task = itemgetter("run_id", "task")
    over = map_reduce(records(controls), run_and_task)
    return [
        Row(row["task"], row["role"], _cells(row, over.get(run_and_task(row), [])))
        for row in records(compared)
    ]


def _accuracy(row: dict[str, Any], detail: str) -> Cell:
    """The accuracy of a row, with a detail after it."""
    if not known(row["accuracy"]):
        return Cell("", detail="none judged")
    return Cell(f"{row['accuracy'] * 100:.1f}%", row["accuracy"], detail)


def _cells(row: dict[str, Any], controls: list[dict[str, Any]]) -> list[Cell]:
    settings = re.sub(r"^\((.*)\)( \[\w+\])?$", r"\1\2", settings_text(row).strip())  # without brackets
    notes = [settings, "its own prompt" if row["prompt_differs"] else "", note(row, "outdated")]
    cells = [
        Cell(row["title"], row["label"], ", ".join(filter(None, notes))),
        Cell(row["task"], row["task"], f"most: {row['mostly']}" if note(row, "mostly") else ""),
        Cell(f"{row['n']:,}", row["n"]),
        _accuracy(row, bracket(row["low"], row["high"])),
    ]
    if note(row, "no_verdict"):
        cells[-1] = replace(cells[-1], detail=f"{cells[-1].detail} ~")
    difference, p, changed = Cell(""), Cell(""), Cell("")
    if known(row["difference"]):
        over = row["over"]
        interval = gap_bracket(row) + (" §" if "clusters" in over else " ¶" if over == "seeds" else "")
        gap, tone = f"{row['difference'] * 100:+.1f}", TONES[direction(row)]
        difference = Cell(gap, row["difference"], interval, "" if note(row, "outdated") else tone)
    if known(row["p"]):
        test = " ‡" if row["test"] == "sign-flip" else ""
        p = Cell(p_text(row["p"]) + test, row["p"], f"Holm {p_text(row['p_holm'])}")
    if known(row["fixed"]):
        changed = Cell(f"{row['fixed']} / {row['broken']}", int(row["fixed"]) - int(row["broken"]))
    seconds, flops = row["seconds_per_item"], row["flops_per_item"]
    return [
        *cells,
        difference,
        p,
        changed,
        _gold(row),
        _control(controls),
        Cell(amount(seconds), seconds) if known(seconds) else Cell(""),
        Cell(amount(flops / 1e9, 3), flops) if known(flops) else Cell(""),
    ]


def _gold(row: dict[str, Any]) -> Cell:
    """The right choice's probability, and its change to base with the t interval."""
    if not known(row.get("p_gold")):
        return Cell("", detail=note(row, "gold_note"))
    share = f"{100 * row['p_gold']:.1f}%"
    if not known(row.get("gold_difference")):
        return Cell(share, row["p_gold"], note(row, "gold_note"))
    change = f"{100 * row['gold_difference']:+.1f} {gold_bracket(row)}"
    p = f", Holm p {p_text(row['gold_p_holm'])}" if known(row["gold_p_holm"]) else ""
    return Cell(share, row["gold_difference"], change + p, TONES[gold_direction(row)])


def _control(controls: list[dict[str, Any]]) -> Cell:
    """The difference to the first control, and below it those to the others, a line each."""
    if not controls:
        return Cell("")
    gaps = [f"{row['difference'] * 100:+.1f}" for row in controls]
    texts = [f"{bracket(row['diff_low'], row['diff_high'])} {row['change']}" for row in controls]
    lines = [texts[0], *(f"{gap} {text}" for gap, text in zip(gaps[1:], texts[1:], strict=True))]
    return Cell(gaps[0], controls[0]["difference"], "\n".join(lines), TONES[direction(controls[0])])


def levels(compared: pd.DataFrame) -> list[str]:
    """The tasks and summaries that rows can be filtered by, the summaries first."""
    order = {"pooled": 0, "macro": 1, "group": 2, "task": 3}
    rows = sorted(records(compared), key=lambda row: (order[row["level"]], bool(row["group"])))
    return list(dict.fromkeys(row["task"] for row in rows))


def marks(compared: pd.DataFrame) -> str:
    """What the signs in the table mean, of those that occur."""
    notes = ["Brackets are 95% intervals over items; grey rows are bases and controls."]
    if any("clusters" in over for over in compared["over"]):
        notes.append("§: over groups of items that share a source, by t.")
    if "seeds" in set(compared["over"]):
        notes.append(f"{OVER_SEEDS}.")
    if any(map(direction, records(compared))):
        notes.append(
            "Green and red: the interval excludes 0 and p is below 0.05 after Holm's correction for the "
            "number of tests."
        )
    if any(compared["prompt_differs"]):
        notes.append("“Its own prompt”: the arm by nature changes the prompt.")
    if "sign-flip" in set(compared["test"]):
        notes.append("‡: sign-flip test, for scores that are not 0 or 1 or items that share a source.")
    if any(known(value) for value in compared["p_gold"]):
        notes.append(
            "p(right): the right choice's probability among the choices, and its paired change in points, with a "
            "t interval and p of sign flips."
        )
    if any(compared["no_verdict"]):
        notes.append("~: neither base nor a ceiling is above chance (95%): shown, and no verdict.")
    if any(compared["outdated"]):
        notes.append(
            "“Recorded with version 1, now 2”: the code that makes these numbers has changed since; they are in no "
            "sentence, color or figure until they are recorded again."
        )
    if any(compared["gold_note"]):
        notes.append(f"p(right) is {LOST} where the record of a run lacks it.")
    return " ".join(notes)


def moved_rows(rows: list[dict[str, Any]]) -> list[Row]:
    """The rows of `analysis.movement.movement_rows`."""
    names = (
        "moved",
        "natural_spread",
        "times",
        "kept",
        "mass_after",
        "entropy_after",
        "loss_last",
        "similarity",
    )
    table = []
    for row in rows:
        cells = [Cell(row["title"], row["label"], settings_text(row).strip())]
        for text, name in zip(movement_cells(row), names, strict=True):
            cells.append(Cell(text, row[name] if known(row[name]) else ""))
        table.append(Row("", row["role"], cells))
    return table


def feedback_rows(measured: pd.DataFrame) -> list[Row]:
    """The rows of `feedback_measures`, one an arm and scope, over all feedbacks together."""
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in records(measured):
        if not row["feedback"]:
            groups.setdefault((row["run_id"], row["scope"]), {})[row["measure"]] = row
    rows = []
    for (_, scope), values in groups.items():
        first = next(iter(values.values()))
        cells = [Cell(display_name(first), display_name(first)), Cell(SCOPES.get(scope, scope), scope)]
        cells += [_measure(values[measure]) if measure in values else Cell("") for measure in MEASURES]
        rows.append(Row(scope, first["role"], cells))
    return rows


def _measure(row: dict[str, Any]) -> Cell:
    digits = 3 if row["measure"] == "drift" else 2
    return Cell(f"{row['mean']:.{digits}f}", row["mean"], measure_interval(row))


def judge_rows(judges: pd.DataFrame) -> list[Row]:
    """The rows of `judge_measures`."""
    rows = []
    for row in records(judges):
        cells = [
            Cell(display_name(row), display_name(row)),
            Cell(SCOPES[row["scope"]], row["scope"]),
        ]
        cells += [Cell(str(row["n"]), row["n"])]
        cells += [
            _share(row, name) for name in ("judged", "sensitivity", "specificity", "corrected", "estimate")
        ]
        rows.append(Row(row["scope"], row["role"], cells))
    return rows


def _share(row: dict[str, Any], name: str) -> Cell:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    interval = f"[{low:.2f}, {high:.2f}]" if known(low) else ""
    return Cell(f"{row[name]:.2f}", row[name], interval) if known(row[name]) else Cell("")


def seed_rows(seeds: pd.DataFrame) -> list[Row]:
    """The rows of `seed_agreement`."""
    rows = []
    for row in records(seeds):
        name, spread = display_name(row), f"{row['lowest'] * 100:.1f} to {row['highest'] * 100:.1f}"
        cells = [
            Cell(name, name),
            Cell(row["task"], row["task"]),
            Cell(str(row["seeds"]), row["seeds"]),
            Cell(f"{row['items']:,}", row["items"]),
            _accuracy(row, f"sd {row['accuracy_sd'] * 100:.1f}"),
            Cell(spread, row["highest"]),
            _over_seeds(row),
            *(Cell(f"{row[name] * 100:.1f}%", row[name]) for name in ("agreement", "unanimous")),
        ]
        rows.append(Row(row["task"], row["role"], cells))
    return rows


def _over_seeds(row: dict[str, Any]) -> Cell:
    """The difference to base with its interval over seeds, and below it that over items and seeds."""
    if not known(row["difference"]):
        return Cell("")
    lines = (
        [bracket(row["diff_low"], row["diff_high"])]
        if known(row["diff_low"])
        else ["no interval of two seeds"]
    )
    if known(row["both_low"]):
        lines.append(f"{bracket(row['both_low'], row['both_high'])} over items and seeds")
    return Cell(f"{row['difference'] * 100:+.1f}", row["difference"], "\n".join(lines))


PERCENT = {"value": "accuracy %", "difference": "difference", "diff_low": "from", "diff_high": "to"}
NUMBERS = dict.fromkeys(PERCENT, 1) | {"p_holm": 3, "seconds_per_item": 3}  # digits
HEADINGS = PERCENT | {"p_holm": "Holm p", "seconds_per_item": "s/item"}


def ablation_rows(table: pd.DataFrame, varied: list[str]) -> dict[str, Any]:
    """The ablation table as the page lists it: varied settings and the numbers, one row a run and task."""
    names = ["arm", *varied, "task", "n", *NUMBERS, "status"]
    rows = [row for row in shown(table, varied) if row["metric"] == "acc"]
    columns = []
    for name in names:
        numeric = any(isinstance(row[name], int | float) and known(row[name]) for row in rows)
        column: dict[str, Any] = {"title": HEADINGS.get(name, name.replace("_", " ")), "numeric": numeric}
        columns.append(column | ({"digits": NUMBERS[name]} if name in NUMBERS else {}))
    return {"columns": columns, "rows": [[_plain(name, row[name]) for name in names] for row in rows]}


def _plain(name: str, value: Any) -> Any:
    """A value as the page's table lists it: shares in percent, missing ones as None."""
    if value is pd.NA:
        return None
    return 100 * value if name in PERCENT else value


def ablation_note(table: pd.DataFrame, varied: list[str]) -> str:
    """How many cells there are, over what, and how many are still missing."""
    status = [row["status"] for row in records(table) if row["metric"] == "acc"]
    gaps = status.count("missing") + status.count("unfinished")
    note = f"{status.count('done'):,} finished rows over {', '.join(varied)}."
    return note + (f" {gaps:,} rows are missing or unfinished: the sweep is incomplete." if gaps else "")


CORNERS = {  # by scope: the angle in degrees
    "in": -90.0,
    "near": 150.0,
    "out": 30.0,
}
SIZE, RADIUS = 200.0, 70.0
CENTRE = (SIZE / 2, SIZE / 2 + 12)


@dataclass(frozen=True)
class Triangle:
    """One arm's drawing: its polygon in SVG coordinates, the scores at its corners, and a description."""

    arm: str
    polygon: str
    values: dict[str, float]
    alt: str


def triangles(compared: pd.DataFrame) -> list[Triangle]:
    """A triangle for every run that has answers in all three scopes, some of them judged."""
    rows = (row for row in records(compared) if row["scope"] in CORNERS and known(row["accuracy"]))
    runs = map_reduce(rows, itemgetter("run_id"))
    return [_triangle(rows) for rows in runs.values() if {row["scope"] for row in rows} == CORNERS.keys()]


def _triangle(rows: list[dict[str, Any]]) -> Triangle:
    scores = {scope: [row["accuracy"] for row in rows if row["scope"] == scope] for scope in CORNERS}
    mean = {scope: sum(values) / len(values) for scope, values in scores.items()}
    reached = {scope: value if scope == "in" else 1 - abs(value) for scope, value in mean.items()}
    name = display_name(rows[0])
    shares = [f"{mean[scope]:.0%} {SCOPES[scope]}" for scope in CORNERS]
    return Triangle(name, outline(reached), mean, f"{name}: follows {', '.join(shares)}")


def corner(scope: str, share: float = 1.0) -> tuple[float, float]:
    """Where `share` of the way from the centre to the corner of `scope` lies, in SVG units."""
    angle, reach = math.radians(CORNERS[scope]), RADIUS * min(1.0, max(0.0, share))
    return CENTRE[0] + reach * math.cos(angle), CENTRE[1] + reach * math.sin(angle)


def outline(shares: dict[str, float]) -> str:
    """The points attribute of a polygon that reaches `shares` of the way to each corner."""
    return " ".join("{:.1f},{:.1f}".format(*corner(scope, shares[scope])) for scope in CORNERS)
