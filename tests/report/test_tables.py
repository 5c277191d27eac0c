"""Cells of the page's tables, and where the corners of the feedback triangle lie."""

from __future__ import annotations

import pytest

from c3po_bench.analysis.compare import compare
from c3po_bench.report.tables import comparison_rows, corner
from tests import store_factory as factory


@pytest.mark.parametrize(
    ("label", "detail"),
    [
        ("ngd", ""),
        ("ngd (k=1)", "k=1"),
        ("ngd (k=1) [e8d54f]", "k=1 [e8d54f]"),
        ("ngd [e8d54f]", "[e8d54f]"),
        ("ngd (f=g(x), k=1)", "f=g(x), k=1"),
        ("ngd (f=g(x))", "f=g(x)"),
    ],
)
def test_settings_are_cut_from_a_label_whole(tmp_path, label, detail):
    frame = compare(factory.store(tmp_path, base=[0, 1] * 5, ngd=[1, 1] * 5), draws=50)
    frame = frame[frame["arm"] == "ngd"].assign(label=label)
    assert comparison_rows(frame, frame[:0])[0].cells[0].detail == detail


def test_corners_lie_where_they_should():
    top, left, right = corner("in"), corner("near"), corner("out")
    assert top[1] < left[1] and left[0] < top[0] < right[0]
    assert corner("in", 2.0) == top  # a score above one ends at the corner
