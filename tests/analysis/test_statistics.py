"""The statistics against scipy and statsmodels, their coverage in simulation, and their speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from c3po_bench.analysis import statistics


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261124)


def correlated(rng: np.random.Generator, n: int, base: float, fixed: float, broken: float):
    """0/1 scores of an arm and its base with known shares of fixed and broken items."""
    b = rng.random(n) < base
    flip = np.where(b, rng.random(n) < broken / base, rng.random(n) < fixed / (1 - base))
    return (b ^ flip).astype(float), b.astype(float)


def test_mcnemar_equals_statsmodels_on_1000_random_tables(rng):
    fixed, broken = rng.integers(0, 120, 1000), rng.integers(0, 120, 1000)
    expected = [
        reference_mcnemar([[5, f], [b, 7]], exact=True).pvalue if f + b else 1.0
        for f, b in zip(fixed, broken, strict=True)
    ]
    np.testing.assert_allclose(statistics.mcnemar(fixed, broken), expected, rtol=1e-9)


def test_mcnemar_of_nothing_changed_is_one():
    assert statistics.mcnemar(0, 0) == 1.0


def test_wilson_equals_statsmodels_on_1000_random_counts(rng):
    for n in rng.integers(1, 2000, 1000).tolist():
        k = int(rng.integers(0, n + 1))
        low, high = proportion_confint(k, n, method="wilson")
        np.testing.assert_allclose(statistics.wilson(k, n)[1:], (low, high), atol=1e-12)


@pytest.mark.parametrize("kind", ["binary", "real", "few values"])
def test_bootstrap_agrees_with_scipy_on_1000_random_cases(rng, kind):
    errors = []
    for case in range(1000 if kind == "binary" else 200):
        n = int(rng.integers(40, 120))
        d = {
            "binary": rng.choice([-1, 0, 1], n, p=[0.1, 0.7, 0.2]).astype(float),
            "real": rng.normal(0.1, 1, n),
            "few values": rng.choice([0.0, 0.25, 0.5], n),
        }[kind]
        ours = statistics.bootstrap(d, seed=case, draws=2000)
        theirs = stats.bootstrap((d,), np.mean, n_resamples=2000, method="percentile", rng=case)
        assert ours.value == pytest.approx(d.mean())
        errors.append((np.array(ours[1:]) - np.array(theirs.confidence_interval)) / (d.std() / np.sqrt(n)))
    # in standard errors; the Monte-Carlo error of one percentile from 2,000 draws is 0.06 of them
    assert np.abs(errors).max() < 0.5
    assert np.abs(np.mean(errors, axis=0)).max() < 0.02


def test_bootstrap_standard_error_agrees_with_theory_on_1000_random_cases(rng):
    for case in range(1000):
        d = rng.choice([-1, 0, 1], int(rng.integers(50, 400)), p=[0.1, 0.7, 0.2])
        means = statistics.bootstrap_means(d, draws=4000, seed=case)
        assert means.std() == pytest.approx(d.std() / np.sqrt(len(d)), rel=0.08)
        assert means.mean() == pytest.approx(d.mean(), abs=6 * d.std() / np.sqrt(len(d) * 4000))


def test_sign_flip_estimates_mcnemar_on_right_or_wrong_scores(rng):
    for case in range(50):
        arm, base = correlated(rng, 300, 0.5, 0.1, 0.07)
        exact = float(statistics.mcnemar(*statistics.fixed_broken(arm, base)))
        assert statistics.sign_flip(arm - base, seed=case) == pytest.approx(exact, abs=0.02)


def test_sign_flip_agrees_with_scipy_permutation_test(rng):
    for case in range(5):
        d = rng.normal(0.15, 1, 80)
        theirs = stats.permutation_test(
            (d, np.zeros_like(d)),
            lambda x, y, axis: (x - y).mean(axis=axis),
            permutation_type="samples",
            n_resamples=5000,
            rng=case,
            vectorized=True,
        )
        assert statistics.sign_flip(d, seed=case) == pytest.approx(theirs.pvalue, abs=0.025)


def coverage(intervals: list[statistics.Interval], truth: float) -> float:
    return float(np.mean([low <= truth <= high for _, low, high in intervals]))


def test_intervals_cover_the_truth_93_to_97_percent_of_the_time(rng):
    draws = [correlated(rng, 600, 0.5, 0.12, 0.08) for _ in range(2000)]
    gaps = [statistics.paired_bootstrap(a, b, draws=2000, seed=i) for i, (a, b) in enumerate(draws)]
    assert 0.93 <= coverage(gaps, 0.04) <= 0.97
    shares = [statistics.wilson(b.sum(), len(b)) for _, b in draws]
    assert 0.93 <= coverage(shares, 0.5) <= 0.97


def test_tango_gives_published_values_and_its_limits():
    low, high = statistics.tango(1, 7, 21)[
        1:
    ]  # airway reactivity before and after transplantation (Bentur et al. 2009)
    assert (low, high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    for fixed, broken, n in [(3, 11, 70), (0, 5, 40), (20, 4, 900)]:
        interval, mirror = statistics.tango(fixed, broken, n), statistics.tango(broken, fixed, n)
        assert interval == pytest.approx((-mirror.value, -mirror.high, -mirror.low), abs=1e-9)
    # nothing changed, yet not certain
    assert statistics.tango(0, 0, 120)[1:] == pytest.approx((-0.031, 0.031), abs=5e-4)
    assert statistics.tango(40, 0, 40).high == 1.0 and np.isnan(statistics.tango(0, 0, 0).low)


@pytest.mark.parametrize(("fixed", "broken", "n"), [(5, 0, 120), (7, 3, 60), (1, 9, 250)])
def test_tango_bounds_are_where_the_score_test_is_at_five_percent(fixed, broken, n):
    def score(d):  # with the likeliest shares that differ by d found numerically
        def unlikely(q):
            same = 1 - 2 * q - d
            return -(fixed * np.log(q + d) + broken * np.log(q) + (n - fixed - broken) * np.log(same))

        q = optimize.minimize_scalar(
            unlikely,
            bounds=(max(0, -d) + 1e-12, (1 - d) / 2 - 1e-12),
            method="bounded",
            options={"xatol": 1e-10},
        ).x
        return (fixed - broken - n * d) / np.sqrt(n * (2 * q + d - d * d))

    _, low, high = statistics.tango(fixed, broken, n)
    assert (score(low), score(high)) == pytest.approx((1.96, -1.96), abs=0.001)


def covered(n: int, fixed: float, broken: float, draws: int = 20_000) -> float:
    """How often Tango's interval holds the truth."""
    changed = np.random.default_rng(n).multinomial(n, [fixed, broken, 1 - fixed - broken], draws)[:, :2]
    tables, counts = np.unique(changed, axis=0, return_counts=True)
    held = [
        low <= fixed - broken <= high
        for _, low, high in (statistics.tango(int(f), int(b), n) for f, b in tables)
    ]
    return float(np.average(held, weights=counts))


