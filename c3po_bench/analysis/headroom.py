"""What re-routing could give at most: shares of items with their intervals, and what follows from them.

The rows are those that `rewiring.headroom` measures. With m_y(r) the margin of option y under route r over
the best other option, y* the true one and r0 the model's own route:

- H_true = mean 1[m_{y*} > 0] after the oracle's descent, H_wrong the same towards each wrong option;
- B(y) = the largest m_y over r0 and R drawn routes; P_true = mean 1[B(y*) > 0], P_wrong the same of one fixed
  wrong option, P_any of any wrong one;
- S = mean 1[B(y*) > max_{c != y*} B(c)]: whether the freedom to route otherwise favors the truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

from c3po_bench.analysis import statistics
from c3po_bench.analysis.scores import many_clusters
from c3po_bench.analysis.statistics import Interval
from c3po_bench.analysis.verdict import bracket, points

NEAR = 0.05
"""Random routes that put fewer items right than this, by the upper bound, leave nothing to gain."""
DIFFERENCES = {
    "delta_h": ("h_true", "h_wrong"),
    "delta_h_when_wrong": ("h_true_when_wrong", "h_wrong_when_wrong"),
    "s_over_base": ("s", "base"),
    "p_true_over_base": ("p_true", "base"),
    "route_average_over_base": ("route_average", "base"),
    "known_ceiling_over_base": ("known_ceiling", "base"),
}
"""Paired differences, by name: what is taken from what."""
SHARES = ("s", "p_true", "p_wrong", "p_any", "route_average", "routes_right", "auc")
"""What is told of routes, by rule."""


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All shares of items, each NAME with its `NAME_interval`: [low, high], None where nothing varies.

    `base`, `h_true`, `h_wrong`, `s`, `p_true`, `p_wrong`, `p_any`, `route_average` and the rest are over all
    items; with `_when_wrong` over those that base has wrong, where wrong options count that are not base's
    answer already. `h_wrong_when_right` is how many right answers a descent can break. `known_ceiling` is the
    best arm that knows a right route. `rules` has the shares of routes by what drawn experts weigh; those at
    the top are of the first rule. `chance` is the mean of 1 / options; `pass_at` the share of items that the
    best of so many routes has right.
    """
    clusters = np.array([str(row.get("cluster") or f"#{i}") for i, row in enumerate(rows)])
    rules = list(rows[0]["best"])
    per_item = [_of_item(row, rules[0]) for row in rows]
    known = [arm for arm in rows[0]["known"] if all(arm in row["known"] for row in rows)]
    best = max(known, key=lambda arm: sum(row["known"][arm] for row in rows), default=None)
    for values, row in zip(per_item, rows, strict=True):
        values["known_ceiling"] = float(row["known"][best]) if best else math.nan
        for name, (more, less) in DIFFERENCES.items():
            values[name] = values[more] - values[less]
    out: dict[str, Any] = {"items": len(rows), "items_wrong": sum(not values["base"] for values in per_item)}
    for name in per_item[0]:
        signed = name in DIFFERENCES
        out |= _columns(name, np.array([values[name] for values in per_item]), clusters, signed)
    out |= {"known_ceiling_arm": best, "chance": float(np.mean([1 / row["options"] for row in rows]))}
    out["mass"] = float(np.mean([row["mass"] for row in rows]))
    out["pass_at"] = _pass_at([row["right"][rules[0]] for row in rows], rows)
    out["rules"] = {}
    for rule in rules:
        table = [_of_routes(row, rule) for row in rows]
        out["rules"][rule] = {}
        for name in SHARES:
            out["rules"][rule] |= _columns(name, np.array([v[name] for v in table]), clusters, False)
    out["oracle_is_a_measure"] = _oracle_is_a_measure(out)
    return out


def _columns(name: str, values: np.ndarray, clusters: np.ndarray, signed: bool) -> dict[str, Any]:
    """A mean over the items that have the number, and its interval."""
    has = ~np.isnan(values)
    found: Interval = statistics.score_interval(values[has], many_clusters(clusters[has]), signed=signed)
    bounds = [found.low, found.high] if found.low == found.low else None
    return {name: None if math.isnan(found.value) else found.value, f"{name}_interval": bounds}


def _of_item(row: Mapping[str, Any], rule: str) -> dict[str, float]:
    """The numbers of one item; NaN where it does not count."""
    gold, base, reached = row["gold"], row["base"], row["reached"]
    wrong = [c for c in range(row["options"]) if c != gold]
    others = [c for c in wrong if c != base]
    is_right, nan = base == gold, math.nan
    values = {"base": float(is_right), "h_true": float(reached[gold])}
    values["h_wrong"] = float(np.mean([reached[c] for c in wrong])) if wrong else nan
    values |= _of_routes(row, rule)
    best = row["best"][rule]
    when_wrong = {
        "h_true": float(reached[gold]),
        "h_wrong": float(np.mean([reached[c] for c in others])) if others else nan,
        "s": values["s"],
        "p_true": values["p_true"],
        "p_wrong": float(best[_after(gold, others)] > 0) if others else nan,
        "p_any": float(any(best[c] > 0 for c in others)) if others else nan,
        "route_average": values["route_average"],
    }
    values |= {f"{name}_when_wrong": nan if is_right else value for name, value in when_wrong.items()}
    values["h_wrong_when_right"] = values["h_wrong"] if is_right else nan
    return values


