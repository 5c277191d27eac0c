"""What the console shows: the comparison, feedback by scope, a planted gap, a sweep, a line for each arm."""

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3po_bench.analysis.ablation import axes, shown
from c3po_bench.analysis.arms import BASE, REPEAT, display_name
from c3po_bench.analysis.compare import compare, compare_controls, options_of, trained_on_seeds
from c3po_bench.analysis.footing import studies_note
from c3po_bench.analysis.frames import MACRO, POOLED, headlines, known, note, records
from c3po_bench.analysis.gold import LOST, gold_text
from c3po_bench.analysis.judging import judge_measures, newest_labels
from c3po_bench.analysis.measures import SCOPES, feedback_measures, share_recovered
from c3po_bench.analysis.movement import movement_rows
from c3po_bench.analysis.overall import NONE_JUDGED, conclusion, unjudged_scopes
from c3po_bench.analysis.pairing import run_labels
from c3po_bench.analysis.verdict import amount, bracket, direction, gap_bracket, p_text
from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run, load_experiments, load_headroom, load_runs

OVER = "intervals are 95% over items"
OVER_CLUSTERS = "§ over groups of items that share a source, by t"
OVER_SEEDS = (
    "¶ over training seeds, by t (of two seeds each one's difference); their fixed and broken are summed"
)
NO_VARIANCE = "° no variance: bounds by the rule of three"
WIDE = 110
"""Characters a line from which tables have all of their columns."""
NO_TERMINAL = 160
"""Characters a line where the output is no terminal."""
WIDEST = 145
"""From which the table of movements has all of its."""
NUMBERS = ("n", "accuracy", "95% interval", "difference", "p", "fixed/broken", "p(right)", "s/item")
LEAST_WANTED = ("s/item", "p(right)", "95% interval", "fixed/broken", "n")
"""Columns that are left out, in this order, where names have no room."""
NARROW = ("accuracy", "difference", "p")
FEEDBACK = (
    ("follows", "in", "score"),
    ("leaks near", "near", "score"),
    ("leaks out", "out", "score"),
    ("S overall", "overall", "score"),
    ("drift", "out", "drift"),
    ("repetition", "out", "repetition"),
    ("broken", "out", "broken_ending"),
)
"""Columns of the table of feedback: their names, scopes and measures."""
PARTS = {"overall": ("in", "near", "out")}
"""The scopes that a measure is made of."""
Distance = Callable[[Sequence[Sequence[float]], Sequence[int], str], float]


def show_comparison(
    runs: Sequence[Run], results_dir: str, distance: Distance | None = None, against: str | None = None
) -> None:
    """Print the comparison of an experiment's runs, the verdict, and where the results are.

    Args:
        runs: the experiment's, base first.
        results_dir: its store.
        distance: see `measures.share_recovered`; asked where the planted testbed's optimum was run.
        against: an arm or a run id that the table's differences are to instead of base; the verdict is about
            base.
    """
    seeds, to = trained_on_seeds(results_dir), against or BASE
    options: dict[str, Any] = options_of(results_dir) | {"one_row": seeds}
    frame = compare(runs, **options)
    shown_frame = frame if to == BASE else compare(runs, **options, against=to)
    console = Console(width=None if sys.stdout.isatty() else NO_TERMINAL)
    alike: Any = shown_frame[shown_frame["scope"] == ""]
    if len(alike):
        console.print(console_table(alike, console.width, to))
    if moved := movement_rows(runs, run_labels(runs)):
        console.print(movement_table(moved, console.width))
    if distance is not None and any(run.arm == "planted_optimum" for run in runs):
        console.print(gap_table(share_recovered(runs, distance), console.width))
    if any(frame["scope"]):
        console.print(feedback_table(runs, console.width, one_row=seeds))
        if len(judges := judge_measures(runs, newest_labels(results_dir))):
            console.print(judge_table(judges))
    report = f"python -m c3po_bench.report {shlex.quote(results_dir)}"
    headroom = load_headroom(results_dir, runs)
    sentences = conclusion(results_dir, runs, frame, compare_controls(runs))
    console.print(" ".join(sentences), highlight=False, markup=False)
    if headroom:
        console.print(f"headroom: {' '.join(headroom['sentences'])}", highlight=False, markup=False)
    if studies := studies_note(len(load_experiments(results_dir))):
        console.print(studies, highlight=False, markup=False)
    console.print(f"results: {results_dir}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report:  {report}", highlight=False, markup=False, soft_wrap=True)


def show_store(results_dir: str, against: str | None = None) -> None:
    """Print what an experiment's end prints, of all runs of a store.

    Raises UserError where there is no store, nothing has finished in it, or nothing stands beside `against`.
    """
    runs = load_runs(results_dir)
    if not runs:
        raise UserError(f"no run in {results_dir} has finished yet; run its experiment again")
    show_comparison(runs, results_dir, against=against)