@pytest.mark.parametrize("n", [60, 120, 400])
@pytest.mark.parametrize(("fixed", "broken"), [(0.02, 0.0), (0.03, 0.01), (0.05, 0.02)])
def test_tango_covers_where_few_items_change_and_the_bootstrap_does_not(n, fixed, broken):
    assert covered(n, fixed, broken) >= 0.94
    if n == 60:
        differences = np.random.default_rng(0).choice(
            [1.0, -1.0, 0.0], (1500, n), p=[fixed, broken, 1 - fixed - broken]
        )
        intervals = [statistics.bootstrap(d, draws=1000, seed=i) for i, d in enumerate(differences)]
        assert coverage(intervals, fixed - broken) < 0.93


def test_clustered_intervals_cover_where_plain_ones_do_not(rng):
    clusters = np.repeat(np.arange(100), 6)
    plain, clustered = [], []
    for i in range(400):
        d = 0.05 + rng.normal(0, 1, 100)[clusters] + rng.normal(0, 0.5, 600)
        plain.append(statistics.bootstrap(d, draws=1000, seed=i))
        clustered.append(statistics.bootstrap(d, draws=1000, seed=i, clusters=clusters))
    assert coverage(plain, 0.05) < 0.8
    assert 0.92 <= coverage(clustered, 0.05) <= 0.975


@pytest.mark.parametrize(
    ("items", "fixed", "broken"),
    [((200, 200), 0.01, 0.0), ((60, 1000), 0.04, 0.01), ((100,) * 6, 0.05, 0.02)],
)
def test_the_mean_of_benchmarks_is_covered_where_few_answers_change(rng, items, fixed, broken):
    intervals = []
    for _ in range(3000):
        changed = [rng.multinomial(n, [fixed, broken, 1 - fixed - broken]) for n in items]
        intervals.append(
            statistics.mean_interval(
                [statistics.tango(int(c[0]), int(c[1]), n) for c, n in zip(changed, items, strict=True)]
            )
        )
    assert coverage(intervals, fixed - broken) >= 0.94


