"""The right choice's probability: a continuous outcome beside accuracy, and what it says where the two disagree.

Accuracy sees an item only where the likeliest choice changes. The probability that an arm gives to the right
choice, among the choices and under the task's scoring rule, moves on every item, and a paired change of it is
seen with fewer items. Written answers have none; records that dropped it cannot be computed again.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c3po_bench.analysis import statistics
from c3po_bench.analysis.frames import known, note

LOST = "not recomputable"
"""Said of items with choices whose record has no probabilities: published before they were kept."""


def gold_probability(scores: Sequence[float], golds: Sequence[int]) -> float:
    """The probability of the right choice among the choices: exp(s_gold) / sum_c exp(s_c).

    Args:
        scores: of the choices, as the task's scoring rule ranks them: log-likelihoods, divided by lengths
            where the rule does so.
        golds: places of the right choices; their probabilities are added.
    """
    largest = max(scores)
    weights = [math.exp(score - largest) for score in scores]
    return sum(weights[gold] for gold in set(golds)) / sum(weights)


def gold_columns(
    own: NDArray[np.float64],
    base: NDArray[np.float64] | None,
    options: NDArray[np.float64],
    clusters: NDArray[Any] | None,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The columns of `frames.COLUMNS` about the right choice's probability, of one run's items.

    Args:
        own: probabilities ``[items]``, NaN where the record has none.
        base: of the base's answers to the same items; None for a base.
        options: how many choices each item has: 0 for a written answer, NaN where nobody knows.
        clusters: what items share, or None.
        draws: sign flips.
        seed: of the flips.
    """
    if not len(own) or not (options != 0).any():
        return {}
    if np.isnan(own).any():
        return {"gold_note": LOST}
    row: dict[str, Any] = {"p_gold": float(own.mean())}
    if base is None:
        return row
    if np.isnan(base).any():
        return row | {"gold_note": LOST}
    change = own - base
    interval = statistics.t_interval(change, clusters)
    row |= dict(zip(("gold_difference", "gold_low", "gold_high"), interval, strict=True))
    return row | {"gold_p": statistics.sign_flip(change, draws=draws, seed=seed, clusters=clusters)}


def gold_direction(row: Mapping[str, Any]) -> int:
    """1 where the right choice is shown to be likelier than under base, -1 less likely, 0 where neither.

    As with accuracy the interval, p and p after correction must agree.
    """
    p: Any = row.get("gold_p_holm")
    if (
        not known(p)
        or note(row, "no_verdict")
        or not (row["gold_p"] < statistics.ALPHA and p < statistics.ALPHA)
    ):
        return 0
    return int(row["gold_low"] > 0) - int(row["gold_high"] < 0)


def gold_text(row: Mapping[str, Any]) -> str:
    """The change as a table's cell: "+1.2 [0.3, 2.1]*" in points, or that it cannot be computed again."""
    if not known(row.get("gold_difference")):
        return note(row, "gold_note")
    star = "*" if gold_direction(row) else ""
    return f"{100 * row['gold_difference']:+.1f} {gold_bracket(row)}{star}"


def gold_bracket(row: Mapping[str, Any]) -> str:
    """The interval of the change in points; "[no variance]" where all items move alike."""
    low, high = 100 * row["gold_low"], 100 * row["gold_high"]
    return f"[{low:.1f}, {high:.1f}]" if low == low else "[no variance]"


def gold_sentence(row: Mapping[str, Any], shown: int) -> str:
    """What a verdict adds where the probability says other than accuracy (`shown`: its direction).

    Elsewhere nothing is added.
    """
    way = gold_direction(row)
    if way == shown or not known(row.get("gold_difference")):
        return ""
    change = f"{100 * row['gold_difference']:+.1f} points {gold_bracket(row)}".replace("-", "−", 1)
    if not way:
        return f"; the right choice's probability does not show it ({change})"
    p = row["gold_p_holm"]
    holm = "< 0.001" if p < 0.001 else f"{p:.2g}"
    verb = "rises" if way > 0 else "falls"
    return f"; but the right choice's probability {verb}: {change} (Holm p {holm})"
