"""How large an effect a paired comparison can see, and how many items a claimed effect needs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

ALPHA = 0.05
POWER = 0.8
FEWEST = 6  # items that must change, all one way, before an exact two-sided test is below ALPHA


def _reach(alpha: float, power: float) -> float:
    """How many standard errors an effect must have to be found with `power` at level `alpha`, two-sided."""
    return float(ndtri(1 - alpha / 2) + ndtri(power))


def difference_sd(differences: ArrayLike) -> float:
    """Standard deviation of the item-wise differences ``[items]`` (n - 1 in the denominator)."""
    d = np.asarray(differences, dtype=np.float64)
    return float(d.std(ddof=1)) if len(d) > 1 else float("nan")


def discordant_sd(discordant: float, effect: float = 0.0) -> float:
    """The same from the share of items that change (fixed + broken) and the net `effect`."""
    return math.sqrt(max(0.0, discordant - effect * effect))


def minimum_detectable_effect(sd: float, n: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest mean difference that `n` paired items find with `power`; normal approximation."""
    return _reach(alpha, power) * sd / math.sqrt(n) if n > 0 else float("nan")


def smallest_gain(shares: ArrayLike, items: int, *, binary: bool) -> float:
    """The smallest difference that a test of these differences (of items, or of clusters) can be hoped to find.

    NaN where nothing says: fewer right-or-wrong items than the exact test needs, or real values that did not
    change.
    """
    d = np.asarray(shares, dtype=np.float64)
    effect = minimum_detectable_effect(difference_sd(d), len(d))
    if binary:
        return float(np.fmax(effect, FEWEST / items)) if items >= FEWEST else float("nan")
    return effect if d.any() else float("nan")


def required_items(effect: float, sd: float, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """How many paired items it takes to find `effect` with `power`. Raises ValueError for a zero effect."""
    if effect == 0:
        raise ValueError("no sample is large enough to find an effect of zero")
    return math.ceil((_reach(alpha, power) * sd / abs(effect)) ** 2)
