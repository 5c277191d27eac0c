"""What a comparison says, in plain sentences: for the top of the report and of the console's table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from c3po_bench.analysis.compare import records
from c3po_bench.analysis.power import ALPHA
from c3po_bench.analysis.roles import CONTROLS, method, role, title

WHERE = {"in": "in scope", "near": "near scope", "out": "out of scope"}
FOLLOWS = {
    1: "follows the feedback",
    0: "is not shown to follow the feedback",
    -1: "goes against the feedback",
}
FOLLOWS_REST = {1: "follow the feedback", 0: "not shown to follow the feedback", -1: "against it"}
BASE_REST = {1: "beat base", 0: "cannot be told from base", -1: "lose to base"}
MOST = 6  # sentences about arms before the rest is only counted; what loses is always told
# a control gains as much where the difference to it is surely smaller, and than half of the arm's gain
MARGIN = 0.01
MANY = 3  # settings of one arm told one by one; more are summed up


def points(value: float) -> str:
    """A difference of accuracies in percentage points, one decimal, without a signed zero."""
    return f"{abs(value) * 100:.1f}"


def bracket(low: float, high: float) -> str:
    """An interval of accuracies in percentage points."""
    return f"[{low * 100:.1f}, {high * 100:.1f}]"


def direction(row: dict[str, Any]) -> int:
    """1 where a difference is shown to be above 0, -1 below, 0 where neither.

    Interval and p must agree, so both be there.
    """
    if not row["p"] < ALPHA:
        return 0
    return int(row["diff_low"] > 0) - int(row["diff_high"] < 0)


def verdict(frame: pd.DataFrame, controls: pd.DataFrame | None = None) -> str:
    """Plain words over the rows of `compare` and `compare_controls`.

    What beat its base, and what its controls say.
    """
    return " ".join(verdict_sentences(frame, controls))


def verdict_sentences(frame: pd.DataFrame, controls: pd.DataFrame | None = None) -> list[str]:
    """The same, sentence by sentence."""
    if frame.empty:
        return ["Nothing to compare yet: no finished run has a base run beside it."]
    rows, over = records(frame), [] if controls is None else records(controls)
    sentences = _feedback([r for r in rows if r["scope"]]) + _accuracy(summary_rows(rows), over)
    return sentences or ["Nothing stands beside base: no other arm was run, or none can be compared with it."]


def summary_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row that speaks for each run: over all items where it has several alike tasks, else its task."""
    several = {r["run_id"] for r in rows if r["level"] == "pooled"}
    alike = [r for r in rows if not r["scope"]]
    return [r for r in alike if r["level"] == ("pooled" if r["run_id"] in several else "task")]


def _accuracy(rows: list[dict[str, Any]], over: list[dict[str, Any]]) -> list[str]:
    own = {row["run_id"]: row for row in rows}

    def against(row: dict[str, Any]) -> list[str]:
        found = [o for o in over if (o["run_id"], o["task"]) == (row["run_id"], row["task"])]
        return [_against_control(row, o, own.get(o["control_run_id"])) for o in found]

    compared = [r for r in rows if not math.isnan(r["difference"])]
    methods = sorted((r for r in compared if role(r["arm"]) == "method"), key=lambda r: -r["difference"])
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in methods:
        by_arm.setdefault(row["arm"], []).append(row)
    told: list[tuple[str, list[dict[str, Any]]]] = []
    for runs in by_arm.values():
        told += [(_method(r, against(r)), [r]) for r in runs] if len(runs) <= MANY else [(_sweep(runs), runs)]
    sentences, left = [], []
    for place, (sentence, runs) in enumerate(sorted(told, key=lambda one: -one[1][0]["difference"])):
        if place < MOST or len(runs) == 1 and direction(runs[0]) < 0:
            sentences.append(sentence)
        else:
            left += runs
    sentences += _rest([direction(row) for row in left], BASE_REST)
    ceilings = [_ceiling(r) for r in compared if role(r["arm"]) == "ceiling"]
    return sentences + ceilings[:MANY]


