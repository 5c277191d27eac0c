"""Statistics of two arms answering the same items: intervals and tests of one comparison, in numpy and scipy.

Two scores of one item are correlated, so every difference here is taken item by item first: ``Var(a - b) =
Var(a) + Var(b) - 2 Cov(a, b)``, and the covariance is most of what a benchmark has. Scores are arrays
``[items]``: 0/1 (right or wrong), -1/0/1 (what only one of two answers does), or real-valued. A `clusters`
array ``[items]`` names what items share (a passage, a feedback); the interval then generalizes over such
groups. Many tests at once are in `families`, what a number of items can show in `power`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

DRAWS = 10_000
LEVEL = 0.95  # of all intervals
ALPHA = 0.05
MARGIN = 0.01  # within which two arms count as the same, unless the config says otherwise
Z = float(ndtri(0.5 + LEVEL / 2))
TINY, BISECTIONS = 1e-300, 50
CHUNK = 1 << 22  # resampled indices held at a time: 16 MiB of int32

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with the bounds of its confidence interval, all in the unit of the scores.

    The bounds are NaN where scores have no variance, so that nothing says how far they are from the truth.
    """

    value: float
    low: float
    high: float


NOTHING = Interval(math.nan, math.nan, math.nan)
"""The interval of a mean over no items."""


def is_binary(*scores: ArrayLike) -> bool:
    """Whether all scores are 0 or 1, so that McNemar's test and Wilson's interval apply."""
    return all(np.isin(s, (0, 1)).all() for s in scores)


def is_ternary(*scores: ArrayLike) -> bool:
    """Whether all scores are -1, 0 or 1, as differences of 0/1 scores are: Tango's interval applies."""
    return all(np.isin(s, (-1, 0, 1)).all() for s in scores)


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


def mid_p(fixed: ArrayLike, broken: ArrayLike) -> Floats:
    """Two-sided McNemar mid-p: the exact p, with half of the probability of what was observed.

    With m = min(fixed, broken) and X ~ Bin(fixed + broken, 1/2) it is 2 P(X <= m) - P(X = m). It keeps the
    level and has nearly the power of the exact unconditional test (Fagerland, Lydersen and Laake 2013). Takes
    counts or arrays of counts of one shape, returns p of that shape; 1 where nothing changed.
    """
    f, b = np.asarray(fixed, dtype=np.int64), np.asarray(broken, dtype=np.int64)
    fewer = np.minimum(f, b).astype(float)
    p = bdtr(fewer, f + b, 0.5) + np.where(fewer > 0, bdtr(np.maximum(fewer - 1, 0), f + b, 0.5), 0.0)
    return np.where(f == b, 1.0, np.minimum(p, 1.0))


def _quantile(level: float, df: int | None) -> float:
    """Standard errors to each side of an interval: normal, or of t where `df` is given."""
    return float(ndtri(0.5 + level / 2) if df is None else stdtrit(df, 0.5 + level / 2))


def wilson(successes: float, n: float, df: int | None = None) -> Interval:
    """Wilson's score interval (1927) of a share of `n`; sound near 0 and 1 and for small `n`.

    `df`: by t, not normal.
    """
    if n <= 0:
        return NOTHING
    share, z = successes / n, _quantile(LEVEL, df)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def tango_score(fixed: float, broken: float, n: float, difference: float) -> float:
    """The score statistic, standard normal, of two paired shares differing by `difference` (Tango 1998)."""
    b = (2 * n - fixed + broken) * difference - fixed - broken
    root = math.sqrt(max(0.0, b * b + 8 * n * broken * difference * (1 - difference)))
    # the variance at the likeliest shares that differ so
    variance = n * ((root - b) / (2 * n) + difference * (1 - difference))
    return (fixed - broken - n * difference) / math.sqrt(max(variance, TINY))


