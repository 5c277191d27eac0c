"""Equal footing: which rows can carry a verdict at all, and what an average over unlike tasks is made of.

A model that answers a task no better than by guessing cannot show there what a method changes, unless an arm
that knows more (a ceiling, an arm that reads labels) shows that it can. Such tasks are shown and say nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c3po_bench.analysis import statistics
from c3po_bench.analysis.arms import BASE
from c3po_bench.analysis.frames import POOLED, known, note

NOMINAL = {
    "arc_challenge": 4,
    "arc_easy": 4,
    "hellaswag": 4,
    "piqa": 2,
    "winogrande": 2,
    "mmlu": 4,
    "facts": 4,
}
"""Options of stock tasks and our facts, for records that do not say how many an item had, by the name's beginning."""
MOST = 0.5  # the share of all items from which on a task is named as what they mostly are


def chance_of(scores: NDArray[np.float64], options: NDArray[np.float64], tasks: NDArray[Any]) -> float:
    """The accuracy that guessing has on these items; NaN where answers are written, graded, or nobody knows.

    Args:
        scores: of the items.
        options: how many choices each has: 0 for a written answer, NaN where its record does not say.
        tasks: of each item, for the number of options that a stock task has.
    """
    if not len(scores) or not statistics.is_binary(scores) or (options == 0).any():
        return float("nan")
    if not np.isnan(options).any():
        return float((1 / options).mean())
    counts = {
        task: next((n for name, n in NOMINAL.items() if task.startswith(name)), np.nan) for task in set(tasks)
    }
    filled = np.where(np.isnan(options), [counts[task] for task in tasks], options)
    return float((1 / filled).mean())


def add_no_verdict(rows: Iterable[dict[str, Any]]) -> None:
    """Put `no_verdict`, a reason, into rows of `compare` on tasks where neither base nor a ceiling is above chance.

    Above chance: the lower bound of the 95% interval is.
    """
    by_task: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault((row["base_run_id"], row["task"]), []).append(row)
    for own in by_task.values():
        knowing = [row for row in own if row["role"] in (BASE, "ceiling") and known(row.get("chance"))]
        base = next((row for row in knowing if row["role"] == BASE), None)
        if base is not None and not any(row["low"] > row["chance"] for row in knowing):
            share = f"{100 * base['accuracy']:.1f}% [{100 * base['low']:.1f}, {100 * base['high']:.1f}]"
            why = f"base is not above chance ({share}, chance {100 * base['chance']:.1f}%)"
            for row in own:
                row["no_verdict"] = why


def mostly(groups: Mapping[str, Sequence[str]], tasks: NDArray[Any]) -> str:
    """The benchmark that makes up most of all items, with its share: "mmlu (92%)".

    Nothing where none does.
    """
    shares = {name: float(np.isin(tasks, own).mean()) for name, own in groups.items()}
    name = max(shares, key=lambda name: shares[name])
    return f"{name} ({shares[name]:.0%})" if shares[name] > MOST else ""


def footing_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a verdict says of what carries none, and of what its average is made of.

    Args:
        rows: of `compare`, those that a verdict speaks of, bases among them.
    """
    silent = {(row["task"], row["no_verdict"]) for row in rows if note(row, "no_verdict")}
    sentences = [f"On {task} {why}, nor is a ceiling: no verdict." for task, why in sorted(silent)]
    made = dict.fromkeys(row["mostly"] for row in rows if note(row, "mostly"))
    return sentences + [f"Of {POOLED} most are {text}." for text in made]


def studies_note(studies: int) -> str:
    """What is said where a store holds more experiments than one: nobody corrects over studies."""
    if studies < 2:
        return ""
    return (
        f"{studies} experiments are in this store: p is corrected for the comparisons of this table, not for having "
        "looked at several tables"
    )
