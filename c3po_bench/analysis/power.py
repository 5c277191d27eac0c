"""What a number of items can show: exact power of the test in use, items for a gain, gain that is found."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

from c3po_bench.analysis.statistics import ALPHA, Floats, mid_p

POWER = 0.8
NEGLIGIBLE = 1e-10  # probability of numbers of changed items that are left out
MOST_ITEMS = 1 << 24


def discordant_sd(discordant: float, effect: float = 0.0) -> float:
    """Standard deviation of item-wise differences.

    From the share of items that change (fixed + broken) and the net `effect`.
    """
    return math.sqrt(max(0.0, discordant - effect * effect))


def fewest_changes(alpha: float = ALPHA) -> int:
    """How many items must change, all one way, for a mid-p, then 2^-items, below `alpha`: 5 for 0.05."""
    return math.floor(-math.log2(alpha)) + 1


def minimum_detectable_effect(
    sd: float, n: int, alpha: float = ALPHA, *, null_sd: float | None = None, df: int | None = None
) -> float:
    """The smallest mean difference that `n` paired items find with 80% power; normal, with `df` by t.

    `sd` is the standard deviation of item-wise differences, `null_sd` what the test takes it for where there
    is no difference (by default the same; of right-or-wrong scores the root of the share that changes).
    """
    if n <= 0:
        return math.nan
    reach, found = (float(ndtri(p) if df is None else stdtrit(df, p)) for p in (1 - alpha / 2, POWER))
    return (reach * (sd if null_sd is None else null_sd) + found * sd) / math.sqrt(n)


def smallest_gain(
    shares: ArrayLike, items: int, *, binary: bool, alpha: float = ALPHA, clustered: bool = False
) -> float:
    """The smallest difference that a test of these differences at `alpha` can be hoped to find.

    `shares` are the differences of items or of clusters (`clustered`), `items` is the number of items, and
    `binary` says whether scores are right or wrong. NaN where nothing says: with fewer right-or-wrong items
    than the test needs, or with real values that did not change.
    """
    return gain_for(spread_of(shares), items, binary=binary, alpha=alpha, clustered=clustered)


class Spread(NamedTuple):
    """Of differences: standard deviation, root of the mean square, and their number."""

    sd: float
    rms: float
    units: int


def spread_of(shares: ArrayLike) -> Spread:
    """All that `gain_for` needs of differences."""
    d = np.asarray(shares, dtype=np.float64)
    if len(d) < 2:
        return Spread(math.nan, math.nan, len(d))
    return Spread(float(d.std(ddof=1)), math.sqrt(float((d * d).mean())), len(d))


def gain_for(
    spread: Spread, items: int, *, binary: bool, alpha: float = ALPHA, clustered: bool = False
) -> float:
    """`smallest_gain` from the `spread_of` the differences."""
    sd, rms, units = spread
    exact = binary and not clustered
    df, null_sd = (None, rms) if exact else (max(1, units - 1), None)
    effect = minimum_detectable_effect(sd, units, alpha, null_sd=null_sd, df=df)
    if binary:
        fewest = fewest_changes(alpha)
        return float(np.fmax(effect, fewest / items)) if items >= fewest else math.nan
    return effect if sd > 0 else math.nan


def required_items(effect: float, sd: float) -> int:
    """How many paired items find `effect` with 80% power; normal approximation.

    ValueError for a zero effect.
    """
    if effect == 0:
        raise ValueError("no sample is large enough to find an effect of zero")
    return math.ceil((minimum_detectable_effect(sd, 1) / abs(effect)) ** 2)


def connor_items(gain: float, discordance: float, power: float = POWER) -> float:
    """Connor's number of pairs (1987): (z_a sqrt(psi) + z_b sqrt(psi - gain^2))^2 / gain^2."""
    z = float(ndtri(1 - ALPHA / 2)), float(ndtri(power))
    reach = z[0] * math.sqrt(discordance) + z[1] * math.sqrt(max(0.0, discordance - gain * gain))
    return (reach / gain) ** 2


def power_of(
    items: int,
    gain: float,
    discordance: float,
    test: Callable[[ArrayLike, ArrayLike], Floats] = mid_p,
    alpha: float = ALPHA,
) -> float:
    """The probability that `test` (mid-p or exact McNemar) calls a true `gain` on so many items.

    Exact: the number of changed items is Bin(items, discordance), and of these Bin(., (1 + gain /
    discordance) / 2) are fixed. A loss that is called by chance is no success.

    Args:
        items: how many both arms answer.
        gain: true difference of accuracies, at most `discordance`.
        discordance: share of items whose correctness changes.
        test: p of counts of fixed and broken items.
        alpha: its level.
    """
    from scipy.stats import binom  # a third of a second, which every experiment would take to begin

    counts: Any = binom(items, discordance)
    changed = np.arange(int(counts.ppf(NEGLIGIBLE)), int(counts.isf(NEGLIGIBLE)) + 1)
    needed = _fewest_fixed(changed, test, alpha)
    up = (1 + gain / discordance) / 2
    return float((counts.pmf(changed) * binom.sf(needed - 1, changed, up)).sum())


def _fewest_fixed(
    changed: np.ndarray, test: Callable[[ArrayLike, ArrayLike], Floats], alpha: float
) -> np.ndarray:
    """The fewest of each number of changed items that must be fixed before `test` is below `alpha`."""
    low, high = changed // 2, changed + 1  # not called; called, or impossible
    while (high - low > 1).any():
        middle = (low + high) // 2
        called = (test(middle, changed - middle) < alpha) & (high - low > 1)
        low, high = np.where(called | (high - low <= 1), low, middle), np.where(called, middle, high)
    return high


def items_needed(gain: float, discordance: float, power: float = POWER, alpha: float = ALPHA) -> int:
    """The fewest items from which on the exact power for `gain` stays at `power` or above nearby.

    Power of a discrete test saws up and down by little; the answer is where bisection finds it crossing.
    """
    low, high = 1, max(8, math.ceil(connor_items(gain, discordance, power)))
    while power_of(high, gain, discordance, alpha=alpha) < power and high < MOST_ITEMS:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_of(middle, gain, discordance, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def detectable_gain(
    items: int,
    discordance: float,
    power: float = POWER,
    test: Callable[[ArrayLike, ArrayLike], Floats] = mid_p,
    alpha: float = ALPHA,
) -> float:
    """The smallest true gain that `items` find with this power; NaN where no gain is."""
    if power_of(items, discordance, discordance, test, alpha) < power:
        return math.nan
    low, high = 0.0, discordance
    for _ in range(40):
        middle = (low + high) / 2
        enough = power_of(items, middle, discordance, test, alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high
