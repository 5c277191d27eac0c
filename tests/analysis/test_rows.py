"""The numbers of one row: which interval and which test, by the functions of `paired`; what few items can show."""

from __future__ import annotations

import numpy as np
import pytest

from c3po_bench.analysis import paired
from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.power import discordant_sd, smallest_gain
from tests import store_factory as factory


def row_of(tmp_path, arm, base, clusters=None) -> dict:
    """The row of arm `ngd` where it and its base have these scores on one task."""
    runs = []
    for name, scores in (("base", base), ("ngd", arm)):
        rows = factory.sample_rows(name, "arc", np.ones(len(scores)), details=False)
        for i, (row, score) in enumerate(zip(rows, scores, strict=True)):
            row["correct"] = float(score)
            row |= {} if clusters is None else {"cluster": f"passage {clusters[i]}"}
        runs.append(factory.write_run(tmp_path, name, rows))
    return compare(runs, draws=500, seed=3).iloc[1].to_dict()


BASE = np.repeat(factory.scores_of("base", 30, 0.4), 4)
ARM = np.repeat(factory.scores_of("ngd", 30, 0.7), 4)
PASSAGES = np.arange(120) // 4


def test_right_or_wrong_has_wilsons_interval_and_tangos(tmp_path):
    row = row_of(tmp_path, ARM, BASE)
    fixed, broken = paired.fixed_broken(ARM, BASE)
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx(paired.wilson(ARM.sum(), 120))
    assert (row["difference"], row["diff_low"], row["diff_high"]) == pytest.approx(
        paired.tango(fixed, broken, 120)
    )
    assert row["p"] == row["p_mcnemar"] == pytest.approx(float(paired.mcnemar(fixed, broken)))
    assert row["mde"] == pytest.approx(smallest_gain(ARM - BASE, 120, binary=True))


def test_graded_scores_have_bootstrap_intervals(tmp_path):
    arm, base = ARM * 0.5 + np.arange(120) / 400, BASE * 0.5
    row = row_of(tmp_path, arm, base)
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx(
        paired.bootstrap(arm, draws=500, seed=3)
    )
    wanted = paired.paired_bootstrap(arm, base, draws=500, seed=3)
    assert (row["difference"], row["diff_low"], row["diff_high"]) == pytest.approx(wanted)
    assert row["p"] == paired.sign_flip(arm - base, draws=500, seed=3)


def test_items_of_a_passage_are_drawn_together_for_the_arm_alone_too(tmp_path):
    row = row_of(tmp_path, ARM, BASE, PASSAGES)
    wanted = paired.bootstrap(ARM, draws=500, seed=3, clusters=PASSAGES)
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx(wanted, abs=0.02)
    assert row["high"] - row["low"] > 1.5 * (
        paired.wilson(ARM.sum(), 120).high - paired.wilson(ARM.sum(), 120).low
    )
    assert row["mde"] == pytest.approx(
        smallest_gain(paired.cluster_means(ARM - BASE, PASSAGES), 120, binary=True)
    )


@pytest.mark.parametrize(("passages", "test"), [(9, "mcnemar"), (10, "sign-flip")])
def test_ten_passages_are_enough_to_be_drawn(tmp_path, passages, test):
    n = passages * 2
    assert row_of(tmp_path, ARM[::3][:n], BASE[::3][:n], np.arange(n) // 2)["test"] == test


def test_six_items_are_the_fewest_that_can_show_anything():
    assert smallest_gain(np.zeros(6), 6, binary=True) == 1.0
    assert np.isnan(smallest_gain(np.zeros(5), 5, binary=True))
    assert np.isnan(smallest_gain(np.zeros(9), 9, binary=False))
    assert smallest_gain(np.array([0.0, 0.5, 0.0]), 3, binary=False) > 0


def test_the_spread_of_changed_items_allows_for_their_net_effect():
    fixed, broken, items = 15, 5, 100
    changes = [1] * fixed + [-1] * broken + [0] * (items - fixed - broken)
    assert discordant_sd((fixed + broken) / items, (fixed - broken) / items) == pytest.approx(np.std(changes))
