"""The page's tables as rows of cells, with what a column is sorted by."""

import math
import re
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import pandas as pd
from more_itertools import map_reduce

from c3po_bench.analysis.ablation import leading_number, shown
from c3po_bench.analysis.arms import METHODS, display_name, settings_text
from c3po_bench.analysis.frames import known, note, records
from c3po_bench.analysis.gold import LOST, gold_bracket, gold_direction
from c3po_bench.analysis.measures import SCOPES
from c3po_bench.analysis.tables import OVER_SEEDS, movement_cells
from c3po_bench.analysis.verdict import amount, bracket, direction, gap_bracket, p_text, summary_rows


@dataclass(frozen=True)
class Column:
    """A column's heading.

    An optional one is hidden until a reader asks for all, a wide one has a text a line.
    """

    title: str
    numeric: bool = True
    optional: bool = False
    wide: bool = False


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


def columns_named(names: list[str], numbers: list[str]) -> list[Column]:
    """Columns of texts, and then of numbers."""
    return [Column(name, numeric=False) for name in names] + [Column(name) for name in numbers]


TONES = {1: "up", -1: "down", 0: ""}
COLUMNS = [
    *columns_named(["Arm", "Task"], ["n", "Accuracy", "Difference", "p", "Fixed / broken"]),
    Column("Against control", wide=True),
    Column("s/item"),
    Column("p(right)", optional=True),
    Column("GFLOPs/item", optional=True),
]
JUDGE_COLUMNS = columns_named(
    ["Arm", "Scope"], ["n", "Judged", "Sensitivity", "Specificity", "Corrected", "By people"]
)
MOVEMENT_COLUMNS = columns_named(
    ["Arm"],
    ["Moved", "Natural spread", "Times", "Own top-k kept", "Weight", "Entropy", "Loss", "Similarity"],
)
SEED_COLUMNS = columns_named(
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


def without_empty(columns: list[Column], rows: list[Row]) -> tuple[list[Column], list[Row]]:
    """The columns in which some row has a number, after the first two, and the rows cut to them."""
    kept = [i for i in range(len(columns)) if i < 2 or any(row.cells[i].text for row in rows)]
    cut = [replace(row, cells=[row.cells[i] for i in kept]) for row in rows]
    return [columns[i] for i in kept], cut


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
        holm = f"Holm {p_text(row['p_holm'])}" if known(row["p_holm"]) else ""
        p = Cell(p_text(row["p"]) + test, row["p"], holm)
    if known(row["fixed"]):
        changed = Cell(f"{row['fixed']} / {row['broken']}", int(row["fixed"]) - int(row["broken"]))
    seconds, flops = row["seconds_per_item"], row["flops_per_item"]
    return [
        *cells,
        difference,
        p,
        changed,
        _control(controls),
        Cell(amount(seconds), seconds) if known(seconds) else Cell(""),
        _gold(row),
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
    if any(compared["gold_note"]) and any(known(value) for value in compared["p_gold"]):
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
FEEDBACK = {"s_overall": 2, "s_overall_low": 2, "s_overall_high": 2}
FEEDBACK |= {"follows": 2, "leaks_near": 2, "leaks_out": 2, "drift": 3}
HEADINGS = PERCENT | {"p_holm": "Holm p", "seconds_per_item": "s/item"}
HEADINGS |= {"s_overall": "S overall", "s_overall_low": "from", "s_overall_high": "to"}


def ablation_rows(
    table: pd.DataFrame, varied: list[str], feedback: pd.DataFrame | None = None
) -> dict[str, Any]:
    """The ablation table as the page lists it: varied settings and the numbers, one row a run and task.

    Rows are in the order of the arms and of their settings. Where `feedback` (`arms_frame`) has rows and
    nothing else was run, there is one row a run, with how well it follows and where it leaks.
    """
    rows = [row for row in shown(table, varied) if row["metric"] == "acc"]
    alike = [row for row in rows if not row["scope"] or not known(row["scope"])]
    names = ["arm", *varied, "task", "n", *NUMBERS, "status"]
    digits = NUMBERS
    if feedback is not None and len(feedback) and not any(row["status"] == "done" for row in alike):
        own, seen = {row["run_id"]: row for row in records(feedback)}, set[str]()
        names, digits = ["arm", *varied, *FEEDBACK, "seconds_per_item", "status"], FEEDBACK | NUMBERS
        left = [row for row in rows if row["run_id"] in own or row["status"] != "done"]
        rows = []
        for row in left:
            name = str(row["run_id"] if known(row["run_id"]) else [row[one] for one in varied])
            if name not in seen:
                seen.add(name)
                rows.append(dict.fromkeys(FEEDBACK) | row | own.get(row["run_id"], {}))
    else:
        rows = alike
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    rows.sort(key=lambda row: (arms.index(row["arm"]), [_size(row[name]) for name in varied]))
    columns = []
    for name in names:
        numeric = any(isinstance(row[name], int | float) and known(row[name]) for row in rows)
        column: dict[str, Any] = {"title": HEADINGS.get(name, name.replace("_", " ")), "numeric": numeric}
        columns.append(column | ({"digits": digits[name]} if name in digits else {}))
    return {"columns": columns, "rows": [[_plain(name, row[name]) for name in names] for row in rows]}


def _size(value: Any) -> tuple[float, str]:
    """What settings are sorted by: the size that they name, then the text."""
    size = leading_number(value) if known(value) else math.inf
    return (math.inf if size != size else size, str(value))


def _plain(name: str, value: Any) -> Any:
    """A value as the page's table lists it: shares in percent, missing ones as None."""
    if value is pd.NA:
        return None
    return 100 * value if name in PERCENT and value is not None else value


BEST_COLUMNS = columns_named(["Arm", "Settings"], ["Cells", "Value", "Holm p"]) + [
    Column("Against control", wide=True)
]


def best_rows(compared: pd.DataFrame, controls: pd.DataFrame, feedback: pd.DataFrame) -> list[Row]:
    """Of each arm with several runs the best one, with its p corrected for all of them and its controls beside it.

    Of feedback the best is that of the largest S_overall, and its p that of the difference to base.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in summary_rows(records(compared)):
        if row["role"] in METHODS and known(row["difference"]) and not note(row, "outdated"):
            groups.setdefault(row["arm"], []).append(row)
    over = map_reduce(records(controls), itemgetter("run_id", "task"))
    made = []
    for rows in groups.values():
        if len(rows) > 1:
            best = max(rows, key=itemgetter("difference"))
            text, interval = f"{best['difference'] * 100:+.1f}", bracket(best["diff_low"], best["diff_high"])
            value = Cell(text, best["difference"], interval, TONES[direction(best)])
            control = _control(over.get((best["run_id"], best["task"]), []))
            made.append(_best(best, len(rows), value, best["p_holm"], control))
    current = (row for row in records(feedback) if known(row["s_overall"]) and not note(row, "outdated"))
    by_arm = map_reduce(current, itemgetter("arm"))
    for rows in by_arm.values():
        if len(rows) > 1 and rows[0]["role"] in METHODS:
            best = rows[0]  # they are in this order
            interval = f"[{best['s_overall_low']:.2f}, {best['s_overall_high']:.2f}]"
            value = Cell(f"S {best['s_overall']:.2f}", best["s_overall"], interval)
            made.append(_best(best, len(rows), value, best["s_overall_p_holm"], Cell("")))
    return made


def _best(row: dict[str, Any], cells: int, value: Cell, p: float, control: Cell) -> Row:
    settings = settings_text(row).strip().removeprefix("(").replace(")", "", 1)
    corrected = Cell(p_text(p), p) if known(p) else Cell("")
    first = [Cell(row["title"], row["title"]), Cell(settings, settings), Cell(str(cells), cells)]
    return Row("", row["role"], [*first, value, corrected, control])


def ablation_note(table: pd.DataFrame, varied: list[str]) -> str:
    """How many cells there are, over what, and how many are still missing."""
    status = [row["status"] for row in records(table) if row["metric"] == "acc"]
    gaps = status.count("missing") + status.count("unfinished")
    note = f"{status.count('done'):,} finished rows over {', '.join(varied)}."
    return note + (f" {gaps:,} rows are missing or unfinished: the sweep is incomplete." if gaps else "")