@lru_cache(maxsize=4096)  # a sweep asks for the same few counts thousands of times
def tango(fixed: float, broken: float, n: float, level: float = LEVEL, df: int | None = None) -> Interval:
    """Tango's score interval (1998) of the difference of two paired shares, of which `n` items are the same.

    The differences that a score test does not reject; sound where few items change, or none.
    `df`: by t, not normal.
    """
    if n <= 0:
        return NOTHING
    value, z = (fixed - broken) / n, _quantile(level, df)

    def bound(outside: float) -> float:
        inside = value
        for _ in range(BISECTIONS):
            middle = (outside + inside) / 2
            if abs(tango_score(fixed, broken, n, middle)) > z:
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


def standard_error(values: ArrayLike, clusters: ArrayLike | None = None) -> tuple[float, float, int]:
    """Mean, its standard error, and the degrees of freedom of a t for it: items, or clusters, less one.

    SE^2 = G / (G - 1) * sum_c (sum_{i in c} (s_i - mean))^2 / n^2 over G clusters (each item one without
    `clusters`): Miller (arXiv 2411.00640) with the factor of small samples that statsmodels applies. NaN
    where there are fewer than two clusters.
    """
    sums, sizes = cluster_sums(values, clusters)
    groups, n = len(sums), sizes.sum()
    mean = float(sums.sum() / n) if groups else math.nan
    if groups < 2:
        return mean, math.nan, 0
    spread = float(np.linalg.norm(sums - mean * sizes)) / n
    return mean, math.sqrt(groups / (groups - 1)) * (spread if spread > 1e-12 else 0.0), groups - 1


def t_interval(values: ArrayLike, clusters: ArrayLike | None = None, level: float = LEVEL) -> Interval:
    """Mean with its t interval over items, or over `clusters`; without bounds where nothing varies."""
    mean, se, df = standard_error(values, clusters)
    half = float(stdtrit(df, 0.5 + level / 2)) * se if se > 0 else math.nan
    return Interval(mean, mean - half, mean + half)


def t_test(values: ArrayLike, clusters: ArrayLike | None = None, *, above: float | None = None) -> float:
    """Two-sided p of a mean of 0, or one-sided p of one not above `above`, by t; NaN without variance."""
    mean, se, df = standard_error(values, clusters)
    if not se > 0:
        return math.nan
    return 2 * float(stdtr(df, -abs(mean) / se)) if above is None else float(stdtr(df, (above - mean) / se))


class Counts(NamedTuple):
    """How many of how many items are 1 and -1; of clusters, of independent items that say as much, and df."""

    up: float
    down: float
    n: float
    df: int | None


def counts_of(scores: ArrayLike, clusters: ArrayLike | None = None) -> Counts:
    """The counts of -1/0/1 scores; of clusters, divided by the design effect.

    That is the variance of the mean over clusters by that over items, at least 1 (Korn and Graubard 1998).
    Scores that are all alike have none to tell it by: each cluster then counts as one item.
    """
    v = np.asarray(scores, dtype=np.float64)
    n, up, down = float(len(v)), float((v > 0).mean()), float((v < 0).mean())
    if clusters is None:
        return Counts(round(up * n), round(down * n), n, None)
    _, se, df = standard_error(v, clusters)
    n /= max(1.0, se * se * n / float(v.var())) if v.var() > 0 else n / (df + 1)
    return Counts(up * n, down * n, n, df if v.var() > 0 else None)


def score_interval(values: ArrayLike, clusters: ArrayLike | None = None, *, signed: bool = False) -> Interval:
    """Mean of scores with the 95% interval that suits them.

    0/1 scores have Wilson's, -1/0/1 scores Tango's, as have 0/1 scores that could be -1 (`signed`); where
    they come in clusters, of the `counts_of` these and by t. Others have t intervals over items or clusters,
    and no bounds where they do not vary.
    """
    v = np.asarray(values, dtype=np.float64)
    if not len(v):
        return NOTHING
    if not is_ternary(v):
        return t_interval(v, clusters)
    up, down, n, df = counts_of(v, clusters)
    return tango(up, down, n, df=df) if signed or down else wilson(up, n, df)


