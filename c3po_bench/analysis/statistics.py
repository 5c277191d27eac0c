"""Statistics of two arms answering the same items, in numpy; how large an effect they can show.

Two scores of one item are correlated, so every difference here is taken item by item first:
``Var(a - b) = Var(a) + Var(b) - 2 Cov(a, b)``, and the covariance is most of what a benchmark has.
Scores are arrays ``[items]``, either 0/1 (right or wrong) or real-valued; a `clusters` array ``[items]``
names what items share (a passage, a feedback), which are then resampled together.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtri

DRAWS = 10_000
LEVEL = 0.95  # of all intervals
ALPHA = 0.05
POWER = 0.8
Z = float(ndtri(0.5 + LEVEL / 2))
REACH = float(ndtri(1 - ALPHA / 2) + ndtri(POWER))  # standard errors that an effect must have to be found
FEWEST = 6  # items that must change, all one way, before an exact two-sided test is below ALPHA
TINY, BISECTIONS = 1e-300, 50
CHUNK = 1 << 22  # resampled indices held at a time: 16 MiB of int32

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with the bounds of its confidence interval, all in the unit of the scores."""

    value: float
    low: float
    high: float


NOTHING = Interval(math.nan, math.nan, math.nan)
"""The interval of a mean over no items."""


def is_binary(*scores: ArrayLike) -> bool:
    """Whether all scores are 0 or 1, so that McNemar's test and Wilson's interval apply."""
    return all(np.isin(s, (0, 1)).all() for s in scores)


def fixed_broken(arm: ArrayLike, base: ArrayLike) -> tuple[int, int]:
    """How many items the arm scores higher on than its base, and how many lower."""
    a, b = np.asarray(arm), np.asarray(base)
    return int((a > b).sum()), int((a < b).sum())


def mcnemar(fixed: ArrayLike, broken: ArrayLike) -> Floats:
    """Exact two-sided McNemar p of `fixed` against `broken` items (McNemar 1947; the binomial form).

    Takes counts or arrays of counts of one shape, returns p of that shape; 1 where nothing changed.
    """
    f, b = np.asarray(fixed, dtype=np.int64), np.asarray(broken, dtype=np.int64)
    p = 2.0 * bdtr(np.minimum(f, b).astype(float), f + b, 0.5)
    return np.where(f + b == 0, 1.0, np.minimum(p, 1.0))


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval (1927) of a share of `n`; sound near 0 and 1 and for small `n`."""
    if n <= 0:
        return NOTHING
    share = successes / n
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


@lru_cache(maxsize=4096)  # a sweep asks for the same few counts thousands of times
def tango(fixed: int, broken: int, n: int) -> Interval:
    """Tango's score interval (1998) of the difference of two paired shares, of which `n` items are the same.

    The differences that a score test does not reject; sound where few items change, or none.
    """
    if n <= 0:
        return NOTHING
    value = (fixed - broken) / n

    def score(d: float) -> float:
        b = (2 * n - fixed + broken) * d - fixed - broken
        root = math.sqrt(max(0.0, b * b + 8 * n * broken * d * (1 - d)))
        variance = n * ((root - b) / (2 * n) + d * (1 - d))  # at the likeliest shares that differ by d
        return (fixed - broken - n * d) / math.sqrt(max(variance, TINY))

    def bound(outside: float) -> float:
        inside = value
        for _ in range(BISECTIONS):
            middle = (outside + inside) / 2
            if abs(score(middle)) > Z:
                outside = middle
            else:
                inside = middle
        return inside

    return Interval(value, bound(-1.0), bound(1.0))


def cluster_sums(values: ArrayLike, clusters: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Sum and size of every cluster, each ``[clusters]``; without `clusters` each item is its own."""
    v = np.asarray(values, dtype=np.float64)
    if clusters is None:
        return v, np.ones_like(v)
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    sums, sizes = np.bincount(inverse, weights=v), np.bincount(inverse)
    return sums.astype(np.float64), sizes.astype(np.float64)


def cluster_means(values: ArrayLike, clusters: ArrayLike | None = None) -> Floats:
    """Each cluster's share in the mean, scaled so that the mean of all equals the mean of the items."""
    sums, sizes = cluster_sums(values, clusters)
    return sums * (len(sizes) / sizes.sum()) if len(sums) else sums