def _of_routes(row: Mapping[str, Any], rule: str) -> dict[str, float]:
    gold, best = row["gold"], row["best"][rule]
    wrong = [c for c in range(row["options"]) if c != gold]
    return {
        "s": float(best[gold] > max((best[c] for c in wrong), default=-math.inf)),
        "p_true": float(best[gold] > 0),
        "p_wrong": float(best[_after(gold, wrong)] > 0) if wrong else math.nan,
        "p_any": float(any(best[c] > 0 for c in wrong)),
        "route_average": float(row["average"][rule] == gold),
        "routes_right": row["right"][rule] / row["routes"] if row["routes"] else math.nan,
        "auc": row["auc"][rule],
    }


def _after(gold: int, among: Sequence[int]) -> int:
    """The one fixed wrong option: the next behind the true one, from the front again behind the last."""
    return next((c for c in among if c > gold), among[0])


def _pass_at(right: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """pass@R = mean of 1 - C(n - u, R) / C(n, R), of n drawn routes of which u are right."""
    n = min(row["routes"] for row in rows)
    sizes = [size for size in (1, 4, 16, 64, 256) if size <= n]
    return {str(r): float(np.mean([1 - comb(n - u, r) / comb(n, r) for u in right])) for r in sizes}


def _oracle_is_a_measure(found: Mapping[str, Any]) -> bool:
    """Whether descent is shown to reach the truth more often than other options.

    If not, "share of the oracle's gap" means nothing. On items that base has wrong, towards options that it
    does not give already; where there are none, over all items.
    """
    name = "delta_h" if found["delta_h_when_wrong"] is None else "delta_h_when_wrong"
    bounds = found[f"{name}_interval"]
    return bool(bounds and bounds[0] > 0)


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What was measured, and what follows from it by the rule of docs/rewiring.md."""

    def text(name: str) -> str:
        bounds = found[f"{name}_interval"]
        shown = f" {bracket(*bounds)}" if bounds else ""
        return (
            f"{found[name] * 100:+.1f}{shown}" if name in DIFFERENCES else f"{found[name] * 100:.1f}%{shown}"
        )

    out = [f"Base answers {text('base')} of {found['items']:,} items."]
    reach = f"The oracle's descent reaches the true option on {text('h_true')} of them"
    if found["h_wrong"] is not None:
        reach += f", and wrong ones on {text('h_wrong')}"
    if found["h_wrong_when_wrong"] is not None:
        reach += (
            f"; where base is wrong, the true one on {text('h_true_when_wrong')} and others that it does not "
            f"give already on {text('h_wrong_when_wrong')}"
        )
    out.append(f"{reach}.")
    if found["oracle_is_a_measure"]:
        out.append("It reaches the truth more often than other options, so its gap can be a measure.")
    else:
        out.append(
            "It is not shown to reach the truth more often than other options, so the oracle's gap is no "
            "measure: a share of it says nothing about a method."
        )
    if found["known_ceiling"] is not None:
        arm = found["known_ceiling_arm"].replace("_", " ")
        out.append(f"The known ceiling, {arm}: {text('known_ceiling')}.")
    return [*out, _rule(found, text)]


def _rule(found: Mapping[str, Any], text: Any) -> str:
    """The decision rule, in a sentence."""
    most, above = found["p_true_over_base_interval"], found["s_over_base_interval"]
    reach = found["p_true_over_base"]
    if most and most[1] <= NEAR:
        return (
            f"Equal-compute routes put at most {points(most[1])} points more right even when the best is "
            "picked by the label: re-routing of this kind cannot help here. Stop."
        )
    freedom = f"routing freedom favors the truth on {text('s')} of items, base {text('base')}"
    if above and above[0] > 0:
        return (
            f"S lies above base ({text('s_over_base')}): {freedom}. Averaging routes or voting without labels "
            f"is worth an arm; the route average has {text('route_average')}."
        )
    outside = (
        f"S is not above base ({text('s_over_base')}): {freedom}. Routes alone do not tell the truth from other "
        "options; only a method with outside information, such as references, can gain, and a gain must beat "
        "shuffled references."
    )
    if not most or reach is not None and most[0] <= 0:
        more = text("p_true_over_base")
        outside += f" So few items leave open whether equal-compute routes reach more than base ({more})."
    return outside