def test_the_mean_of_benchmarks_weighs_them_alike_and_is_as_wide_as_normal_theory_says(rng):
    small, large = rng.normal(0.3, 1, 400), rng.normal(0.6, 2, 40_000)
    mean = statistics.mean_interval([statistics.bootstrap(small), statistics.bootstrap(large)])
    half = 1.96 * np.sqrt(small.var() / small.size + large.var() / large.size) / 2
    assert mean.value == pytest.approx((small.mean() + large.mean()) / 2)
    assert (mean.value - mean.low, mean.high - mean.value) == pytest.approx((half, half), rel=0.04)
    assert statistics.mean_interval([statistics.wilson(3, 10)]) == pytest.approx(statistics.wilson(3, 10))


def test_clusters_of_one_item_change_nothing_but_the_draws(rng):
    d = rng.choice([-1.0, 0.0, 1.0], 500, p=[0.1, 0.7, 0.2])
    np.testing.assert_allclose(
        statistics.bootstrap(d), statistics.bootstrap(d, clusters=np.arange(500)), atol=0.004
    )


def test_same_seed_same_interval_and_constant_scores_have_no_width(rng):
    d = rng.normal(size=200)
    assert (
        statistics.bootstrap(d, seed=3) == statistics.bootstrap(d, seed=3) != statistics.bootstrap(d, seed=4)
    )
    assert statistics.bootstrap(np.ones(30)) == (1.0, 1.0, 1.0)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        statistics.paired_bootstrap([1, 0], [1])


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
def test_arc_challenge_with_10000_draws_takes_less_than_half_a_second(rng, real):
    arm, base = rng.random((2, 1172)) if real else (rng.random((2, 1172)) < 0.5).astype(float)
    rounds = []
    for _ in range(3):  # the best of three: the machine may be busy
        start = time.perf_counter()
        statistics.paired_bootstrap(arm, base, draws=10_000)
        rounds.append(time.perf_counter() - start)
    assert min(rounds) < 0.5


def test_a_sign_flip_p_is_never_zero():
    assert statistics.sign_flip([0.5] * 60, draws=99) == pytest.approx(1 / 100)
    assert statistics.sign_flip([0.5] * 40, draws=10_000) == pytest.approx(1 / 10_001)
    assert statistics.sign_flip([0.3, -0.3], draws=99) == 1.0, "every flip is as extreme as no difference"


def test_flips_that_differ_by_rounding_alone_count_as_alike():
    """By hand: 14 of the 16 ways to flip these four have a mean as far from 0 as theirs, four of them but for rounding."""
    assert statistics.sign_flip([0.9, -0.3, 0.6, -0.6], draws=20_000) == pytest.approx(14 / 16, abs=0.02)


MID_P = {  # fixed, broken: exact, mid-p, the asymptotic chi-squared without correction
    (5, 0): (0.0625, 0.03125, 0.025347),
    (6, 0): (0.03125, 0.015625, 0.014306),
    (9, 2): (0.065429688, 0.038574219, 0.034808),
    (8, 2): (0.109375, 0.065429688, 0.057780),
    (15, 5): (0.041389465, 0.026603699, 0.025347),
    (7, 7): (1, 1, 1),
}


@pytest.mark.parametrize("counts", MID_P)
def test_mid_p_lies_between_the_exact_and_the_asymptotic_test(counts):
    exact, middle, chi2 = MID_P[counts]
    assert float(statistics.mcnemar(*counts)) == pytest.approx(exact, abs=1e-9)
    assert float(statistics.mid_p(*counts)) == pytest.approx(middle, abs=1e-9)
    assert reference_mcnemar(
        [[5, counts[0]], [counts[1], 7]], exact=False, correction=False
    ).pvalue == pytest.approx(chi2, abs=1e-6)


def test_mid_p_takes_arrays_and_is_symmetric(rng):
    f, b = rng.integers(0, 60, (2, 200))
    assert statistics.mid_p(f, b) == pytest.approx(statistics.mid_p(b, f))
    assert (statistics.mid_p(f, b) <= statistics.mcnemar(f, b)).all()
    assert statistics.mid_p(0, 0) == 1.0


