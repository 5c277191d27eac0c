"""`report --paper`: a store as LaTeX tables, and figures in PDF and SVG, whose captions say all that a reader must know.

Every number is of `compare` and `arms_frame`; nothing is computed here. Benchmarks stand in the order of the
rewiring paper's tables, others after them, then the mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from c3po_bench.analysis.arms import BASE, METHODS, display_name
from c3po_bench.analysis.compare import compare, options_of, trained_on_seeds
from c3po_bench.analysis.frames import MACRO, POOLED, headlines, known, note, records
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.analysis.overall import arms_frame
from c3po_bench.analysis.tables import feedback_note
from c3po_bench.analysis.verdict import direction
from c3po_bench.errors import UserError
from c3po_bench.report import feedback, page
from c3po_bench.report.build import PRINT, wanted_first
from c3po_bench.report.figures import comparison_figures
from c3po_bench.report.marks import Figure
from c3po_bench.store.files import replacing, write_text
from c3po_bench.store.reader import load_experiments, load_runs

ORDER = ("mmlu", "hellaswag", "arc_challenge", "arc_easy", "piqa", "winogrande")
"""Benchmarks as the rewiring paper's tables have them (tables 1 and 2)."""
NAMES = {
    "mmlu": "MMLU",
    "hellaswag": "HellaSwag",
    "arc_challenge": "ARC-C",
    "arc_easy": "ARC-E",
    "piqa": "PIQA",
    "winogrande": "WinoGrande",
    MACRO: "mean",
    POOLED: "all items",
}
ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "×": r"$\times$",
    "“": "``",
    "”": "''",
} | {sign: "\\" + sign for sign in "&%$#_{}"}
MEASURES = (
    ("S$_\\mathrm{in}$", "follows"),
    ("S$_\\mathrm{near}$", "leaks_near"),
    ("S$_\\mathrm{out}$", "leaks_out"),
    ("S$_\\mathrm{overall}$", "s_overall"),
    ("drift", "drift"),
)
PREAMBLE = r"""\documentclass{article}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
"""


def write_paper(
    results_dir: str | Path, output: str | Path | None = None, against: str | None = None
) -> Path:
    """Write tables (.tex, booktabs), figures (.pdf, .svg), `comparison.csv`, and a document that has all of them.

    Returns the folder: `output`, by default `paper` in the store. Differences are to `against`, by default
    base. Raises UserError where nothing has finished, or nothing can be compared with `against`.
    """
    results_dir = Path(results_dir)
    folder = Path(output) if output else results_dir / "paper"
    runs, experiments = load_runs(results_dir), load_experiments(results_dir)
    if not runs:
        raise UserError(f"no run in {results_dir} has finished yet")
    refused: dict[str, str] = {}
    seeds = trained_on_seeds(results_dir)
    compared = compare(
        runs, **options_of(results_dir), refused=refused, against=against or BASE, one_row=seeds
    )
    if not len(compared):
        raise UserError(next(iter(refused.values())))
    commands = [e["command"] for e in experiments] or [run.provenance["command"] for run in runs]
    made = "Made by " + "; ".join(f"\\texttt{{{tex(command)}}}" for command in dict.fromkeys(commands)) + "."
    to = against or BASE
    alike: Any = compared[compared["scope"] == ""]
    parts: list[str] = []
    figures: list[Figure] = []
    if len(alike):
        for name, text in comparison_tables(alike, to, made).items():
            write_text(folder / f"{name}.tex", text)
            parts.append(f"\\input{{{name}.tex}}")
        with replacing(folder / "comparison.csv") as path:
            ordered(wanted_first(alike)).to_csv(path, index=False)
        figures += comparison_figures(ordered(alike), to)
    if len(alike) < len(compared):
        measured = feedback_measures(runs, one_row=seeds)
        arms = arms_frame(runs, measured, against)
        write_text(folder / "feedback.tex", feedback_table(arms, feedback_note(records(measured)), made))
        parts.append("\\input{feedback.tex}")
        figures += feedback.figures(arms)
    for figure in figures:
        _draw(folder, figure)
        caption = f"{tex(figure.caption)} {_counts(alike, figure)}{made}"
        text = f"\\includegraphics[width=\\linewidth]{{{figure.name}.pdf}}\n\\caption{{{caption}}}\n"
        parts.append(f"\\begin{{figure}}\n\\centering\n{text}\\label{{fig:{figure.name}}}\n\\end{{figure}}")
    write_text(folder / "paper.tex", PREAMBLE + "\n".join(parts) + "\n\\end{document}\n")
    return folder


