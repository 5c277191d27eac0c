"""`python -m c3po_bench.compare A[:ARM] B[:ARM]`: two runs or logs, ours or other harnesses', item by item.

Nothing of models is loaded.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3po_bench.analysis.matching import compare_runs
from c3po_bench.analysis.statistics import MARGIN
from c3po_bench.analysis.verdict import p_text
from c3po_bench.errors import UserError, exit_status

MOST_FLIPS = 12  # names of items in the console; --json has all


def main(argv: list[str] | None = None) -> int:
    """Compare and show; 2 where the user can mend what is missing, or where no task may be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.compare",
        description="Compare two runs or logs item by item; differences are A - B. Logs of "
        "lm-evaluation-harness, Inspect, lighteval and Every Eval Ever are read, and our runs and stores.",
    )
    parser.add_argument(
        "a", metavar="A[:ARM]", help="a run, a store with the name of an arm, a log or its folder"
    )
    parser.add_argument("b", metavar="B[:ARM]", help="what A is compared with")
    parser.add_argument("--metric", help="by default the first that both have")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--margin", type=float, default=MARGIN, help="of sameness (default: 0.01, one point)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write what is shown as a page")
    parser.add_argument("--json", action="store_true", help="the last line is one object, or a list of them")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> None:
    rows = compare_runs(
        arguments.a, arguments.b, task=arguments.task, metric=arguments.metric, margin=arguments.margin
    )
    console = Console(width=None if sys.stdout.isatty() else 160, record=arguments.html is not None)
    _show(rows, console)
    if arguments.html:
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        console.save_html(str(arguments.html))
    if arguments.json:
        found = [{name: _plain(value) for name, value in row.items()} for row in rows]
        sys.stdout.write(json.dumps(found[0] if len(found) == 1 else found) + "\n")
    if all(row["comparable"] == "refused" for row in rows):
        reasons = dict.fromkeys(f"{row['task']}: {row['reasons'][0]}" for row in rows)
        raise UserError("; ".join(reasons))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table of tasks; then of each what is doubtful, the verdict and the items that changed."""
    caption = (
        "intervals are 95% over items; p: mid-p of McNemar's test, or of sign flips; Holm's over the tasks"
    )
    table = Table(caption=Text(caption), caption_justify="left")
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("shared", "A", "B", "A - B", "95% paired", "p", "Holm p", "better/worse"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    console.print(Text(f"A: {rows[0]['a']}\nB: {rows[0]['b']}"))
    console.print(table)
    for row in rows:
        lines = [
            f"{row['task']}: comparable: {row['comparable']}" + "".join(f"; {why}" for why in row["reasons"])
        ]
        lines += [f"  {row['verdict']}"] if row["comparable"] != "refused" else []
        for way, items in row["flips"].items():
            more = f" and {len(items) - MOST_FLIPS:,} more" if len(items) > MOST_FLIPS else ""
            lines += [f"  {way}: {', '.join(items[:MOST_FLIPS])}{more}"] if items else []
        console.print(Text("\n".join(lines)), soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    shared = f"{row['n']:,} of {row['n_a']:,}, {row['n_b']:,}"
    if row["comparable"] == "refused":
        return [row["task"], row["metric"], shared, *[""] * 6, "refused"]
    interval = "[{:.4g}, {:.4g}]".format(*row["interval"]) if row["interval"] else "no variance"
    over = " §" if row["over"] == "clusters" else ""
    return [
        row["task"],
        row["metric"],
        shared,
        f"{row['mean_a']:.4g}",
        f"{row['mean_b']:.4g}",
        f"{row['difference']:+.4g}",
        interval + over,
        p_text(row["p_value"]),
        p_text(row["p_holm"]),
        f"{row['fixed']}/{row['broken']}",
    ]


if __name__ == "__main__":
    sys.exit(main())