def _rest(shown: list[int], words: dict[int, str]) -> list[str]:
    """A sentence on runs that are only counted, by the direction that they show."""
    said = ", ".join(f"{shown.count(way):,} {what}" for way, what in words.items() if way in shown)
    return [f"Of {len(shown):,} more: {said}."] if shown else []


def _sweep(runs: list[dict[str, Any]]) -> str:
    """One arm under many settings.

    How many hold after correction, and the best, which was picked afterwards.
    """
    best = runs[0]
    beaten = sum(r["diff_low"] > 0 and r["p_holm"] < ALPHA for r in runs)
    worse = sum(r["diff_high"] < 0 and r["p_holm"] < ALPHA for r in runs)
    settings = best["label"][len(best["arm"]) :].strip().removeprefix("(").replace(")", "", 1)
    return (
        f"{title(best['arm'])} under {len(runs):,} settings: {beaten:,} beat base after correction for all of them, "
        f"{worse:,} lose; the largest difference, {_signed(best)} with {settings}, was picked after the fact."
    )


def _method(row: dict[str, Any], against: list[str]) -> str:
    name, interval = _name(row), bracket(row["diff_low"], row["diff_high"])
    shown = direction(row)
    if shown > 0:
        said = f"{name} beats base by {points(row['difference'])} points {interval}{_holm(row)}"
        return "; ".join([said, *against]) + "."
    if shown < 0:
        return f"{name} loses to base by {points(row['difference'])} points {interval}{_holm(row)}."
    seen = (
        "" if math.isnan(row["mde"]) else f"; {row['n']} items show gains from about {points(row['mde'])} on"
    )
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


def amount(value: float, digits: int = 2) -> str:
    """A cost to so many digits, large ones in full instead of as a power of ten."""
    return f"{value:,.0f}" if value >= 10**digits - 0.5 else f"{value:.{digits}g}"


def _against_control(row: dict[str, Any], over: dict[str, Any], control: dict[str, Any] | None) -> str:
    """An arm that beats base against one control.

    `over` is their difference, `control` the control's own row.
    """
    _, name, ingredient = CONTROLS[method(over["control"])]
    gap = f"difference {_signed(over)}"
    if (shown := direction(over)) != 0:
        interval = bracket(over["diff_low"], over["diff_high"])
        return f"{'beats' if shown > 0 else 'loses to'} {name} by {points(over['difference'])} {interval}{_holm(over)}"
    margin = min(MARGIN, row["difference"] / 2)
    if -margin <= over["diff_low"] and over["diff_high"] <= margin:
        return f"with {name} it gains as much ({gap}): the gain is not {ingredient}"
    if control and direction(control) > 0:
        return f"with {name} it gains, too ({_signed(control)} over base; {gap}): the gain need not be {ingredient}"
    return f"it cannot be told from {name} ({gap})"


def _signed(row: dict[str, Any]) -> str:
    sign = "+" if row["difference"] >= 0 else "−"
    return f"{sign}{points(row['difference'])} points {bracket(row['diff_low'], row['diff_high'])}"


def _ceiling(row: dict[str, Any]) -> str:
    return f"The ceiling, {title(row['arm']) + row['label'][len(row['arm']) :]}, which may see the answer: {_signed(row)}."


def _feedback(rows: list[dict[str, Any]]) -> list[str]:
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if not math.isnan(row["difference"]):
            runs.setdefault(row["run_id"], {})[row["scope"]] = row
    sentences = []
    ordered = sorted(
        runs.values(), key=lambda scopes: -scopes["in"]["difference"] if "in" in scopes else math.inf
    )
    for scopes in ordered[:MOST]:
        told = [f"{_signed(row)} {WHERE.get(scope, scope)}" for scope, row in scopes.items()]
        leaks = any(direction(scopes[s]) > 0 for s in ("near", "out") if s in scopes)
        tail = ": it leaks where it should not apply" if leaks else ""
        name = _name(next(iter(scopes.values())))
        sentences.append(f"{name} {FOLLOWS[_follows(scopes)]}, against base, {', '.join(told)}{tail}.")
    return sentences + _rest([_follows(scopes) for scopes in ordered[MOST:]], FOLLOWS_REST)


def _follows(scopes: dict[str, dict[str, Any]]) -> int:
    return direction(scopes["in"]) if "in" in scopes else 0
