"""The three W&B tables as typed rows: samples, comparison, ablation.

Every cell is text or a number, never markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from c3po_bench.analysis.compare import COLUMNS, records
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
    "correct": float,  # None where a judge could not score the answer
    "change": str,  # fixed | broken | same, against the base run
    "neighbors": str,
    "loss_first": float,
    "loss_last": float,
    "pathway_change": float,
    "scope": str,
    "response": str,
    "baseline_response": str,
    "score": float,
    "drift": float,
}


@dataclass(frozen=True)
class TypedTable:
    """Columns with their types (str, float or bool; any cell may be None) and the rows."""

    columns: dict[str, type]
    rows: list[list[Any]]


def samples_table(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> TypedTable:
    """One row an item of a run's sample `rows`, with what the rows of its `base` answered."""
    answers = {(r["task"], r["doc_id"]): (_answer(r, r.get("prediction")), score_of(r)) for r in base}
    found = []
    for row in rows[:MOST_ROWS]:
        before, score = answers.get((row["task"], row["doc_id"]), (None, math.nan))
        cells = {name: row.get(name) for name in SAMPLES} | _derived(row)
        cells |= {
            "correct": score_of(row),
            "base_prediction": before,
            "change": _change(score_of(row), score),
        }
        found.append([_cell(cells[name], kind) for name, kind in SAMPLES.items()])
    return TypedTable(SAMPLES, found)


def distributions(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Numbers of the items to draw histograms of.

    Pathway weights before and after, how far they moved, last losses.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        for name in ("pathway_before", "pathway_after"):
            weights = found.setdefault(name, [])
            if len(weights) < MOST_ROWS:
                weights += [w for layer in row.get(name) or [] for w in layer]
        if row.get("pathway_change") is not None:
            found.setdefault("pathway_change", []).append(row["pathway_change"])
        if row.get("losses"):
            found.setdefault("last_loss", []).append(row["losses"][-1])
    return {name: values for name, values in found.items() if values}


def comparison_table(compared: pd.DataFrame) -> TypedTable:
    """The rows of `compare`."""
    kinds = {
        name: str if kind == "str" else bool if kind == "bool" else float for name, kind in COLUMNS.items()
    }
    return TypedTable(kinds, list(_rows(records(compared), kinds)))


def ablation_table(table: pd.DataFrame) -> TypedTable:
    """The rows of the ablation table."""
    kinds: dict[str, type] = {}
    for name, dtype in table.dtypes.items():
        number = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
        kinds[str(name)] = float if number else bool if pd.api.types.is_bool_dtype(dtype) else str
    return TypedTable(kinds, list(_rows(records(table), kinds)))


def _rows(rows: Iterable[Mapping[str, Any]], kinds: Mapping[str, type]) -> Iterator[list[Any]]:
    for row in rows:
        yield [_cell(row[name], kind) for name, kind in kinds.items()]


def _derived(row: Mapping[str, Any]) -> dict[str, Any]:
    choices, losses = row.get("choices"), row.get("losses") or []
    neighbors = row.get("neighbors") or []
    said = [f"{n.get('similarity')}  {n.get('question')}  →  {n.get('answer')}" for n in neighbors]
    return {
        "question": row.get("question") or row.get("prompt"),
        "choices": "\n".join(map(str, choices)) if choices else None,
        "gold": _answer(row, row.get("gold")),
        "prediction": _answer(row, row.get("prediction")),
        "neighbors": "\n".join(said) or None,
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


def _change(score: float, before: float) -> str | None:
    if math.isnan(score - before):
        return None
    return "fixed" if score > before else "broken" if score < before else "same"


def _cell(value: Any, kind: type) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind is str:
        return str(value)[:LONGEST]
    return bool(value) if kind is bool else float(value)
