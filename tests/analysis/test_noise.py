"""The noise floor: the note's example, columns, the verdict's sentence, and what it keeps from being called a gain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from c3po_bench.analysis import statistics
from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.frames import records
from c3po_bench.analysis.noise import floor_of, p_of_changes
from c3po_bench.analysis.tables import console_table
from c3po_bench.analysis.verdict import direction, verdict
from tests import store_factory as factory

AGAIN = {"name": "base_again", "title": "base again", "role": "repeat"}


def test_the_notes_example():
    share = 12 / 1000
    assert math.sqrt(share / 1000) == pytest.approx(0.003464102, abs=1e-9)
    assert floor_of(12, 1000) == pytest.approx(0.006789514, abs=1e-9)
    assert float(statistics.mcnemar(7, 5)) == pytest.approx(0.774414, abs=1e-6)
    assert p_of_changes(40, 12) == pytest.approx(0.000127539, abs=1e-9)
    assert p_of_changes(0, 0) == 1.0 and floor_of(0, 10) == 0.0


def noisy_store(root, n: int, noise: tuple[int, int], arm: tuple[int, int], ties: int = 0):
    """Base right on every other of n items, base again and NGD with so many items fixed and broken."""
    base = np.arange(n) % 2

    def changed(fixed: int, broken: int) -> np.ndarray:
        scores = base.copy()
        scores[np.flatnonzero(base == 0)[:fixed]] = 1
        scores[np.flatnonzero(base == 1)[:broken]] = 0
        return scores

    runs = factory.store(root, base=base.tolist(), ngd=changed(*arm).tolist())
    rows = factory.sample_rows("base_again", "arc", changed(*noise), details=False)
    counts = {"routing_ties": ties} if ties else {}
    return [*runs, factory.write_run(root, "base_again", rows, arm_row=AGAIN, counts=counts)]


def test_flips_of_base_stand_in_table_and_verdict(tmp_path):
    frame = compare(noisy_store(tmp_path, 1000, (7, 5), (35, 5), ties=3))
    base, again, ngd = sorted(records(frame), key=lambda row: ["base", "base_again", "ngd"].index(row["arm"]))
    assert (again["fixed"], again["broken"], again["noise"]) == (7, 5, 0.012)
    assert ngd["noise_floor"] == pytest.approx(0.006789514, abs=1e-9)
    assert ngd["p_noise"] == pytest.approx(0.000127539, abs=1e-9)
    assert base["noise"] != base["noise"] and again["p_noise"] != again["p_noise"]
    assert (
        again["p"] > 0.5 and again["p_holm"] != again["p_holm"] and ngd["tests"] == 1
    )  # no claim to correct for
    assert "noise floor by base_again: 0.7 points" in str(console_table(frame).caption)
    said = verdict(frame)
    assert said.startswith("NGD beats base by 3.0 points")
    assert said.endswith(
        "Noise floor: base asked again in other batches changes 12 of 1000 items (7 fixed, 5 broken; differences "
        "up to 0.7 points are noise); 3 items have a routing tie within rounding."
    )


def test_what_noise_does_as_well_is_no_gain(tmp_path):
    frame = compare(noisy_store(tmp_path, 1000, (100, 100), (60, 36)))
    ngd = next(row for row in records(frame) if row["arm"] == "ngd")
    assert ngd["p_holm"] < 0.05 and ngd["diff_low"] > 0 and ngd["difference"] < ngd["noise_floor"]
    assert direction(ngd) == 0 and "NGD cannot be told from base" in verdict(frame)
    few = verdict(compare(noisy_store(tmp_path / "few", 100, (3, 3), (3, 2))))
    assert "; it changes 5 items, base asked again 6." in few
    still = verdict(compare(noisy_store(tmp_path / "still", 100, (0, 0), (3, 2))))
    assert "base asked again in other batches changes 0 of 100 items." in still


def test_feedback_has_a_noise_floor_by_scope(tmp_path):
    runs = factory.feedback_store(tmp_path)
    rows = [row for scope in ("in", "near", "out") for row in factory.feedback_rows("base", scope, 40)]
    again = factory.write_run(
        tmp_path,
        "base_again",
        [row | {"arm": "base_again"} for row in rows],
        arm_row=AGAIN,
        backend="feedback",
    )
    said = verdict(compare([*runs, again]))
    assert "base again" not in said and "items in scope" in said and said.count("Noise floor") == 1