TANGO = {
    (5, 0, 120, 0.95): (0.009355035, 0.093840852),
    (9, 2, 120, 0.95): (0.004980796, 0.122577147),
    (8, 6, 400, 0.90): (-0.011320174, 0.022031330),
    (8, 6, 400, 0.95): (-0.015006147, 0.025943212),
    (12, 10, 1172, 0.90): (-0.005163386, 0.008751596),
    (12, 10, 1172, 0.95): (-0.006645029, 0.010295196),
    (3, 2, 1172, 0.90): (-0.002877000, 0.004878987),
    (3, 2, 1172, 0.95): (-0.003910263, 0.005981202),
    (0, 0, 120, 0.90): (-0.022049073, 0.022049073),
    (0, 0, 120, 0.95): (-0.031019166, 0.031019166),
    (16, 0, 16, 0.95): (0.612784639, 1),
    (15, 0, 16, 0.95): (0.562385119, 0.988880655),
    (0, 0, 16, 0.95): (-0.193607681, 0.193607681),
    (48, 0, 48, 0.95): (0.851799741, 1),
    (0, 2, 48, 0.95): (-0.139757, 0.035521),
    (3, 8, 48, 0.95): (-0.248606, 0.035356),
    (1, 14, 48, 0.95): (-0.416888, -0.133048),
}


@pytest.mark.parametrize("case", TANGO)
def test_tango_to_the_digit(case):
    assert statistics.tango(*case)[1:] == pytest.approx(TANGO[case], abs=1e-6 if case[2] == 48 else 1e-8)


def test_wilson_to_the_digit():
    assert statistics.wilson(16, 16).low == pytest.approx(0.806392319, abs=1e-9)
    assert statistics.wilson(0, 16).high == pytest.approx(0.193607681, abs=1e-9)
    assert statistics.wilson(1, 16)[1:] == pytest.approx((0.011119345, 0.283287376), abs=1e-9)
    assert statistics.wilson(0, 48).high == pytest.approx(0.074100130, abs=1e-9)


def differences(up: int, down: int, n: int) -> np.ndarray:
    return np.repeat([1.0, -1.0, 0.0], [up, down, n - up - down])


def test_sameness_is_two_one_sided_score_tests():
    assert statistics.tango_score(8, 6, 400, -0.02) == pytest.approx(2.352690, abs=1e-6)
    assert statistics.tango_score(8, 6, 400, 0.02) == pytest.approx(-1.472249, abs=1e-6)
    assert statistics.same_p(differences(8, 6, 400), 0.02) == pytest.approx(0.070476832, abs=1e-8)
    assert statistics.same_p(differences(12, 10, 1172), 0.01) == pytest.approx(0.028648498, abs=1e-8)


@pytest.mark.parametrize(("margin", "items"), [(0.01, 268), (0.02, 133), (0.05, 52)])
def test_nothing_changed_shows_sameness_from_so_many_items_on(margin, items):
    assert statistics.same_p(np.zeros(items), margin) < 0.05 <= statistics.same_p(np.zeros(items - 1), margin)
    assert statistics.tango(0, 0, items, 0.9).high < margin <= statistics.tango(0, 0, items - 1, 0.9).high


def test_sameness_of_graded_scores_is_that_of_statsmodels(rng):
    d = rng.normal(0.002, 0.05, 200)
    expected = ttost_paired(d, np.zeros(200), -0.01, 0.01)[0]
    assert statistics.same_p(d, 0.01) == pytest.approx(expected)
    assert np.isnan(statistics.same_p(np.full(9, 0.3), 0.01))


def test_a_control_that_keeps_more_than_half():
    """Of 100 items the arm fixes ten and breaks two; the control fixes the first eight of them."""
    arm = differences(10, 2, 100)
    control = differences(8, 0, 100)
    half = control - arm / 2
    mean, se, _ = statistics.standard_error(half)
    assert (mean, mean / se) == pytest.approx((0.04, 2.361666), abs=1e-6)
    assert statistics.t_test(half, above=0.0) == pytest.approx(0.010075, abs=1e-6)


PAIRED = (0.12, -0.03, 0.05, 0, 0.21, 0.08, -0.06, 0.02, 0.04, -0.01, 0.15, 0.07)


def test_a_continuous_outcome_to_the_digit():
    assert statistics.t_interval(PAIRED) == pytest.approx((0.053333333, 0.003647783, 0.103018883), abs=1e-9)
    assert statistics.standard_error(PAIRED)[1] == pytest.approx(0.022574232, abs=1e-9)
    assert statistics.t_test(PAIRED) == pytest.approx(0.037642274, abs=1e-9)
    assert statistics.sign_flip(PAIRED) == 160 / 4096, "all flips"
    assert stats.wilcoxon(PAIRED, method="exact").pvalue == pytest.approx(0.041992188, abs=1e-9)
    bootstrapped = statistics.bootstrap(PAIRED, draws=100_000)
    assert bootstrapped[1:] == pytest.approx((0.013333, 0.0975), abs=1e-3)


