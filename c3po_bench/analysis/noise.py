"""The noise floor: what base changes when it is asked again in other batches, and what that says of the others."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from c3po_bench.analysis.arms import REPEAT
from c3po_bench.analysis.frames import known
from c3po_bench.analysis.statistics import ALPHA, Z


def floor_of(changed: float, n: float) -> float:
    """The difference below which two runs of one model may lie by noise: z sqrt(changed / n / n).

    `changed` of `n` items are answered otherwise by the same model in other batches; each is as likely fixed
    as broken, so that the difference has variance (changed / n) / n.
    """
    return Z * math.sqrt(changed / n / n)


def p_of_changes(changed: int, by_noise: int) -> float:
    """Two-sided p of an arm changing as many items as base does when it is asked again (binomial, one half)."""
    from scipy.stats import binomtest  # late, as in `power`

    return float(binomtest(changed, changed + by_noise).pvalue) if changed + by_noise else 1.0


def add_noise(rows: Iterable[dict[str, Any]]) -> None:
    """Put `noise`, `noise_floor` and `p_noise` into rows of `compare` whose base was asked again on the same items.

    Of several repeats the one that changes most counts.
    """
    rows = list(rows)
    changes: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.get("role") == REPEAT and known(row.get("fixed")):
            place = row["base_run_id"], row["task"]
            changes[place] = max(changes.get(place, 0), changed(row))
    for row in rows:
        by_noise = changes.get((row["base_run_id"], row["task"]))
        if by_noise is not None and known(row.get("fixed")):
            row |= {"noise": by_noise / row["n"], "noise_floor": floor_of(by_noise, row["n"])}
            if row.get("role") != REPEAT and row["over"] != "seeds":  # whose counts are sums over seeds
                row["p_noise"] = p_of_changes(changed(row), by_noise)


def changed(row: Mapping[str, Any]) -> int:
    """How many items a row's arm scores otherwise than base."""
    return int(row["fixed"]) + int(row["broken"])


def within_noise(row: Mapping[str, Any]) -> bool:
    """Whether a difference is no larger than the noise floor, where that is known and not 0."""
    floor: Any = row.get("noise_floor")
    return known(floor) and floor > 0 and abs(row["difference"]) <= floor


def noise_note(row: Mapping[str, Any]) -> str:
    """What a sentence on an arm that shows nothing adds, where it changes no more items than noise does."""
    if not known(row.get("p_noise")) or not row["noise"] or row["p_noise"] < ALPHA or not changed(row):
        return ""
    return f"; it changes {changed(row)} items, base asked again {round(row['noise'] * row['n'])}"


def noise_sentences(rows: Iterable[Mapping[str, Any]], where: Mapping[str, str]) -> list[str]:
    """A sentence on what base changes when it is asked again: of each model's repeats one.

    Args:
        rows: of `compare`, those that a verdict speaks of.
        where: what scopes of feedback are called.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("role") == REPEAT and known(row.get("fixed")):
            runs.setdefault(row["run_id"], []).append(row)
    return [_sentence(own, where) for own in runs.values()]


def _sentence(rows: list[Mapping[str, Any]], where: Mapping[str, str]) -> str:
    parts = []
    for row in rows:
        scope = f" {where.get(row['scope'], row['scope'])}" if row["scope"] else ""
        text = f"{changed(row)} of {row['n']} items{scope}"
        if changed(row):
            text += f" ({row['fixed']} fixed, {row['broken']} broken; differences up to "
            text += f"{100 * row['noise_floor']:.1f} points are noise)"
        parts.append(text)
    ties = rows[0].get("routing_ties")
    tied = f"; {ties} items have a routing tie within rounding" if known(ties) and ties else ""
    return f"Noise floor: base asked again in other batches changes {', '.join(parts)}{tied}."
