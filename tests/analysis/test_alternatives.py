"""What our statistics are instead of: known numbers of the alternatives, and by how much they are off."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import beta as beta_function
from scipy.special import ndtri
from scipy.stats import beta, binom, norm, t

from c3po_bench.analysis import families, power, statistics
from c3po_bench.analysis.judging import Rate, prediction_powered, rogan_gladen

GRID = np.array(
    [[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=float
)  # items, seeds
CELLS = (0.052, 0.041, 0.033, 0.030, 0.018, 0.012, 0.004, -0.006, -0.013)


def test_two_way_variance_of_cameron_gelbach_and_miller():
    """V_items + V_seeds - V_cell, without small-sample factors, is below the unbiased one of the mean squares."""
    rest = GRID - GRID.mean()
    items, seeds, cell = (
        (part**2).sum() / GRID.size**2 for part in (rest.sum(axis=1), rest.sum(axis=0), rest)
    )
    assert (items, seeds, cell) == pytest.approx((0.022633745, 0.008230453, 0.013717421), abs=1e-9)
    assert items + seeds - cell == pytest.approx(0.017146776, abs=1e-9)
    assert math.sqrt(items + seeds - cell) == pytest.approx(0.130945700, abs=1e-9)
    unbiased = statistics.crossed_variance(GRID)
    assert unbiased == pytest.approx(0.030864198, abs=1e-9) and math.sqrt(unbiased) == pytest.approx(
        0.175682092
    )
    assert GRID.mean() == pytest.approx(0.555555556)


def test_naive_and_clustered_errors_of_five_groups():
    scores = np.array([1, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1])
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4])
    sums, sizes = statistics.cluster_sums(scores, clusters)
    without_factor = np.linalg.norm(sums - scores.mean() * sizes) / len(scores)
    assert without_factor == pytest.approx(0.155902391, abs=1e-9)
    assert statistics.standard_error(scores, clusters)[1] == pytest.approx(0.174304172, abs=1e-9)


def test_resampling_few_seeds_is_too_narrow():
    means = sorted(float(np.mean(draw)) for draw in product([0.70, 0.76, 0.82], repeat=3))
    assert np.std(means) == pytest.approx(0.028284271, abs=1e-9)
    assert np.quantile(means, [0.025, 0.975]) == pytest.approx([0.713, 0.807], abs=5e-4)
    shares = [math.sqrt((k - 1) / k) for k in (2, 3, 4, 5)]
    assert shares == pytest.approx([0.707107, 0.816497, 0.866025, 0.894427], abs=1e-6)
    widths = [s * statistics.Z / t.ppf(0.975, k - 1) for s, k in zip(shares, (2, 3, 4, 5), strict=True)]
    assert widths == pytest.approx([0.109073, 0.371934, 0.533357, 0.631400], abs=1e-6)
    assert t.ppf(0.975, 1) == pytest.approx(12.7062, abs=1e-4)


@pytest.mark.parametrize(("margin", "by_90", "by_95"), [(0.01, 268, 381), (0.02, 133, 189), (0.05, 52, 73)])
def test_how_many_unchanged_items_prove_sameness(margin, by_90, by_95):
    for level, fewest in ((0.90, by_90), (0.95, by_95)):
        assert (
            statistics.tango(0, 0, fewest, level).high
            <= margin
            < statistics.tango(0, 0, fewest - 1, level).high
        )


def test_other_intervals_of_none_of_sixteen():
    assert beta.ppf(0.975, 1, 16) == pytest.approx(0.205907214, abs=1e-9)  # Clopper and Pearson
    assert beta.ppf([0.025, 0.975], 0.5, 16.5) == pytest.approx(
        [0.000030213, 0.143184138], abs=1e-8
    )  # Jeffreys
    assert 3 / 16 == 0.1875 and pytest.approx(0.170749723, abs=1e-9) == 1 - 0.05 ** (1 / 16)  # rule of three
    assert math.sqrt(2 * math.log(2 / 0.05) / 16) == pytest.approx(0.679051, abs=1e-6)  # Hoeffding
    assert statistics.wilson(0, 16).high == pytest.approx(0.193607681, abs=1e-9)


@pytest.mark.parametrize(
    ("rate", "n", "bootstrap"),
    [
        (0.9, 16, 79.8),
        (0.9, 48, 94.1),
        (0.95, 16, 55.3),
        (0.95, 48, 90.5),
        (0.98, 16, 27.6),
        (0.98, 48, 60.5),
    ],
)
def test_a_percentile_bootstrap_near_the_boundary_does_not_cover_and_tango_does(rate, n, bootstrap):
    def coverage(interval) -> float:
        held = [binom.pmf(k, n, rate) for k in range(n + 1) if (i := interval(k))[0] <= rate <= i[1]]
        return 100 * sum(held)

    # of k of n the percentiles of a resampled mean are the binomial's
    resampled = coverage(lambda k: (binom.ppf(0.025, n, k / n) / n, binom.ppf(0.975, n, k / n) / n))
    assert resampled == pytest.approx(bootstrap, abs=0.15)
    assert 92.8 <= coverage(lambda k: statistics.tango(k, 0, n)[1:]) <= 96.9


def simes(p) -> float:
    ordered = sorted(p)
    return min(len(ordered) * value / rank for rank, value in enumerate(ordered, start=1))


def test_hommel_is_between_holm_and_benjamini_hochberg():
    """Closed testing with Simes; valid under positive dependence, which we do not ask for: ours is Holm."""
    raw = (0.001, 0.008, 0.039, 0.041, 0.27)
    subsets = [set(s) for size in range(1, 6) for s in combinations(range(5), size)]
    hommel = [min(1.0, max(simes([raw[j] for j in s]) for s in subsets if i in s)) for i in range(5)]
    assert hommel == pytest.approx([0.005, 0.032, 0.078, 0.082, 0.27])
    assert (families.holm(raw) >= np.array(hommel) - 1e-12).all()


def test_single_step_max_t_is_no_smaller_than_step_down():
    d = np.array([(1, 1, 0), (1, 0, 0), (1, 1, 0), (0, 1, -1), (1, 0, 0), (1, 1, 1), (0, 0, 0), (1, 1, 0)]).T
    size = np.linalg.norm(d, axis=1)
    flips = np.array(list(product([-1, 1], repeat=8)))
    largest = (abs(flips @ d.T) / size).max(axis=1)
    single = [(largest >= value - 1e-9).mean() for value in abs(d.sum(axis=1)) / size]
    assert single == pytest.approx([0.03125, 0.078125, 1.0])
    assert families.max_t(d) == pytest.approx([0.03125, 0.0625, 1.0])


@pytest.mark.parametrize(
    ("fixed", "broken", "evidence"),
    [(9, 2, 3.103030), (5, 0, 5.333333), (8, 0, 28.444444), (20, 2, 789.441747)],
)
def test_evidence_that_may_be_looked_at_repeatedly(fixed, broken, evidence):
    """The mixture e-value: at 20 it rejects, whenever it is looked at; mid-p is for one look."""
    value = 2.0 ** (fixed + broken) * beta_function(fixed + 1, broken + 1)
    assert value == pytest.approx(evidence, rel=1e-6)
    assert value < 20 or statistics.mid_p(fixed, broken) < 0.05


def test_the_best_of_nine_cells_by_other_means():
    best, second, se = CELLS[0], CELLS[1], 0.012
    assert ndtri(1 - 0.025 / 9) == pytest.approx(2.772921, abs=1e-6)  # simultaneous, by Bonferroni

    def conditional_mean(mu: float, cut: float, sd: float) -> float:
        z = (cut - mu) / sd
        return mu + sd * math.exp(norm.logpdf(z) - norm.logsf(z))

    def estimate(y: float, cut: float, sd: float) -> float:
        return brentq(lambda mu: conditional_mean(mu, cut, sd) - y, y - 60 * sd, y)  # type: ignore[return-value]

    def quantile(share: float) -> float:  # the mean under which the best is at this share of what it may be
        def distance(mu: float) -> float:
            above = math.exp(norm.logsf((best - mu) / se) - norm.logsf((second - mu) / se))
            return above - share

        return brentq(distance, best - 20 * se, best + 10 * se)  # type: ignore[return-value]

    assert estimate(best, second, se) == pytest.approx(0.044584667, abs=1e-8)
    assert quantile(0.5) == pytest.approx(0.047449237, abs=1e-8)
    assert (quantile(0.025), quantile(0.975)) == pytest.approx((0.001048935, 0.075084258), abs=1e-8)
    shrunk = float(families.shrunken(CELLS, se)[0])
    assert shrunk == pytest.approx(
        0.044524384, abs=1e-9
    )  # ours: it does not explode near the cut, as these do
    exploding = [estimate(y, 1.96, 1.0) for y in (2.0, 2.5, 3.0, 4.0)]
    assert exploding == pytest.approx([-22.960127, 1.033067, 2.522342, 3.942768], abs=1e-5)


def test_errors_of_a_judge_without_small_sample_terms():
    p, n, q0, q1, m = 0.4, 1000, 0.7, 0.9, 200
    theta = rogan_gladen(p, n, Rate(q1, m), Rate(q0, m)).value
    spread = p * (1 - p) / n + (1 - theta) ** 2 * q0 * (1 - q0) / m + theta**2 * q1 * (1 - q1) / m
    assert math.sqrt(spread) / (q0 + q1 - 1) == pytest.approx(0.052219267, abs=1e-9)
    assert 0.10 / (q0 + q1 - 1) == pytest.approx(0.166667, abs=1e-6)  # what 0.10 judged is in truth


def test_prediction_powered_with_and_without_the_chosen_weight():
    labels, judged = ([int(c) for c in text] for text in ("1011001011", "1010011011"))
    rest = [int(c) for c in "110101101011001101110101101101"]
    plain, tuned = (prediction_powered(labels, judged, rest, tuned=way) for way in (False, True))
    assert plain.value == pytest.approx(0.633333, abs=1e-6)
    assert (plain.high - plain.value) / statistics.Z == pytest.approx(0.166556, abs=1e-6)
    assert (tuned.high - tuned.value) / statistics.Z == pytest.approx(0.133512361, abs=1e-8)
    assert tuned[1:] == pytest.approx((0.352880581, 0.876239419), abs=1e-8)
    everything = np.array(judged + rest, dtype=float)
    weight = np.cov(labels, judged, bias=True)[0, 1] / ((1 + 10 / 30) * everything.var(ddof=1))
    assert weight == pytest.approx(0.4368, abs=1e-4)


def test_items_that_a_gain_needs_by_formulas():
    """Connor's formula and the product of standard errors and quantiles; ours is the exact power of mid-p."""
    share, gain = 0.1, 0.02
    a, b = ndtri(0.975), ndtri(0.8)
    connor = (a * math.sqrt(share) + b * math.sqrt(share - gain**2)) ** 2 / gain**2
    assert connor == pytest.approx(1959.86, abs=0.01) and math.ceil(connor) == 1960
    assert (a + b) ** 2 * share / gain**2 == pytest.approx(1962.22, abs=0.01)
    assert power.items_needed(gain, share, 0.8) == pytest.approx(1960, rel=0.02)


def test_signal_to_noise_of_a_benchmark():
    means, checkpoints = np.array([0.50, 0.55, 0.62]), np.array([0.61, 0.62, 0.63, 0.62, 0.60])
    signal, noise = np.ptp(means) / means.mean(), checkpoints.std() / checkpoints.mean()
    assert (signal, noise) == pytest.approx((0.215568862, 0.016555258), abs=1e-9)
    assert signal / noise == pytest.approx(13.021171895, abs=1e-8)