def same_p(differences: ArrayLike, margin: float, clusters: ArrayLike | None = None) -> float:
    """The p of two one-sided tests (TOST) that the mean difference lies within `margin` of 0 on both sides.

    The larger p of the two: score tests (Tango's) of -1/0/1 differences, t tests of others. Below 0.05 where
    the 90% interval lies within the margin. NaN over no items, and of others without variance.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not len(d) or not is_ternary(d):
        return max(t_test(d, clusters, above=-margin), t_test(-d, clusters, above=-margin))
    up, down, n, df = counts_of(d, clusters)
    below, above = (tango_score(up, down, n, bound) for bound in (-margin, margin))
    return float(max(ndtr(-below), ndtr(above)) if df is None else max(stdtr(df, -below), stdtr(df, above)))


def crossed_variance(table: ArrayLike) -> float:
    """Variance of the mean of ``[items, seeds]`` where both are drawn.

    It is (MS_items + MS_seeds - MS_rest) / (I S). Items and seeds are crossed, not nested: every seed answers
    every item. The estimate from the mean squares of the balanced table is unbiased (Cameron, Gelbach and
    Miller's two-way variance is its form for large tables); where it is smaller than the larger of the two
    one-way variances, that is returned.
    """
    x = np.asarray(table, dtype=np.float64)
    items, seeds = x.shape
    rows, columns = x.mean(axis=1), x.mean(axis=0)
    rest = x - rows[:, None] - columns[None, :] + x.mean()
    of_items, of_seeds = seeds * rows.var(ddof=1), items * columns.var(ddof=1)
    of_rest = (rest**2).sum() / ((items - 1) * (seeds - 1))
    return float(max(of_items + of_seeds - of_rest, of_items, of_seeds) / x.size)


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


def mean_interval(parts: Sequence[Interval]) -> Interval:
    """Mean of independent estimates that weigh the same, with the interval that theirs make (MOVER).

    A bound is as far from the mean as the root of the parts' summed squared distances to theirs, divided by
    their number (Zou and Donner 2008), so it keeps the sides of score intervals apart.
    """
    values, lows, highs = np.array(parts, dtype=np.float64).T
    value = float(values.mean())
    below, above = (float(np.linalg.norm(values - bound)) / len(parts) for bound in (lows, highs))
    return Interval(value, value - below, value + above)


def overall_interval(within: Interval, near: Interval, out: Interval, one: float = 1.0) -> Interval:
    """S_overall = (S_in + 1 - (S_near + S_out) / 2) / 2 with the interval of its parts' (MOVER).

    With `one` = 0 it is the difference of two. The three are over different prompts, so independent.
    """
    value = (within.value + one - (near.value + out.value) / 2) / 2
    below, above = (
        math.hypot(a - within.value, (b - near.value) / 2, (c - out.value) / 2) / 2
        for a, b, c in ((within.low, near.high, out.high), (within.high, near.low, out.low))
    )
    return Interval(value, value - below, value + above)


def sign_flip(
    differences: ArrayLike, *, draws: int = DRAWS, seed: int = 0, clusters: ArrayLike | None = None
) -> float:
    """Two-sided p of the mean difference being 0, from sign flips of items or of whole clusters.

    All flips where they are no more than `draws`, else random ones. The test for real-valued or clustered
    scores; on independent 0/1 scores it estimates McNemar's exact p.
    """
    sums, _ = cluster_sums(differences, clusters)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    observed, extreme, count = abs(sums.sum()) * (1 - 1e-12), 0, 0
    for signs in sign_draws(len(sums), draws, seed):
        extreme += int((abs(2.0 * (signs @ sums) - sums.sum()) >= observed).sum())
        count += len(signs)
    drawn = 2 ** min(len(sums), 64) > draws  # then what was observed counts as one flip more
    return (extreme + drawn) / (count + drawn)


def sign_draws(units: int, draws: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Flips of `units` in parts of ``[flips, units]``, 0 flipped and 1 not: all, where at most `draws`."""
    if 2 ** min(units, 64) <= draws:
        yield (np.arange(2**units)[:, None] >> np.arange(units) & 1).astype(np.uint8)
        return
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // units)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-rows * units // 8)), dtype=np.uint8))
        yield bits[: rows * units].reshape(rows, units)
