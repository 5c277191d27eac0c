"""Many tests at once: Holm, max-T, the primary comparison, and the best of a sweep."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from c3po_bench.analysis import families, statistics


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261129)


def test_holm_equals_statsmodels_and_ignores_missing_tests(rng):
    for size in [1, 2, 3, 5, 8, 13, 21, 34, 55]:
        p = rng.random(size) ** 3
        np.testing.assert_allclose(families.holm(p), multipletests(p, method="holm")[1])
    assert np.isnan(families.holm([0.01, np.nan, 0.04])[1])
    np.testing.assert_allclose(families.holm([0.01, np.nan, 0.04])[[0, 2]], [0.02, 0.04])


def test_corrections_of_a_published_example():
    p = [0.001, 0.008, 0.039, 0.041, 0.27]
    assert families.holm(p) == pytest.approx([0.005, 0.032, 0.117, 0.117, 0.27])
    assert stats.false_discovery_control(p) == pytest.approx([0.005, 0.02, 0.05125, 0.05125, 0.27])


def test_what_is_named_first_is_not_corrected_and_gates_the_rest():
    assert families.holm([0.04, 0.001, 0.03], first=0).tolist() == [0.04, 0.04, 0.04]
    assert families.holm([0.2, 0.001, 0.03], first=0).tolist() == [0.2, 0.2, 0.2], (
        "nothing holds where it fails"
    )
    assert families.holm([0.01, 0.02, np.nan, 0.03], first=0).tolist()[:2] == [0.01, 0.04]
    assert families.holm([np.nan, 0.02], first=0)[1] == 0.02, "named, but not tested"


ARMS = np.array([(1, 1, 0), (1, 0, 0), (1, 1, 0), (0, 1, -1), (1, 0, 0), (1, 1, 1), (0, 0, 0), (1, 1, 0)]).T


def test_joint_flips_of_eight_items_enumerated():
    """256 flips by hand: T 2.449490, 2.236068, 0, raw p 0.03125, 0.0625, 1."""
    raw = [statistics.sign_flip(arm) for arm in ARMS]
    assert raw == [0.03125, 0.0625, 1.0]
    assert families.holm(raw).tolist() == [0.09375, 0.125, 1.0]
    assert families.max_t(ARMS).tolist() == [0.03125, 0.0625, 1.0]


def test_as_few_flips_as_there_are_are_all_of_them(rng):
    d = rng.integers(-1, 2, size=(3, 8)) + rng.random((3, 8)) / 100
    assert families.max_t(d, draws=256) == pytest.approx(families.max_t(d, draws=10_000), abs=1e-12)
    assert families.max_t(np.ones((1, 8)), draws=256) == pytest.approx([2 / 256])


def test_drawn_flips_estimate_all_of_them(rng):
    d = rng.choice([-1.0, 0.0, 1.0], (6, 12), p=[0.15, 0.5, 0.35])
    assert families.max_t(d, draws=4000, seed=1) == pytest.approx(families.max_t(d, draws=4096), abs=0.03)


def test_arms_that_move_together_cost_one_test(rng):
    one = rng.choice([-1.0, 0.0, 1.0], 60, p=[0.1, 0.6, 0.3])
    same, alone = families.max_t(np.stack([one] * 20)), families.max_t(one[None])
    assert same == pytest.approx([alone[0]] * 20, abs=0.01)


def test_joint_flips_keep_the_level(rng):
    """Of 300 null families of five correlated arms few have any p below 0.05."""
    wrong = 0
    for case in range(300):
        shared, own = rng.normal(size=(1, 40)), rng.normal(size=(5, 40))
        wrong += families.max_t(shared + own, draws=999, seed=case).min() < 0.05
    assert wrong / 300 <= 0.08


CELLS = [0.052, 0.041, 0.033, 0.030, 0.018, 0.012, 0.004, -0.006, -0.013]


def test_the_best_of_equal_cells_is_too_good_by_so_many_standard_errors():
    known = {1: 0, 2: 0.564190, 3: 0.846284, 5: 1.162964, 9: 1.485013, 20: 1.867475, 64: 2.343733}
    for cells, excess in known.items():
        assert families.expected_excess(cells) == pytest.approx(excess, abs=1e-6)
    assert families.expected_excess(9) * 0.012 == pytest.approx(0.017820158, abs=1e-9)


def test_cells_are_shrunken_to_their_mean():
    assert families.shrunken(CELLS, 0.012)[0] == pytest.approx(0.044524384, abs=1e-9)
    factor = (families.shrunken(CELLS, 0.012)[0] - 0.019) / (0.052 - 0.019)
    assert factor == pytest.approx(0.773466177, abs=1e-9)
    assert families.shrunken([0.1, 0.2, 0.3], 1.0).tolist() == [0.1, 0.2, 0.3], "too few to say"
    assert families.shrunken([0.1, 0.1, 0.2, 0.2], 1.0) == pytest.approx([0.15] * 4)
    assert families.shrunken([0.1] * 5, 0.1) == pytest.approx([0.1] * 5)