def _table(names: Sequence[str], numbers: Sequence[str], title: str = "", caption: str = "") -> Table:
    """An empty table with columns for `names` and, to the right, `numbers`."""
    table = Table(title=title or None, caption=Text(caption) if caption else None, caption_justify="left")
    for name in names:  # these are folded where there is little room, numbers never
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def console_table(frame: pd.DataFrame, width: int = NO_TERMINAL, to: str = BASE) -> Table:
    """A rich table of the rows of `compare`; accuracies in percent, differences in percentage points.

    Below WIDE characters it has the columns that matter most, and above as many as leave names their room;
    none is cut.

    ``*`` marks what the verdict calls a gain or a loss, ``†`` arms that by nature change
    the prompt. Names come from the store and are shown as they are, never read as markup.
    """
    every = records(frame)
    rows = headlines(every)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    hidden = len({row["task"] for row in every}) - len(tasks)
    old = {row["label"]: row["outdated"] for row in every if note(row, "outdated")}
    marks = [
        (to != BASE, f"differences are to {to}"),
        (any(map(direction, rows)), "* below 0.05 after Holm's correction"),
        (any(row["prompt_differs"] for row in rows), "† its prompt is not the base's"),
        (
            any(row["test"] == "sign-flip" for row in rows),
            "‡ sign-flip test (scores that are not 0/1, or items that share a source)",
        ),
        (old, "left out: " + ", ".join(f"{name} ({why})" for name, why in old.items())),
        (
            any(note(row, "no_verdict") for row in rows),
            "~ base is not above chance, nor a ceiling: no verdict",
        ),
        (hidden, f"{hidden} tasks of these benchmarks one by one: in the report"),
        (True, OVER),
        (any("clusters" in row["over"] for row in rows), OVER_CLUSTERS),
        (any(row["over"] == "seeds" for row in rows), OVER_SEEDS),
    ]
    golden = any(known(row.get("gold_difference")) for row in rows)
    numbers = [n for n in NUMBERS if (width >= WIDE or n in NARROW) and (golden or n != "p(right)")]
    numbers = _fitting(numbers, list(map(cells, rows)), width - (max(map(len, tasks)) + 3) * (len(tasks) > 1))
    golden = golden and "p(right)" in numbers
    marks += [
        (golden, "p(right): change of the right choice's probability, t interval, sign flips"),
        (
            any(note(row, "gold_note") for row in rows),
            f"the right choice's probability is {LOST} where records lack it",
        ),
    ]
    marks.append(("s/item" in numbers, "s/item: without what is done once (references, training)"))
    noisy = [row for row in rows if known(row.get("noise_floor")) and row.get("role") == REPEAT]
    if noisy:
        floor = f"{100 * max(row['noise_floor'] for row in noisy):.1f}"
        marks.append((True, f"noise floor by {noisy[0]['label']}: {floor} points"))
    several = len(tasks) > 1
    table = _table(
        ["task"] * (several and width >= WIDE) + ["arm"],
        numbers,
        caption="; ".join(text for occurs, text in marks if occurs),
    )
    for task in tasks:
        for place, row in enumerate(row for row in rows if row["task"] == task):
            named = f"{task}, most {row['mostly']}" if note(row, "mostly") else task
            if several and width < WIDE and place == 0:
                table.add_row(Text(named, style="bold"))
            heading = [named if place == 0 else ""] * (several and width >= WIDE)
            texts = cells(row)
            table.add_row(*map(Text, [*heading, *(texts[name] for name in ("arm", *numbers))]))
        table.add_section()
    return table


