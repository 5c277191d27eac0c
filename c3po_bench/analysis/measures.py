"""Feedback arms by scope.

How far they follow, and what rules miss (drift, repetition, broken endings, length).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3po_bench.analysis import paired
from c3po_bench.analysis.compare import records
from c3po_bench.analysis.pairing import Partners, run_labels
from c3po_bench.analysis.roles import BASE, title
from c3po_bench.analysis.scores import MIN_CLUSTERS

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

SCOPES = {"in": "in scope", "near": "near scope", "out": "out of scope", "overall": "overall"}
MEASURES = ("score", "drift", "similarity", "repetition", "broken_ending", "length_ratio")
COLUMNS = (
    "arm",
    "label",
    "run_id",
    "scope",
    "feedback",
    "measure",
    "n",
    "mean",
    "low",
    "high",
    "against",
    "difference",
    "diff_low",
    "diff_high",
)

Key = tuple[str, Any, Any]  # task, doc_id and doc_hash


def feedback_measures(
    runs: Sequence[Run],
    against: str = BASE,
    *,
    pieces: bool = False,
    draws: int = paired.DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure of every scope by run, with its difference to the run `against` over the same prompts.

    `score` is S_in (signed), S_near and S_out (absolute) in the scopes, the mean over feedbacks of their
    prompts' means, and S_overall = (S_in + 1 - (S_near + S_out) / 2) / 2 (RLVF, section 5) in the row
    `overall`; other measures are means over prompts. Intervals are bootstrap intervals over prompts, over
    feedbacks where there are ten or more. With `pieces`, also one row a feedback (column `feedback`).

    Args:
        runs: of one store.
        against: an arm, or a run id.
        pieces: whether to add the rows by feedback.
        draws: resamples.
        seed: of the resamples.

    Raises:
        UserError: where several runs of the arm `against` could be meant.
    """
    labels, partners = run_labels(runs), Partners(runs)
    rows = {run.run_id: _by_scope(run) for run in runs}
    found: list[dict[str, Any]] = []
    for run in runs:
        own, other = rows[run.run_id], {}
        if (beside := partners.beside(run, against)) is not None:
            other = rows[beside.run_id]
        names = (
            sorted({str(r.get("feedback_id")) for items in own.values() for r in items.values()})
            if pieces
            else []
        )
        common = {"arm": run.arm, "label": labels[run.run_id], "run_id": run.run_id, "against": against}
        for feedback in ["", *names]:
            one, two = _only(own, feedback), _only(other, feedback)
            measured = _measured(one, two, draws=draws, seed=seed)
            found += [common | {"feedback": feedback} | row for row in measured]
    return pd.DataFrame(found, columns=list(COLUMNS))