def tex(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows in the paper's order of benchmarks.

    Rows of one benchmark, and what comes before the first, stay.
    """
    tasks = [str(task) for task in frame["task"]]
    place = [ORDER.index(task) if task in ORDER else len(ORDER) for task in tasks]
    first = {"pooled": -2, "macro": -1}
    place = [first.get(level, at) for level, at in zip(frame["level"], place, strict=True)]
    return frame.iloc[sorted(range(len(place)), key=place.__getitem__)]


def comparison_tables(compared: pd.DataFrame, to: str, made: str) -> dict[str, str]:
    """Accuracies and differences, each a table with a row an arm and a column a benchmark."""
    rows = headlines(records(compared))
    present = dict.fromkeys(row["task"] for row in rows)
    last = [name for name in (MACRO, POOLED) if name in present]
    tasks = [task for task in ORDER if task in present]
    tasks += [task for task in present if task not in tasks and task not in last] + last
    cells = {(row["run_id"], row["task"]): row for row in rows}
    arms = list({row["run_id"]: row for row in rows}.values())
    counted = {task: max(row["n"] for row in rows if row["task"] == task) for task in tasks}
    listed = ", ".join(
        f"{tex(NAMES.get(task, task))} {counted[task]:,}" for task in tasks if task not in last
    )
    number = f"$n$ items: {listed}."
    methods = [row for row in arms if row["role"] in METHODS]
    best = {
        task: max(
            (cells[r["run_id"], task]["accuracy"] for r in methods if (r["run_id"], task) in cells),
            default=None,
        )
        for task in tasks
    }
    accuracy, difference = [], []
    for arm in arms:
        own = [cells.get((arm["run_id"], task)) for task in tasks]
        title = tex(display_name(arm))
        values = [_accuracy(row, best[task], arm["role"]) for task, row in zip(tasks, own, strict=True)]
        accuracy.append([title, *values])
        if any(row and known(row["difference"]) for row in own):
            difference.append([title, *map(_difference, own)])
    head = ["arm", *(tex(NAMES.get(task, task)) for task in tasks)]
    tests = _tests(rows)
    star = "$^*$: $p < 0.05$ after Holm's correction, and the interval excludes 0."
    return {
        "accuracy": _table(
            head,
            accuracy,
            "accuracy",
            f"Accuracy in percent with 95\\% intervals over items (Wilson; t for graded scores). Bold: the best "
            f"method of each column. {number} {made}",
        ),
        "difference": _table(
            head,
            difference,
            "difference",
            f"Paired difference to {tex(to)} in percentage points, with 95\\% intervals over items (Tango's score "
            f"interval where scores are right or wrong, else t; MOVER for the mean). {tests} {star} {number} {made}",
        ),
    }


def _tests(rows: Sequence[dict[str, Any]]) -> str:
    kinds = {row["test"] for row in rows if known(row["p"])}
    names = [
        text
        for kind, text in (
            ("mcnemar", "McNemar's mid-$p$"),
            ("sign-flip", "sign flips"),
            ("t", "t over training seeds"),
        )
        if kind in kinds
    ]
    count = max((int(row["tests"]) for row in rows if known(row["tests"])), default=0)
    return f"Tests: {' and '.join(names)}, corrected by Holm over up to {count:,} tests." if names else ""


def _stacked(number: str, low: float, high: float, form: str) -> str:
    if not (known(low) and known(high)) or low == high:
        return number
    bounds = f"[{format(low, form)}, {format(high, form)}]".replace("-", "$-$")
    return f"\\shortstack[r]{{{number}\\\\{{\\scriptsize {bounds}}}}}"


def _accuracy(row: dict[str, Any] | None, best: float | None, role: str) -> str:
    if row is None or not known(row["accuracy"]):
        return "--"
    number = f"{100 * row['accuracy']:.1f}"
    if role in METHODS and row["accuracy"] == best:
        number = f"\\textbf{{{number}}}"
    return _stacked(number, 100 * row["low"], 100 * row["high"], ".1f")


def _difference(row: dict[str, Any] | None) -> str:
    if row is None or not known(row["difference"]):
        return "--"
    star = "$^*$" if direction(row) else ""
    number = f"{100 * row['difference']:+.1f}".replace("-", "$-$") + star
    return _stacked(number, 100 * row["diff_low"], 100 * row["diff_high"], ".1f")


def feedback_table(arms: pd.DataFrame, over: str, made: str) -> str:
    """The feedback paper's table: S in, near, out of scope and overall, and drift, a row an arm."""
    rows = records(arms)
    scores = [row["s_overall"] for row in rows if row["role"] in METHODS and known(row["s_overall"])]
    body = []
    for row in rows:
        cells = [tex(display_name(row))]
        for _, name in MEASURES:
            if not known(row[name]):
                cells.append("--")
                continue
            form = ".3f" if name == "drift" else ".2f"
            number = format(row[name], form).replace("-", "$-$")
            if name == "s_overall" and row["role"] in METHODS and row[name] == max(scores):
                number = f"\\textbf{{{number}}}"
            cells.append(_stacked(number, row[f"{name}_low"], row[f"{name}_high"], form))
        body.append(cells)
    counted = max((int(row["n"]) for row in rows), default=0)
    best = next((row for row in rows if note(row, "to")), None)
    apart = ""
    if best:
        gaps = [
            f"{tex(display_name(row))} {row['gap']:+.2f}, p {row['gap_p_holm']:.2g}".replace("-", "$-$")
            for row in rows
            if known(row["gap"]) and known(row["gap_p_holm"])
        ]
        apart = f" Paired difference in S$_\\mathrm{{overall}}$ to {tex(best['to'])} (sign flips, Holm): {'; '.join(gaps)}."
    caption = (
        "Feedback. S$_\\mathrm{in}$: how far it is followed in scope (higher is better); S$_\\mathrm{near}$ and "
        "S$_\\mathrm{out}$: leaks near and out of scope (lower is better); S$_\\mathrm{overall}$ = (S$_\\mathrm{in}$ + 1 "
        "$-$ (S$_\\mathrm{near}$ + S$_\\mathrm{out}$)/2)/2, 0.5 for base. Drift: KL from base out of scope, nats a token. "
        f"{tex(over[:1].upper() + over[1:])}. $n$: {counted:,} prompts.{apart} {made}"
    )
    return _table(["arm", *(title for title, _ in MEASURES)], body, "feedback", caption)


def _table(head: Sequence[str], body: Sequence[Sequence[str]], label: str, caption: str) -> str:
    lines = [" & ".join(row) + r" \\" for row in (head, *body)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{label}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _counts(alike: pd.DataFrame, figure: Figure) -> str:
    """What a figure's caption says of items and tests beside its own words."""
    rows = headlines(records(alike))
    if figure.group not in ("comparison", "cost") or not rows:
        return ""
    return f"$n$ = {max(row['n'] for row in rows):,} items in all. {_tests(rows)} "


def _draw(folder: Path, figure: Figure) -> None:
    """Write a figure as SVG and PDF."""
    spec = json.dumps(figure.spec(680))
    svg = vl_convert.vegalite_to_svg(spec, vl_version=page.VEGA_LITE, config=PRINT)
    write_text(folder / f"{figure.name}.svg", svg)
    with replacing(folder / f"{figure.name}.pdf") as path:
        path.write_bytes(vl_convert.svg_to_pdf(svg))