CLUSTERED = [1, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1]
GROUPS = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]


def test_clusters_to_the_digit_and_as_statsmodels_has_them():
    _, se, df = statistics.standard_error(CLUSTERED, GROUPS)
    fit = OLS(CLUSTERED, np.ones(12)).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(GROUPS), "df_correction": True}
    )
    assert (se, df) == (pytest.approx(0.174304172, abs=1e-9), 4)
    assert fit.bse[0] * np.sqrt(11 / 12) == pytest.approx(se, rel=1e-9) or fit.bse[0] == pytest.approx(
        se, rel=1e-9
    )
    assert statistics.t_interval(CLUSTERED, GROUPS)[1:] == pytest.approx((0.016054034, 0.983945966), abs=1e-9)
    assert statistics.standard_error(CLUSTERED)[1] == pytest.approx(0.150755672, abs=1e-9)


def test_clusters_that_are_all_alike_count_as_so_many_items():
    groups = np.repeat(np.arange(12), 5)
    assert statistics.score_interval(np.ones(60), groups) == statistics.wilson(12, 12)
    assert statistics.score_interval(np.zeros(60), groups, signed=True) == statistics.tango(0, 0, 12)
    assert np.isnan(statistics.score_interval(np.full(60, 0.4)).low), "no variance"


def test_scores_are_told_by_their_values():
    assert (
        statistics.is_binary([0, 1, 0])
        and not statistics.is_binary([0, -1])
        and not statistics.is_binary([0.5])
    )
    assert statistics.is_ternary([0, 1, -1]) and not statistics.is_ternary([0, 2])
    assert statistics.sign_flip([0.0, 0.0]) == 1.0


def test_the_score_of_nothing_changed_in_closed_form():
    assert pytest.approx(1.959963985) == statistics.Z
    for n, gap in ((12, 0.01), (60, 0.05)):
        score = statistics.tango_score(0, 0, n, gap)
        assert score == pytest.approx(-n * gap / np.sqrt(n * gap * (1 - gap)))


def test_clusters_count_as_the_independent_items_that_say_as_much():
    assert statistics.counts_of([1, 1, 1, 1], ["a", "a", "b", "b"]) == (2.0, 0.0, 2.0, None)
    ups = statistics.counts_of([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"])
    assert (ups.df, ups.up / ups.n) == (2, pytest.approx(0.5)) and 3 <= ups.n < 6
    mean, error, df = statistics.standard_error([1.0])
    assert (mean, df) == (1.0, 0) and np.isnan(error)


def test_the_variance_of_crossed_items_and_seeds_is_that_of_the_mean_squares():
    table = np.array([[3.0, 5.0], [1.0, 2.0], [0.0, 4.0]])
    items, seeds, rest = 3.5, 49 / 6, 7 / 6  # mean squares
    assert statistics.crossed_variance(table) == pytest.approx((items + seeds - rest) / 6)


def test_s_overall_to_the_digit():
    within, near, out = statistics.tango(14, 0, 16), statistics.wilson(9, 16), statistics.wilson(0, 16)
    assert statistics.overall_interval(within, near, out) == pytest.approx(
        (0.796875, 0.602059451, 0.870038072), abs=1e-8
    )
    gaps = [statistics.tango(up, down, 48) for up, down in ((0, 2), (3, 8), (1, 14))]
    assert statistics.overall_interval(*gaps, one=0.0) == pytest.approx(
        (0.072917, 0.003573, 0.137156), abs=1e-6
    )


def test_few_items_bootstrapped_miss_the_truth_and_a_score_interval_does_not():
    """By enumeration, 16 of them at a rate of 0.95: all succeed in 44 of 100 runs, and a bootstrap is then a point."""
    counts = np.arange(17)
    weights = stats.binom.pmf(counts, 16, 0.95)
    assert weights[16] == pytest.approx(0.440127, abs=1e-6)
    held = [low <= 0.95 <= high for _, low, high in (statistics.tango(int(k), 0, 16) for k in counts)]
    assert float(weights @ np.array(held)) == pytest.approx(0.957, abs=1e-3)
