"""Shares of a gap: by hand, paired, and where few items leave no gap."""

from __future__ import annotations

import io
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from c3po_bench.analysis.gap import gap_table, share_recovered


def shares(**correct: list[int]):
    runs = [
        SimpleNamespace(
            arm=arm,
            samples=lambda values=values: [
                {"task": "planted", "doc_id": i, "correct": value} for i, value in enumerate(values)
            ],
        )
        for arm, values in correct.items()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return share_recovered(runs, draws=4000).set_index("arm")


def test_a_share_is_of_the_gap_and_its_interval_paired():
    base, optimum = [0, 1] * 40, [1] * 80
    half = [1, 1, 0, 1] * 20
    found = shares(base=base, ngd=half, planted_optimum=optimum)
    assert found["share"].to_dict() == {"base": 0.0, "ngd": 0.5, "planted_optimum": 1.0}
    assert found.loc["planted_optimum", ["low", "high"]].tolist() == [1.0, 1.0]
    spread = (0.25 / 40) ** 0.5  # of a half of the 40 items in the gap
    assert found.loc["ngd", ["low", "high"]].tolist() == pytest.approx(
        [0.5 - 1.96 * spread, 0.5 + 1.96 * spread], abs=0.02
    )


def test_few_items_bound_no_share_and_warn_of_nothing():
    found = shares(base=[0, 1, 1, 1], ngd=[1, 0, 1, 1], planted_optimum=[1] * 4)
    assert found.loc["ngd", "low"] == -np.inf and found.loc["ngd", "high"] == 1.0
    none = shares(base=[1, 1], ngd=[1, 0], planted_optimum=[1, 1])
    assert none[["share", "low", "high"]].isna().all(axis=None)
    console = Console(file=io.StringIO(), width=120)
    console.print(gap_table(found.reset_index()))
    console.print(gap_table(none.reset_index()))
    assert isinstance(console.file, io.StringIO) and "[-inf, 1.00]" in console.file.getvalue()
    assert "nan" not in console.file.getvalue()
