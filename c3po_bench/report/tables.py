"""The comparison as rows of cells for the page: what is shown, and what a column is sorted by."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from c3po_bench.analysis.compare import records
from c3po_bench.analysis.measures import MEASURES, SCOPES
from c3po_bench.analysis.roles import CONTROLS, method, role, title
from c3po_bench.analysis.verdict import amount, bracket, direction, p_text


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


TONES = {1: "up", -1: "down", 0: ""}
COLUMNS = [
    Column("Arm", numeric=False),
    Column("Task", numeric=False),
    Column("n"),
    Column("Accuracy"),
    Column("Difference"),
    Column("p"),
    Column("Fixed / broken"),
    Column("Against control"),
    Column("s/item"),
    Column("GFLOPs/item"),
]


def comparison_rows(compared: pd.DataFrame, controls: pd.DataFrame) -> list[Row]:
    """The rows of `compare`, with those of `compare_controls` beside them, ready to be shown."""
    over: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in records(controls):
        over.setdefault((row["run_id"], row["task"]), []).append(row)
    rows = records(compared)
    return [
        Row(row["task"], role(row["arm"]), _cells(row, over.get((row["run_id"], row["task"]), [])))
        for row in rows
    ]


def levels(compared: pd.DataFrame) -> list[str]:
    """The tasks and summaries that rows can be filtered by, the summaries first."""
    order = {"pooled": 0, "macro": 1, "group": 2, "task": 3}
    rows = sorted(records(compared), key=lambda row: (order[row["level"]], bool(row["group"])))
    return list(dict.fromkeys(row["task"] for row in rows))


FEEDBACK_COLUMNS = [Column("Arm", numeric=False), Column("Scope", numeric=False)] + [
    Column(name) for name in ("S", "Drift", "Similarity", "Repetition", "Broken endings", "Length ratio")
]


def feedback_rows(measured: pd.DataFrame) -> list[Row]:
    """The rows of `feedback_measures`, one an arm and scope, over all feedbacks together."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in records(measured):
        if not row["feedback"]:
            found.setdefault((row["run_id"], row["scope"]), {})[row["measure"]] = row
    rows = []
    for (_, scope), values in found.items():
        one = next(iter(values.values()))
        name = title(one["arm"]) + one["label"][len(one["arm"]) :]
        cells = [Cell(name, name), Cell(SCOPES.get(scope, scope), scope)]
        cells += [_measure(values.get(measure)) for measure in MEASURES]
        rows.append(Row(scope, role(one["arm"]), cells))
    return rows


def _measure(row: dict[str, Any] | None) -> Cell:
    if row is None:
        return Cell("")
    digits = 3 if row["measure"] == "drift" else 2
    interval = f"[{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    return Cell(f"{row['mean']:.{digits}f}", row["mean"], interval)


SEED_COLUMNS = [Column("Arm", numeric=False), Column("Task", numeric=False)] + [
    Column(name)
    for name in ("Seeds", "Items", "Accuracy", "Over seeds", "Two seeds agree", "All seeds agree")
]


def seed_rows(seeds: pd.DataFrame) -> list[Row]:
    """The rows of `seed_agreement`."""
    rows = []
    for row in records(seeds):
        spread = f"{row['lowest'] * 100:.1f} to {row['highest'] * 100:.1f}"
        name = title(row["arm"]) + row["label"][len(row["arm"]) :]
        cells = [Cell(name, name), Cell(row["task"], row["task"])]
        cells += [Cell(str(row["seeds"]), row["seeds"]), Cell(f"{row['items']:,}", row["items"])]
        cells += [
            Cell(f"{row['accuracy'] * 100:.1f}%", row["accuracy"], f"sd {row['accuracy_sd'] * 100:.1f}")
        ]
        cells += [Cell(spread, row["highest"])]
        cells += [Cell(f"{row[name] * 100:.1f}%", row[name]) for name in ("agreement", "unanimous")]
        rows.append(Row(row["task"], role(row["arm"]), cells))
    return rows


def marks(compared: pd.DataFrame) -> str:
    """What the signs in the table mean, of those that occur."""
    said = ["Brackets are 95% intervals; grey rows are bases and controls."]
    if any(map(direction, records(compared))):
        said.append(
            "Green and red: the interval excludes 0 and p is below 0.05; Holm's p is the one after correction."
        )
    if any(compared["prompt_differs"]):
        said.append("“Its own prompt”: the arm by nature changes the prompt.")
    if "sign-flip" in set(compared["test"]):
        said.append("‡: sign-flip test, for scores that are not 0 or 1 or items that share a source.")
    return " ".join(said)


def _told(row: dict[str, Any]) -> str:
    """What a label says beside the arm.

    Its settings without their brackets, the hash of a run that has no other name.
    """
    return re.sub(r"^\((.*)\)( \[\w+\])?$", r"\1\2", row["label"][len(row["arm"]) :].strip())


def _cells(row: dict[str, Any], controls: list[dict[str, Any]]) -> list[Cell]:
    notes = ", ".join(filter(None, [_told(row), "its own prompt" if row["prompt_differs"] else ""]))
    compared = _known(row["difference"])
    tone = TONES[direction(row)]
    gap = f"{row['difference'] * 100:+.1f}" if compared else ""
    test = " ‡" if row["test"] == "sign-flip" else ""
    flops = row["flops_per_item"]
    return [
        Cell(title(row["arm"]), row["label"], notes),
        Cell(row["task"], row["task"]),
        Cell(f"{row['n']:,}", row["n"]),
        Cell(f"{row['accuracy'] * 100:.1f}%", row["accuracy"], bracket(row["low"], row["high"])),
        Cell(
            gap,
            _value(row["difference"]),
            bracket(row["diff_low"], row["diff_high"]) if compared else "",
            tone,
        ),
        Cell(p_text(row["p"]) + test, row["p"], f"Holm {p_text(row['p_holm'])}")
        if _known(row["p"])
        else Cell(""),
        _changed(row),
        _control(controls),
        Cell(
            amount(row["seconds_per_item"]) if _known(row["seconds_per_item"]) else "",
            _value(row["seconds_per_item"]),
        ),
        Cell(amount(flops / 1e9, 3) if _known(flops) else "", _value(flops)),
    ]


def _control(found: list[dict[str, Any]]) -> Cell:
    """The difference to the first control, and below it those to the others, a line each."""
    if not found:
        return Cell("")
    said = [
        f"{bracket(row['diff_low'], row['diff_high'])} {CONTROLS[method(row['control'])].title}"
        for row in found
    ]
    gaps = [f"{row['difference'] * 100:+.1f}" for row in found]
    detail = "\n".join([said[0], *(f"{gap} {words}" for gap, words in zip(gaps[1:], said[1:], strict=True))])
    return Cell(gaps[0], found[0]["difference"], detail, TONES[direction(found[0])])


def _changed(row: dict[str, Any]) -> Cell:
    fixed, broken = row["fixed"], row["broken"]
    return Cell(f"{fixed} / {broken}", int(fixed) - int(broken)) if _known(fixed) else Cell("")


def _known(value: Any) -> bool:
    return value is not None and value is not pd.NA and not math.isnan(value)


def _value(value: Any) -> object:
    return value if _known(value) else ""