def feedback_table(runs: Sequence[Run]) -> Table:
    """The measures as the console shows them: a row an arm and scope, intervals at 95%."""
    table = Table(
        caption=Text("brackets: 95% over prompts, or over feedbacks where there are ten or more"),
        caption_justify="left",
    )
    table.add_column("arm", no_wrap=True)
    table.add_column("scope", no_wrap=True)
    for name in ("S", "drift", "similarity", "repetition", "broken", "length"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = records(feedback_measures(runs))
    for run_id in dict.fromkeys(row["run_id"] for row in rows):
        own = [row for row in rows if row["run_id"] == run_id]
        for scope in dict.fromkeys(row["scope"] for row in own):
            values = {row["measure"]: row for row in own if row["scope"] == scope}
            name = (
                title(own[0]["arm"]) + own[0]["label"][len(own[0]["arm"]) :]
                if scope == own[0]["scope"]
                else ""
            )
            table.add_row(Text(name), SCOPES.get(scope, scope), *(_shown(values.get(m), m) for m in MEASURES))
        table.add_section()
    return table


def feedback_text(runs: Sequence[Run], width: int = 160) -> str:
    """The same as plain text."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(feedback_table(runs))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _shown(row: dict[str, Any] | None, measure: str) -> str:
    if row is None:
        return ""
    digits = 3 if measure == "drift" else 2
    interval = (
        f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]" if measure in ("score", "drift") else ""
    )
    return f"{row['mean']:.{digits}f}{interval}"


def _by_scope(run: Run) -> dict[str, dict[Key, dict[str, Any]]]:
    scopes: dict[str, dict[Key, dict[str, Any]]] = {}
    for row in run.samples():
        if row.get("scope"):
            flat = row | (row.get("degeneration") or {})
            signed = row.get("score", row["correct"])  # None: a judgement that could not be had
            flat["score"] = signed if signed is None or row["scope"] == "in" else abs(signed)
            scopes.setdefault(row["scope"], {})[row["task"], row["doc_id"], row.get("doc_hash")] = flat
    return {scope: scopes[scope] for scope in SCOPES if scope in scopes}


def _only(
    scopes: dict[str, dict[Key, dict[str, Any]]], feedback: str
) -> dict[str, dict[Key, dict[str, Any]]]:
    if not feedback:
        return scopes
    return {
        s: {k: r for k, r in rows.items() if str(r.get("feedback_id")) == feedback}
        for s, rows in scopes.items()
    }


def _measured(
    own: dict[str, dict[Key, dict[str, Any]]],
    other: dict[str, dict[Key, dict[str, Any]]],
    *,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    drawn: dict[str, tuple[float, np.ndarray]] = {}
    changed: dict[str, tuple[float, np.ndarray]] = {}
    names = sorted({_feedback(row) for rows in own.values() for row in rows.values()}) or [""]
    weights = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=draws
    )
    for place, (scope, rows) in enumerate(own.items()):
        for measure in MEASURES:
            keys = [key for key, row in rows.items() if _number(row.get(measure))]
            if not keys:
                continue
            values = np.array([float(rows[key][measure]) for key in keys])
            whose = np.searchsorted(names, [_feedback(rows[key]) for key in keys])
            values *= _shares(whose) if measure == "score" else 1.0
            means = _means(values, whose, weights, (seed, place))
            row = {"scope": scope, "measure": measure, "n": len(keys), "mean": float(values.mean())}
            row |= _bounds("low", "high", row["mean"], means)
            theirs = other.get(scope) or {}
            both = np.array([_number(theirs[key].get(measure)) if key in theirs else False for key in keys])
            if both.any() and all(key in theirs for key in keys):
                shared = [key for key, one in zip(keys, both, strict=True) if one]
                gap = np.array([float(rows[key][measure]) - float(theirs[key][measure]) for key in shared])
                gap *= _shares(whose[both]) if measure == "score" else 1.0
                moved = _means(gap, whose[both], weights, (seed, place))
                row |= {"difference": float(gap.mean())} | _bounds(
                    "diff_low", "diff_high", float(gap.mean()), moved
                )
                if measure == "score":
                    changed[scope] = (float(gap.mean()), moved)
            if measure == "score":
                drawn[scope] = (row["mean"], means)
            found.append(row)
    if drawn.keys() >= {"in", "near", "out"}:
        value, means = _overall(drawn, 1.0)
        scored = sum(row["n"] for row in found if row["measure"] == "score")
        row = {"scope": "overall", "measure": "score", "n": scored, "mean": value}
        row |= _bounds("low", "high", value, means)
        if changed.keys() >= {"in", "near", "out"}:
            gap, moved = _overall(changed, 0.0)
            row |= {"difference": gap} | _bounds("diff_low", "diff_high", gap, moved)
        found.append(row)
    return found


def _shares(whose: np.ndarray) -> np.ndarray:
    """What each prompt's value counts, so that their mean is the mean over feedbacks of the means over prompts."""
    counts = np.bincount(whose)
    return len(whose) / (np.count_nonzero(counts) * counts[whose])


def _overall(scopes: dict[str, tuple[float, np.ndarray]], one: float) -> tuple[float, np.ndarray]:
    """S_overall of three scores and their bootstrap means.

    With `one` = 0, the difference of two S_overall.
    """
    (a, drawn_a), (b, drawn_b), (c, drawn_c) = (scopes[s] for s in ("in", "near", "out"))
    return (a + one - (b + c) / 2) / 2, (drawn_a + one - (drawn_b + drawn_c) / 2) / 2


def _bounds(low: str, high: str, value: float, means: np.ndarray) -> dict[str, Any]:
    interval = paired.percentile_interval(value, means)
    return {low: interval.low, high: interval.high}


def _means(values: np.ndarray, whose: np.ndarray, weights: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """Bootstrap means over prompts, or, of ten feedbacks or more, over feedbacks.

    `weights` says how often each feedback is drawn: ``[draws, feedbacks]``, the same for all scopes and
    measures.
    """
    if len(set(whose)) < MIN_CLUSTERS:
        return paired.bootstrap_means(values, draws=len(weights), seed=seed)
    sums = weights @ np.bincount(whose, weights=values, minlength=weights.shape[1])
    return sums / np.maximum(1, weights @ np.bincount(whose, minlength=weights.shape[1]))


def _feedback(row: dict[str, Any]) -> str:
    return str(row.get("feedback_id"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
