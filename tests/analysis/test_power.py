"""What items can show: exact power against enumeration, published digits and simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from c3po_bench import power as command
from c3po_bench.analysis import power, statistics
from tests import store_factory as factory
from tests.analysis.test_statistics import correlated


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261129)


def test_power_agrees_with_statsmodels():
    sd, effect = power.discordant_sd(0.2, 0.03), 0.03
    n = power.required_items(effect, sd)
    exact = TTestPower().solve_power(effect_size=effect / sd, alpha=0.05, power=0.8)
    assert n == pytest.approx(exact, rel=0.005)
    assert power.minimum_detectable_effect(sd, n) == pytest.approx(effect, rel=0.001)
    with pytest.raises(ValueError, match="zero"):
        power.required_items(0.0, sd)


def test_no_smaller_gain_is_promised_than_the_test_can_call():
    def promised(fixed, broken, items):
        changes = np.repeat([1.0, -1.0, 0.0], [fixed, broken, items - fixed - broken])
        return power.smallest_gain(changes, items, binary=True)

    for fixed, broken in [(0, 0), (1, 1), (1, 0)]:
        assert promised(fixed, broken, 120) == 5 / 120
    assert statistics.mid_p(5, 0) < statistics.ALPHA <= statistics.mid_p(4, 0)
    assert promised(12, 12, 120) > 5 / 120
    assert np.isnan(promised(1, 0, 4)) and np.isnan(power.smallest_gain(np.zeros(9), 9, binary=False))
    assert power.smallest_gain([0.1, 0.2, 0.3], 3, binary=False) == pytest.approx(
        (stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)) * 0.1 / np.sqrt(3), rel=1e-4
    )


def test_minimum_detectable_effect_is_found_four_times_in_five(rng):
    n = 800
    effect = power.minimum_detectable_effect(power.discordant_sd(0.2, 0.05), n)
    shown = 0
    for _ in range(1500):
        arm, base = correlated(rng, n, 0.5, (0.2 + effect) / 2, (0.2 - effect) / 2)
        shown += statistics.mid_p(*statistics.fixed_broken(arm, base)) < 0.05
    assert shown / 1500 == pytest.approx(0.8, abs=0.05)


def test_five_items_are_the_fewest_that_can_show_anything():
    assert power.smallest_gain(np.zeros(5), 5, binary=True) == 1.0
    assert np.isnan(power.smallest_gain(np.zeros(4), 4, binary=True))
    assert np.isnan(power.smallest_gain(np.zeros(9), 9, binary=False))
    assert power.smallest_gain(np.array([0.0, 0.5, 0.0]), 3, binary=False) > 0


def test_the_spread_of_two_differences_is_known_and_of_one_is_not():
    assert power.spread_of([0.1, 0.3]) == pytest.approx((np.sqrt(0.02), np.sqrt(0.05), 2))
    assert np.isnan(power.spread_of([0.1]).sd)


def test_the_spread_of_changed_items_allows_for_their_net_effect():
    fixed, broken, items = 15, 5, 100
    changes = [1] * fixed + [-1] * broken + [0] * (items - fixed - broken)
    spread = power.discordant_sd((fixed + broken) / items, (fixed - broken) / items)
    assert spread == pytest.approx(np.std(changes))


def test_power_of_the_tests_by_enumeration():
    exact, gain = statistics.mcnemar, 0.062645350
    assert power.power_of(200, gain, 0.1, exact) == pytest.approx(0.778130, abs=1e-6)
    assert power.power_of(200, gain, 0.1) == pytest.approx(0.831596, abs=1e-6)
    assert power.detectable_gain(200, 0.1, test=exact) == pytest.approx(0.064026934, abs=1e-8)
    assert power.detectable_gain(200, 0.1) == pytest.approx(0.060469314, abs=1e-7)
    assert power.power_of(1000, 0.028024, 0.1, exact) == pytest.approx(0.778727, abs=1e-6)
    assert power.power_of(1000, 0.028024, 0.1) == pytest.approx(0.805127, abs=1e-6)


def test_the_normal_approximation_and_connors_number_of_items():
    sd = power.discordant_sd(0.1)
    assert power.minimum_detectable_effect(sd, 200) == pytest.approx(0.062645350, abs=1e-8)
    assert power.minimum_detectable_effect(sd, 1000) == pytest.approx(0.028015852, abs=1e-8)
    assert power.required_items(0.02, sd) == 1963
    assert power.connor_items(0.02, 0.1) == pytest.approx(1959.86, abs=0.005)


SIZES = {
    0.02: (0.000894, 0.004769),
    0.05: (0.012520, 0.030520),
    0.1: (0.024376, 0.043298),
    0.2: (0.029613, 0.044685),
}


@pytest.mark.parametrize("discordance", SIZES)
def test_mid_p_keeps_the_level_and_wastes_less_of_it(discordance):
    """True size at n = 120; twice the power for a gain of nothing, as a loss by chance counts, too."""
    sizes = [
        2 * power.power_of(120, 0.0, discordance, test) for test in (statistics.mcnemar, statistics.mid_p)
    ]
    assert sizes == pytest.approx(SIZES[discordance], abs=1e-6)


@pytest.mark.parametrize(("gain", "discordance"), [(0.05, 0.1), (0.02, 0.1), (0.1, 0.1), (0.03, 0.3)])
def test_items_needed_have_the_power_and_fewer_have_not(gain, discordance):
    items = power.items_needed(gain, discordance)
    assert power.power_of(items, gain, discordance) >= 0.8 > power.power_of(items - 1, gain, discordance)
    assert items == pytest.approx(power.connor_items(gain, discordance), rel=0.15)


def test_a_gain_that_no_number_of_changes_shows():
    assert np.isnan(power.detectable_gain(20, 0.1))
    assert power.fewest_changes() == 5 and power.fewest_changes(0.05 / 8) == 8


@pytest.mark.parametrize("tests", [1, 8, 60])
def test_a_difference_above_the_smallest_gain_is_always_called(tests):
    """Verdict, star and smallest gain agree: for all counts of fixed and broken, after the strictest correction."""
    alpha = statistics.ALPHA / tests
    for items in (16, 48, 120, 400):
        for broken in range(0, items // 3):
            for fixed in range(broken, items - broken + 1):
                net = (fixed - broken) / items
                changed = (fixed + broken) / items
                sd = np.sqrt((changed - net**2) * items / (items - 1))
                spread = power.Spread(float(sd), changed**0.5, items)
                if net >= power.gain_for(spread, items, binary=True, alpha=alpha):
                    assert statistics.mid_p(fixed, broken) < alpha, (items, fixed, broken)
                    assert statistics.tango(fixed, broken, items).low > 0
                    break  # more fixed ones are called the more


def last(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_says_power_items_and_gain(capsys):
    assert command.main(["--discordance", "0.1", "--items", "200", "--gain", "0.02", "--json"]) == 0
    found = last(capsys)
    assert found["items_needed"] == power.items_needed(0.02, 0.1)
    assert found["power"] == pytest.approx(power.power_of(200, 0.02, 0.1))
    assert found["detectable_gain"] == pytest.approx(0.060469314, abs=1e-7)


def test_the_discordance_of_a_store(tmp_path, capsys):
    base = np.array([0, 1] * 50)
    arm = base.copy()
    arm[:10] = 1 - arm[:10]
    factory.store(tmp_path, base=base, ngd=arm)
    assert command.main(["--store", str(tmp_path), "--json"]) == 0
    out = capsys.readouterr().out
    assert "ngd: 10 of 100 items change (10.0%)" in out
    assert json.loads(out.splitlines()[-1])["discordance"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --discordance, or --store"),
        (["--discordance", "0"], "a share of items above 0"),
        (["--discordance", "0.04"], "at most the discordance, 0.04"),
        (["--discordance", "0.1", "--items", "0"], "at least 1 item"),
        (["--store", "nowhere"], "holds no results"),
    ],
)
def test_impossible_numbers_end_in_one_line(words, message, capsys):
    assert command.main(words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_too_few_items_for_any_gain(capsys):
    assert command.main(["--discordance", "0.1", "--items", "20", "--json"]) == 0
    out = capsys.readouterr().out
    assert "no gain" in out and json.loads(out.splitlines()[-1])["detectable_gain"] is None


def test_simulated_power_is_that_of_the_formula(rng):
    """A true gain of 5 points where a tenth of 400 items changes."""
    fixed, broken, _ = rng.multinomial(400, [0.075, 0.025, 0.9], 4000).T
    shown = (statistics.mid_p(fixed, broken) < 0.05) & (fixed > broken)
    assert shown.mean() == pytest.approx(power.power_of(400, 0.05, 0.1), abs=0.02)
