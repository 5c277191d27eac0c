"""The three W&B tables as typed rows: samples, comparison, ablation.

Every cell is text or a number, never markup.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from c3po_bench.analysis.frames import records
from c3po_bench.analysis.overall import LEAK
from c3po_bench.analysis.scores import score_of

LONGEST = 2000  # characters of a cell
MOST_ROWS = 200_000  # W&B's limit for one table
SAMPLES: dict[str, type] = {
    "task": str,
    "doc_id": float,
    "question": str,
    "choices": str,
    "gold": str,
    "base_prediction": str,
    "prediction": str,
    "correct": float,
    "p_gold": float,  # the right choice's probability
    "change": str,  # fixed | broken | same, against the base run; of feedback follows, leaks or neither
    "neighbors": str,
    "loss_first": float,
    "loss_last": float,
    "pathway_change": float,
    "scope": str,
    "response": str,
    "baseline_response": str,
    "score": float,  # None where a judge could not score the answer
    "drift": float,
}
FEEDBACK = ("scope", "response", "baseline_response", "score", "drift")
ANSWERS = ("choices", "gold", "base_prediction", "prediction", "correct", "p_gold", "neighbors", "loss_first")
ANSWERS += ("loss_last", "pathway_change")
"""Columns that rows without, and with a scope, have nothing in."""


@dataclass(frozen=True)
class TypedTable:
    """Columns with their types (str, float or bool; any cell may be None) and the rows."""

    columns: dict[str, type]
    rows: list[list[Any]]


def samples_table(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> TypedTable:
    """One row an item of a run's sample `rows`, with what the rows of its `base` answered.

    Tables of feedback lack the columns of other items, and these those of feedback.
    """
    scoped = {bool(row.get("scope")) for row in rows} or {False}
    without = {*(FEEDBACK if True not in scoped else ()), *(ANSWERS if False not in scoped else ())}
    columns = {name: kind for name, kind in SAMPLES.items() if name not in without}
    answers = {(r["task"], r["doc_id"]): (_answer(r, r.get("prediction")), score_of(r)) for r in base}
    table = []
    for row in rows[:MOST_ROWS]:
        before, score = answers.get((row["task"], row["doc_id"]), (None, math.nan))
        cells = {name: row.get(name) for name in SAMPLES} | _derived(row)
        change = _change(score_of(row), score, row.get("scope"))
        cells |= {"correct": score_of(row), "base_prediction": before, "change": change}
        table.append([_cell(cells[name], kind) for name, kind in columns.items()])
    return TypedTable(columns, table)


def distributions(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Numbers of the items to draw histograms of.

    Pathway weights before and after, how far they moved, last losses.
    """
    numbers: dict[str, list[float]] = {
        "pathway_before": [],
        "pathway_after": [],
        "pathway_change": [],
        "last_loss": [],
    }
    for row in rows:
        for name in ("pathway_before", "pathway_after"):
            if len(numbers[name]) < MOST_ROWS:
                numbers[name] += [weight for layer in row.get(name) or [] for weight in layer]
        if row.get("pathway_change") is not None:
            numbers["pathway_change"].append(row["pathway_change"])
        numbers["last_loss"] += (row.get("losses") or [])[-1:]
    return {name: values for name, values in numbers.items() if values}


def frame_table(frame: pd.DataFrame) -> TypedTable:
    """The rows of a frame, its columns typed as they are there."""
    kinds: dict[str, type] = {}
    for name, dtype in frame.dtypes.items():
        flag, number = pd.api.types.is_bool_dtype(dtype), pd.api.types.is_numeric_dtype(dtype)
        kinds[str(name)] = bool if flag else float if number else str
    rows = [[_cell(row[name], kind) for name, kind in kinds.items()] for row in records(frame)]
    return TypedTable(kinds, rows)


def setting_key(name: str) -> str:
    """A setting's name in a W&B run's config, in whose paths a dot is a step down."""
    return name.replace(".", "_")


def _derived(row: Mapping[str, Any]) -> dict[str, Any]:
    choices, losses = row.get("choices"), row.get("losses") or []
    neighbors = row.get("neighbors") or []
    lines = [f"{n['similarity']}  {n['question']}  →  {n['answer']}" for n in neighbors]
    return {
        "question": row.get("question") or row.get("prompt"),
        "choices": "\n".join(map(str, choices)) if choices else None,
        "gold": _answer(row, row.get("gold")),
        "prediction": _answer(row, row.get("prediction")),
        "neighbors": "\n".join(lines) or None,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
    }


def _answer(row: Mapping[str, Any], answer: Any) -> str | None:
    """An answer as text: the choice it points at, or what it says."""
    choices = row.get("choices")
    if answer is None:
        return None
    if choices and isinstance(answer, int) and 0 <= answer < len(choices):
        return str(choices[answer])
    return str(answer)


def _change(score: float, before: float, scope: str | None) -> str | None:
    if math.isnan(score - before):
        return None
    if scope == "in":
        return "follows" if score >= LEAK else "goes against it" if score <= -LEAK else "does not follow"
    if scope:
        return "leaks" if abs(score) >= LEAK else "no leak"
    return "fixed" if score > before else "broken" if score < before else "same"


def _cell(value: Any, kind: type) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind is str:
        return str(value)[:LONGEST]
    return bool(value) if kind is bool else float(value)