def _fitting(numbers: list[str], rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """The columns of `numbers` that leave names their room in `width` characters.

    Those of NARROW in any case.
    """

    def room(name: str) -> int:
        return max([len(name), *(len(row[name]) for row in rows)]) + 3

    kept = list(numbers)
    for name in LEAST_WANTED:
        if sum(map(room, ["arm", *kept])) + 1 > width and name in kept:
            kept.remove(name)
    return kept


def cells(row: dict[str, Any]) -> dict[str, str]:
    """One row's cells as text by column, empty where a number does not apply."""
    compared, tested, judged = known(row["difference"]), known(row["p"]), known(row["accuracy"])
    star = "*" if tested and direction(row) else ""
    shared = " §" if "clusters" in row["over"] else " ¶" if row["over"] == "seeds" else ""
    kind = " ‡" if row["test"] == "sign-flip" else ""
    chance = " ~" if note(row, "no_verdict") else ""
    bounds = judged and (row["over"] != "seeds" or known(row["low"]))
    return {
        "arm": row["label"] + (" †" if row["prompt_differs"] else ""),
        "n": str(row["n"]),
        "accuracy": f"{row['accuracy'] * 100:.1f}%{chance}" if judged else "none judged",
        "95% interval": bracket(row["low"], row["high"]) if bounds else "",
        "difference": f"{row['difference'] * 100:+.1f} {gap_bracket(row)}{shared}" if compared else "",
        "p": f"{p_text(row['p'])}{star}{kind}" if tested else "",
        "fixed/broken": f"{row['fixed']}/{row['broken']}" if tested else "",
        "p(right)": gold_text(row) if compared else "",
        "s/item": amount(row["seconds_per_item"]) if known(row["seconds_per_item"]) else "",
    }


def feedback_table(runs: Sequence[Run], width: int = WIDE, one_row: bool = False) -> Table:
    """The paper's table: a row an arm, how far it follows the feedback and where it leaks, the best S_overall first.

    Drift, repetition and broken endings are of answers out of scope, where nothing should change. Below WIDE
    characters intervals stand under their numbers, and the last columns are left out. `one_row`: training
    seeds are one row.
    """
    measured = records(feedback_measures(runs, one_row=one_row))
    rows: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in measured:
        rows.setdefault(row["run_id"], {})[row["scope"], row["measure"]] = row
    columns = FEEDBACK if width >= WIDE else FEEDBACK[:4]
    caption = f"follows: 1 is all; leaks: 0 is none; S overall: base 0.5, best 1; {feedback_note(measured)}"
    table = _table(["arm"], [name for name, *_ in columns], caption=caption)

    def place(values: dict[tuple[str, str], dict[str, Any]]) -> tuple[bool, float]:
        first, overall = next(iter(values.values())), values.get(("overall", "score"))
        return first["arm"] != BASE, -overall["mean"] if overall else 0.0

    unjudged = {run.run_id: unjudged_scopes(run) for run in runs}
    for name, values in sorted(rows.items(), key=lambda pair: place(pair[1])):
        texts = [
            NONE_JUDGED
            if (scope, measure) not in values
            and measure == "score"
            and unjudged.get(name, set()) & {scope, *PARTS.get(scope, ())}
            else _measure(values.get((scope, measure)))
            for _, scope, measure in columns
        ]
        if width < WIDE:
            texts = [text.replace(" [", "\n[", 1) for text in texts]
        table.add_row(Text(display_name(next(iter(values.values())))), *texts)
    return table


def feedback_note(rows: Sequence[dict[str, Any]]) -> str:
    """What the intervals of feedback measures generalize over, and what their signs mean."""
    over = " or ".join(dict.fromkeys(row["over"] for row in rows))
    return f"brackets: 95% over {over}" + ("" if all(row["varies"] for row in rows) else f"; {NO_VARIANCE}")


def measure_interval(row: dict[str, Any]) -> str:
    """The interval of a feedback measure in brackets, empty where there is none or nothing could vary."""
    digits = 3 if row["measure"] == "drift" else 2
    if not known(row["low"]) or row["low"] == row["high"]:
        return ""
    return f"[{row['low']:.{digits}f}, {row['high']:.{digits}f}]" + (" °" if not row["varies"] else "")


def _measure(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    digits = 3 if row["measure"] == "drift" else 2
    text = f"{row['mean']:.{digits}f}"
    return f"{text} {measure_interval(row)}".strip() if row["measure"] in ("score", "drift") else text


def judge_table(frame: pd.DataFrame) -> Table:
    """What is known of a model that judged: its errors against rules, and what corrects for them."""
    caption = (
        "judged: share that follows or leaks; corrected for sensitivity and specificity against rules "
        "(Rogan and Gladen); "
        "by people: mean of all answers by those that people scored (PPI++); 95%"
    )
    numbers = ("n", "judged", "sensitivity", "specificity", "corrected", "by people")
    table = _table(["arm", "scope"], numbers, title="the judge", caption=caption)
    for row in records(frame):
        texts = [
            display_name(row),
            SCOPES.get(row["scope"], row["scope"]),
            str(row["n"]),
            f"{row['judged']:.2f}",
        ]
        texts += [_number(row[name], "{:.2f}") for name in ("sensitivity", "specificity")]
        for name in ("corrected", "estimate"):
            interval = (
                f" [{row[name + '_low']:.2f}, {row[name + '_high']:.2f}]" if known(row[name + "_low"]) else ""
            )
            texts.append(_number(row[name], "{:.2f}") + interval)
        table.add_row(*map(Text, texts))
    return table


def movement_table(rows: Sequence[dict[str, Any]], width: int = WIDEST) -> Table:
    """How far each arm moved pathways, of `movement_rows`; means over items and critical layers.

    Below WIDEST characters it has the distances alone.
    """
    numbers = (
        "moved",
        "natural spread",
        "times",
        "own top-k kept",
        "weight",
        "entropy",
        "loss",
        "similarity",
    )
    caption = "moved: share of the routing weight; natural spread: the same between two items' own pathways"
    if width >= WIDEST:
        caption += "; weight (of the experts that run), entropy and the loss that it lowers: before → after"
    shown = len(numbers) if width >= WIDEST else numbers.index("weight")
    table = _table(["arm"], numbers[:shown], title="how far pathways are moved", caption=caption)
    for row in rows:
        table.add_row(*map(Text, [display_name(row), *movement_cells(row)[:shown]]))
    return table


def movement_cells(row: dict[str, Any]) -> list[str]:
    """The numbers of a row of `movement_rows` as text."""
    times = "hardly moved" if row["still"] else _number(row["times"], "{:.3g}")
    pairs = (("mass_before", "mass_after"), ("entropy_before", "entropy_after"), ("loss_first", "loss_last"))
    return [
        f"{row['moved']:.3f}",
        _number(row["natural_spread"], "{:.3f}"),
        times,
        f"{row['kept'] * 100:.0f}%",
        *(f"{row[a]:.2f} → {row[b]:.2f}" if known(row[a]) else "" for a, b in pairs),
        _number(row["similarity"], "{:.2f}"),
    ]


def gap_table(frame: pd.DataFrame, width: int = WIDE) -> Table:
    """The shares of a planted gap that arms recover, of `share_recovered`.

    Below WIDE characters nothing beside them.
    """
    names = ("n", "accuracy", "share", "95% interval", "distance to planted")
    numbers = names if width >= WIDE else names[2:4]
    table = _table(["arm"], numbers, title="share of the planted gap recovered")
    for row in frame.to_dict("records"):
        far = "" if np.isnan(row["distance"]) else f"{row['distance']:.3f}"
        share = "" if np.isnan(row["share"]) else f"{row['share']:.2f}"
        interval = "" if np.isnan(row["low"]) else f"[{row['low']:.2f}, {row['high']:.2f}]"
        texts = dict(zip(names, (str(row["n"]), f"{row['accuracy']:.3f}", share, interval, far), strict=True))
        table.add_row(*map(Text, (row["arm"], *(texts[name] for name in numbers))))
    return table


def overall_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Of an ablation table, the row of each run's accuracy over all its tasks.

    Where a run has no such row, there is one for each task; the tasks of one benchmark count as one.
    """
    rows: Any = frame[(frame["metric"] == "acc") & (frame["group"].fillna("") == "")]
    for overall in (MACRO, POOLED):
        summed_up = rows["run_id"].isin(rows.loc[rows["task"] == overall, "run_id"])
        rows = rows[~summed_up | (rows["task"] == overall)]
    return rows[rows["run_id"].notna() | rows["task"].isin(rows.loc[rows["run_id"].notna(), "task"])]


def sweep_table(frame: pd.DataFrame, width: int = NO_TERMINAL) -> Table:
    """A row for each run (see `overall_rows`), with settings that vary, and the task if there are several.

    Below WIDE characters it has accuracies, differences and p alone.
    """
    varied, chosen = axes(frame), overall_rows(frame)
    tasks = list(dict.fromkeys(chosen["task"].dropna()))
    named = [*varied, *(["task"] if len(tasks) > 1 else [])]
    caption = f"accuracy: {tasks[0]}" if len(tasks) == 1 else "accuracy"
    names = ("n", "accuracy", "difference", "95% paired", "p", "s/item")
    numbers = names if width >= WIDE else names[1:5]
    table = _table([*named, "arm"], numbers, caption=caption)
    for row in shown(chosen, varied):
        interval = bracket(row["diff_low"], row["diff_high"]) if known(row["diff_low"]) else ""
        heading = [str(row[name]) if known(row[name]) else "" for name in named] + [row["arm"]]
        texts = [_number(row["n"], "{:.0f}"), _number(row["value"], "{:.1%}")]
        texts += [_number(row["difference"] * 100, "{:+.1f}"), interval]
        texts += [p_text(row["p"]) if known(row["p"]) else ""]
        texts += [amount(row["seconds_per_item"]) if known(row["seconds_per_item"]) else ""]
        shown_texts = dict(zip(names, texts, strict=True))
        table.add_row(*map(Text, [*heading, *(shown_texts[name] for name in numbers)]))
    return table


def _number(value: Any, form: str) -> str:
    return form.format(value) if known(value) else ""
