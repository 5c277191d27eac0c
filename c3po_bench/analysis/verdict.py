"""What a comparison says, in plain sentences: for the top of the report and of the console's table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from c3po_bench.analysis.compare import records
from c3po_bench.analysis.power import ALPHA
from c3po_bench.analysis.roles import CONTROLS, role, title

WHERE = {"in": "in scope", "near": "near scope", "out": "out of scope"}
MOST = 6  # sentences about methods before the rest is only counted
MANY = 3  # settings of one arm told one by one; more are summed up


def points(value: float) -> str:
    """A difference of accuracies in percentage points, one decimal, without a signed zero."""
    return f"{abs(value) * 100:.1f}"


def bracket(low: float, high: float) -> str:
    """An interval of accuracies in percentage points."""
    return f"[{low * 100:.1f}, {high * 100:.1f}]"


def direction(row: dict[str, Any]) -> int:
    """1 where a difference is shown to be above 0, -1 below, 0 where neither: interval and p must agree."""
    if row["p"] >= ALPHA:
        return 0
    return int(row["diff_low"] > 0) - int(row["diff_high"] < 0)


def verdict(frame: pd.DataFrame) -> str:
    """Plain words over the rows of `compare`: what beat its base, what did not, what its controls say."""
    if frame.empty:
        return "Nothing to compare yet: no finished run has a base run beside it."
    rows = records(frame)
    sentences = _feedback([r for r in rows if r["scope"]]) + _accuracy(summary_rows(rows))
    return " ".join(sentences) or "Only the base has been run: there is nothing to compare it with."


def summary_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row that speaks for each run: over all items where it has several alike tasks, else its task."""
    several = {r["run_id"] for r in rows if r["level"] == "pooled"}
    alike = [r for r in rows if not r["scope"]]
    return [r for r in alike if r["level"] == ("pooled" if r["run_id"] in several else "task")]


def _accuracy(rows: list[dict[str, Any]]) -> list[str]:
    compared = [r for r in rows if not math.isnan(r["difference"])]
    methods = sorted((r for r in compared if role(r["arm"]) == "method"), key=lambda r: -r["difference"])
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in methods:
        by_arm.setdefault(row["arm"], []).append(row)
    sentences: list[str] = []
    for runs in by_arm.values():
        sentences += [_method(r) for r in runs] if len(runs) <= MANY else [_sweep(runs)]
    if len(sentences) > MOST:
        sentences[MOST:] = [f"{len(sentences) - MOST} more arms gain less."]
    return sentences + [_ceiling(r) for r in compared if role(r["arm"]) == "ceiling"][:1]


def _sweep(runs: list[dict[str, Any]]) -> str:
    """One arm under many settings: how many hold after correction, and the best, which was picked afterwards."""
    best = runs[0]
    beaten = sum(r["diff_low"] > 0 and r["p_holm"] < ALPHA for r in runs)
    worse = sum(r["diff_high"] < 0 and r["p_holm"] < ALPHA for r in runs)
    settings = best["label"][len(best["arm"]) :].strip(" ()")
    return (
        f"{title(best['arm'])} under {len(runs):,} settings: {beaten:,} beat base after correction for all of them, "
        f"{worse:,} lose; the largest difference, {_signed(best)} with {settings}, was picked after the fact."
    )


def _method(row: dict[str, Any]) -> str:
    name, interval = _name(row), bracket(row["diff_low"], row["diff_high"])
    shown = direction(row)
    if shown > 0:
        said = f"{name} beats base by {points(row['difference'])} points {interval}{_holm(row)}"
        return f"{said}{_against_control(row)}."
    if shown < 0:
        return f"{name} loses to base by {points(row['difference'])} points {interval}{_holm(row)}."
    seen = "" if math.isnan(row["mde"]) else f"; {row['n']} items show gains from about {points(row['mde'])} on"
    if row["fixed"] == 0 and row["broken"] == 0:
        return f"{name} scores every item as base does{seen}."
    outside = f", p {p_text(row['p'])}" if row["diff_low"] > 0 or row["diff_high"] < 0 else ""
    return f"{name} cannot be told from base: {_signed(row)}{outside}{seen}."


def _name(row: dict[str, Any]) -> str:
    name = title(row["arm"]) + row["label"][len(row["arm"]) :]
    return name[:1].upper() + name[1:]


def _holm(row: dict[str, Any]) -> str:
    p = row["p_holm"]
    if math.isnan(p):
        return ""
    weight = "" if p < ALPHA else ", which does not hold after correction for the number of tests"
    return f" (Holm p {p_text(p)}{weight})"


def p_text(p: float) -> str:
    """A p-value with two digits, or an upper bound when it is tiny."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _against_control(row: dict[str, Any]) -> str:
    control = CONTROLS.get(row["control"])
    if control is None or math.isnan(row["over_control"]):
        return ""
    interval = bracket(row["over_control_low"], row["over_control_high"])
    if row["over_control_low"] > 0:
        return f", and beats {control.title} by {points(row['over_control'])} {interval}"
    gap = f"{row['over_control'] * 100:.1f} {interval}"
    return f"; {control.title} do as well (difference {gap}): {control.meaning}"


def _signed(row: dict[str, Any]) -> str:
    sign = "+" if row["difference"] >= 0 else "−"
    return f"{sign}{points(row['difference'])} points {bracket(row['diff_low'], row['diff_high'])}"


def _ceiling(row: dict[str, Any]) -> str:
    return f"The ceiling, {title(row['arm'])}, which may see the answer: {_signed(row)}."


def _feedback(rows: list[dict[str, Any]]) -> list[str]:
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if not math.isnan(row["difference"]):
            runs.setdefault(row["run_id"], {})[row["scope"]] = row
    sentences = []
    for scopes in runs.values():
        told = [f"{_signed(row)} {WHERE.get(scope, scope)}" for scope, row in scopes.items()]
        leaks = any(direction(scopes[s]) > 0 for s in ("near", "out") if s in scopes)
        tail = ": it leaks where it should not apply" if leaks else ""
        name = _name(next(iter(scopes.values())))
        sentences.append(f"{name} follows the feedback, against base, {', '.join(told)}{tail}.")
    return sentences[:MOST]