def bootstrap_means(
    values: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int | Sequence[int] = 0,
    clusters: ArrayLike | None = None,
) -> Floats:
    """Means of `draws` resamples of the items (or of whole clusters), with replacement: ``[draws]``.

    Right/wrong scores and their differences are small integers, whose resampled sums are drawn from their
    exact distribution; others by multinomial counts of their distinct values, or by index where most differ.
    """
    sums, sizes = cluster_sums(values, clusters)
    n = len(sums)
    if not n:
        return np.full(draws, np.nan)
    rng = np.random.default_rng(seed)
    if clusters is None and np.ptp(sums) <= 8 and (sums == np.rint(sums)).all():
        return _integer_sums(sums.astype(np.int64), draws, rng) / n
    kinds, counts = np.unique(sums + 1j * sizes, return_counts=True)
    if len(kinds) * 4 <= n:
        drawn = rng.multinomial(n, counts / counts.sum(), size=draws)
        return (drawn @ kinds.real) / (drawn @ kinds.imag)
    means = np.empty(draws)
    step = max(1, CHUNK // n)
    for start in range(0, draws, step):
        stop = min(start + step, draws)
        index = rng.integers(0, n, size=(stop - start, n), dtype=np.int32)
        means[start:stop] = sums[index].sum(axis=1) / (n if clusters is None else sizes[index].sum(axis=1))
    return means


def _integer_sums(values: NDArray[np.int64], draws: int, rng: np.random.Generator) -> Floats:
    """Sums of `draws` resamples of integers, from the n-fold convolution of their histogram."""
    n, low, span = len(values), int(values.min()), int(np.ptp(values))
    share = np.bincount(values - low, minlength=span + 1) / n
    distribution = np.fft.irfft(np.fft.rfft(share, 2 * (n * span // 2 + 1)) ** n)
    cumulative = np.cumsum(np.maximum(distribution, 0.0)).astype(np.float64)
    drawn = np.searchsorted(cumulative / cumulative[-1], rng.random(draws))
    return drawn.astype(np.float64) + n * low


def percentile_interval(value: float, means: Floats) -> Interval:
    """The interval between the percentiles of bootstrap `means` around the estimate `value`."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def bootstrap(
    values: ArrayLike, *, draws: int = DRAWS, seed: int = 0, clusters: ArrayLike | None = None
) -> Interval:
    """Mean of `values` with its percentile bootstrap interval, clustered where `clusters` is given."""
    v = np.asarray(values, dtype=np.float64)
    means = bootstrap_means(v, draws=draws, seed=seed, clusters=clusters)
    return percentile_interval(float(v.mean()) if len(v) else math.nan, means)


def paired_bootstrap(
    arm: ArrayLike,
    base: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> Interval:
    """Mean difference ``arm - base`` over the same items, with its paired bootstrap interval.

    Raises ValueError when the arrays are not of one length.
    """
    a, b = np.asarray(arm, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired scores need one length, got {a.shape} and {b.shape}")
    return bootstrap(a - b, draws=draws, seed=seed, clusters=clusters)


def paired_interval(
    arm: ArrayLike, base: ArrayLike, *, draws: int, seed: int, clusters: ArrayLike | None
) -> Interval:
    """Mean difference with `tango`'s interval for independent right-or-wrong scores, else a bootstrap's."""
    if clusters is None and is_binary(arm, base):
        return tango(*fixed_broken(arm, base), len(np.asarray(arm)))
    return paired_bootstrap(arm, base, draws=draws, seed=seed, clusters=clusters)


def mean_interval(parts: Sequence[Interval]) -> Interval:
    """Mean of independent estimates that weigh the same, with the interval that theirs make (MOVER).

    A bound is as far from the mean as the root of the parts' summed squared distances to theirs, divided by
    their number (Zou and Donner 2008), so it keeps the sides of score intervals apart.
    """
    values, lows, highs = np.array(parts, dtype=np.float64).T
    value = float(values.mean())
    below, above = (float(np.linalg.norm(values - bound)) / len(parts) for bound in (lows, highs))
    return Interval(value, value - below, value + above)


def sign_flip(
    differences: ArrayLike, *, draws: int = DRAWS, seed: int = 0, clusters: ArrayLike | None = None
) -> float:
    """Two-sided p of the mean difference being 0, from random sign flips of items or of whole clusters.

    The test for real-valued or clustered scores; on independent 0/1 scores it estimates McNemar's exact p.
    """
    sums, _ = cluster_sums(differences, clusters)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    rng = np.random.default_rng(seed)
    observed, extreme = abs(sums.sum()) * (1 - 1e-12), 0
    step = max(1, CHUNK // len(sums))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-rows * len(sums) // 8)), dtype=np.uint8))
        signs = bits[: rows * len(sums)].reshape(rows, len(sums))
        extreme += int((abs(2.0 * (signs @ sums) - sums.sum()) >= observed).sum())
    return (extreme + 1) / (draws + 1)


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values (1979) of a family of tests; NaN stays NaN and is not counted."""
    raw = np.asarray(p, dtype=np.float64)
    adjusted = np.full_like(raw, np.nan)
    known = np.flatnonzero(~np.isnan(raw))
    order = known[np.argsort(raw[known], kind="stable")]
    steps = (len(order) - np.arange(len(order))) * raw[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def discordant_sd(discordant: float, effect: float = 0.0) -> float:
    """Standard deviation of item-wise differences.

    From the share of items that change (fixed + broken) and the net `effect`.
    """
    return math.sqrt(max(0.0, discordant - effect * effect))


def minimum_detectable_effect(sd: float, n: int) -> float:
    """The smallest mean difference that `n` paired items find with 80% power; normal approximation."""
    return REACH * sd / math.sqrt(n) if n > 0 else math.nan


def smallest_gain(shares: ArrayLike, items: int, *, binary: bool) -> float:
    """The smallest difference that a test of these differences can be hoped to find.

    `shares` are the differences of items or of clusters, `items` is the number of items, and `binary` says
    whether scores are right or wrong. NaN where nothing says: with fewer right-or-wrong items than the exact
    test needs, or with real values that did not change.
    """
    d = np.asarray(shares, dtype=np.float64)
    effect = minimum_detectable_effect(float(d.std(ddof=1)), len(d)) if len(d) > 1 else math.nan
    if binary:
        return float(np.fmax(effect, FEWEST / items)) if items >= FEWEST else math.nan
    return effect if d.any() else math.nan


def required_items(effect: float, sd: float) -> int:
    """How many paired items it takes to find `effect` with 80% power. Raises ValueError for a zero effect."""
    if effect == 0:
        raise ValueError("no sample is large enough to find an effect of zero")
    return math.ceil((REACH * sd / abs(effect)) ** 2)
