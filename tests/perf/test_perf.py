"""The performance comparisons run, compare equal things, and cost grows as the documentation says."""

from __future__ import annotations

import pytest

from c3po_bench.errors import UserError
from c3po_bench.perf import PERFS, Options
from c3po_bench.perf.growth import GROWN, SMALL, compare


@pytest.mark.parametrize("size", [SMALL, GROWN], ids=["small", "all grown"])
def test_cost_grows_as_the_formula_says(size):
    found = compare("", size)
    assert found["ratio"] == pytest.approx(1, abs=0.01)
    assert all(
        found[f"{phase}_ratio"] == pytest.approx(1, abs=0.01) for phase in ("read", "optimize", "score")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PERFS if name != "growth"])
def test_every_comparison_measures_equal_things(name, data_root):
    records = list(PERFS[name](Options(rounds=1, data=data_root, quick=True)))
    assert records
    for record in records:
        assert record["name"] == name and record.get("ratio", 1) > 0
        assert record.get("max_abs_diff", 0) < 1e-3


def test_an_unknown_comparison_is_refused():
    with pytest.raises(UserError, match="suffix"):
        PERFS["sufix"]
