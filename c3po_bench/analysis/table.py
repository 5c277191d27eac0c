"""The comparison as the console shows it at the end of a run."""

from __future__ import annotations

import io
import math
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3po_bench.analysis.compare import compare, headlines, records
from c3po_bench.analysis.controls import compare_controls
from c3po_bench.analysis.gap import gap_table, share_recovered
from c3po_bench.analysis.measures import feedback_table
from c3po_bench.analysis.verdict import WHERE, amount, bracket, p_text, verdict

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run


def show_comparison(runs: Sequence[Run], results_dir: str) -> None:
    """Print the comparison of an experiment's runs, the verdict, and where the results are."""
    frame = compare(runs)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(console_table(frame))
    if any(run.arm == "planted_optimum" for run in runs):
        console.print(gap_table(share_recovered(runs)))
    if any(frame["scope"]):
        console.print(feedback_table(runs))
    report = f"python -m c3po_bench.report {shlex.quote(results_dir)}"
    console.print(verdict(frame, compare_controls(runs)), highlight=False, markup=False)
    console.print(f"results: {results_dir}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report:  {report}", highlight=False, markup=False, soft_wrap=True)


def console_table(frame: pd.DataFrame, title: str = "") -> Table:
    """A rich table of the rows of `compare`; accuracies in percent, differences in percentage points.

    ``*`` marks differences that stay below 0.05 after Holm's correction, ``†`` arms that by nature change the
    prompt. Names come from the store and are shown as they are, never read as markup.
    """
    every = records(frame)
    rows = headlines(every)
    several = len({row["task"] for row in rows}) > 1
    table = Table(title=Text(title) if title else None, title_justify="left", caption_justify="left")
    for name in ["task"] * several + ["arm"]:
        table.add_column(name, no_wrap=True)
    numbers = (
        "n",
        "accuracy",
        "95% interval",
        "difference",
        "95% paired",
        "McNemar p",
        "fixed/broken",
        "s/item",
    )
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for task in dict.fromkeys(row["task"] for row in rows):
        for position, row in enumerate(r for r in rows if r["task"] == task):
            name = [Text(task if position == 0 else "")] * several
            table.add_row(*name, *(Text(cell) for cell in cells(row)))
        table.add_section()
    marks = []
    if any(row["p_holm"] < 0.05 for row in rows):
        marks.append("* below 0.05 after Holm's correction")
    if any(row["prompt_differs"] for row in rows):
        marks.append("† its prompt is not the base's")
    if any(row["test"] == "sign-flip" for row in rows):
        marks.append("‡ sign-flip test (scores that are not 0/1, or items that share a source)")
    hidden = len({row["task"] for row in every}) - len({row["task"] for row in rows})
    if hidden:
        marks.append(f"{hidden} tasks of these benchmarks one by one: in the report")
    table.caption = Text("; ".join(marks)) if marks else None
    return table


def cells(row: dict[str, Any]) -> list[str]:
    """One row's cells as text, in the table's order, empty where a number does not apply."""
    compared = not math.isnan(row["difference"])
    name = row["label"] + (" †" if row["prompt_differs"] else "")
    tested = not math.isnan(row["p"])
    star = "*" if row["p_holm"] < 0.05 else ""
    kind = " ‡" if row["test"] == "sign-flip" else ""
    return [
        name,
        str(row["n"]),
        f"{row['accuracy'] * 100:.1f}%",
        bracket(row["low"], row["high"]),
        f"{row['difference'] * 100:+.1f}" if compared else "",
        bracket(row["diff_low"], row["diff_high"]) if compared else "",
        f"{p_text(row['p'])}{star}{kind}" if tested else "",
        f"{row['fixed']}/{row['broken']}" if tested else "",
        "" if math.isnan(row["seconds_per_item"]) else amount(row["seconds_per_item"]),
    ]


def live_line(run: Run, base: Run) -> str:
    """One finished run against its base in a line, for the log while other arms still run.

    Empty for a base itself.
    """
    if run.run_id == base.run_id:
        return ""
    rows = [
        row for row in headlines(records(compare([base, run], draws=2000))) if row["run_id"] == run.run_id
    ]
    row = next((r for r in rows if r["level"] == "pooled"), rows[0])
    interval = bracket(row["diff_low"], row["diff_high"])
    changed = f"{row['fixed']} fixed, {row['broken']} broken"
    where = f" {WHERE.get(row['scope'], row['scope'])}" if row["scope"] else ""
    return f"{row['label']} against base{where}: {row['difference'] * 100:+.1f} points {interval}, {changed}"


def table_text(frame: pd.DataFrame, width: int = 160) -> str:
    """The same as plain text, for logs and files."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(console_table(frame))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
