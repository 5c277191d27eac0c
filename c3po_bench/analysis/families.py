"""Many tests at once: correction for their number, joint sign flips, what the best of a sweep is worth."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import quad
from scipy.special import ndtr

from c3po_bench.analysis.statistics import DRAWS, Floats, sign_draws

WORK = 2e10  # multiplications that joint flips may take; of a larger family fewer flips are drawn


def holm(p: ArrayLike, first: int | None = None) -> Floats:
    """Holm's step-down adjusted p-values (1979) of a family of tests; NaN stays NaN and is not counted.

    With `first`, the place of a test that was named beforehand, that one keeps its p, and the others,
    corrected among themselves, cannot be below it: they are tested only where it holds (a fixed sequence).
    """
    raw = np.asarray(p, dtype=np.float64)
    if first is not None and not np.isnan(raw[first]):
        others = holm(np.where(np.arange(len(raw)) == first, np.nan, raw))
        others[first] = raw[first]
        return np.maximum(others, raw[first])
    adjusted = np.full_like(raw, np.nan)
    known = np.flatnonzero(~np.isnan(raw))
    order = known[np.argsort(raw[known], kind="stable")]
    steps = (len(order) - np.arange(len(order))) * raw[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def max_t(differences: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Step-down max-T p of tests that share their items, by joint sign flips (Westfall and Young 1993).

    Args:
        differences: ``[tests, items]`` (or sums of clusters); 0 where a test lacks the item. A flip turns an
            item in all tests at once, so that arms which move together are not corrected as if they did not.
        draws: flips; all, where they are no more.
        seed: of the flips.

    Returns:
        p ``[tests]``: how often the largest T of the tests that are not larger reaches a test's own, where
        T = |sum d| / sqrt(sum d^2).
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[:, d.any(axis=0)]
    size = np.linalg.norm(d, axis=1, keepdims=True)
    d = np.divide(d, size, out=np.zeros_like(d), where=size > 0)
    total = d.sum(axis=1)
    order = np.argsort(-abs(total), kind="stable")
    d, total, units = d[order], total[order], d.shape[1]
    draws = min(draws, max(1000, int(WORK / max(1, d.size))))
    extreme, count, observed = np.zeros(len(d)), 0, abs(total) * (1 - 1e-12)
    for signs in sign_draws(units, draws, seed):
        step = max(1, (1 << 22) // max(1, len(d)))
        for part in (signs[start : start + step] for start in range(0, len(signs), step)):
            flipped = abs(2.0 * (part @ d.T) - total)
            extreme += (np.maximum.accumulate(flipped[:, ::-1], axis=1)[:, ::-1] >= observed).sum(axis=0)
            count += len(part)
    drawn = 2 ** min(units, 64) > draws
    p = np.empty(len(d))
    p[order] = np.maximum.accumulate((extreme + drawn) / (count + drawn))
    return p


def expected_excess(cells: int) -> float:
    """How many standard errors the best of so many equal, independent cells is above their truth on average.

    E max of `cells` standard normals, the integral of 1 - Phi^k - (1 - Phi)^k over positive x. Cells that
    share items correlate, so that it bounds the excess from above.
    """
    return float(quad(lambda x: 1 - ndtr(x) ** cells - ndtr(-x) ** cells, 0, math.inf)[0])


def shrunken(differences: ArrayLike, se: float) -> Floats:
    """Estimates of cells, shrunken to their mean by B = 1 - (k - 3) se^2 / sum (d_j - mean)^2, at least 0.

    The empirical Bayes form of James and Stein (Efron and Morris 1973); fewer than four cells are left alone.
    """
    d = np.asarray(differences, dtype=np.float64)
    spread, mean = float(((d - d.mean()) ** 2).sum()), d.mean()
    factor = max(0.0, 1 - max(0, len(d) - 3) * se * se / spread) if spread else 1.0
    return mean + factor * (d - mean)
