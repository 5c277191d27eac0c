"""The cost chart's names: none lies over another, however alike arms cost and gain."""

from __future__ import annotations

import math

import pytest

from c3po_bench.report.figures import NAMED, _spread


def points(spots: list[tuple[float, float]]) -> list[dict]:
    return [
        {"arm": f"NGD with neighbors {i}", "seconds": s, "difference": d, "low": d - 2, "high": d + 2}
        for i, (s, d) in enumerate(spots)
    ]


@pytest.mark.parametrize(
    "spots",
    [
        [(0.2, 0.0)] * NAMED,
        [(0.2, 1.0), (0.21, 1.1), (0.22, 0.9), (3.0, 1.0)],
        [(0.1, 5.0), (1.0, 5.0)],
        [(0.3, 1.0)],
        [],
    ],
    ids=["all the same", "three close", "far apart", "one", "none"],
)
def test_no_name_lies_over_another(spots):
    given = points(spots)
    named = _spread(given)
    assert sorted(p["arm"] for p in named) == sorted(p["arm"] for p in given)
    if not given:
        return
    costs = [math.log10(p["seconds"]) for p in given]
    across = max(costs) - min(costs) or 1
    line = (max(p["high"] for p in given) - min(p["low"] for p in given)) / 19
    for i, one in enumerate(named):
        assert math.log10(one["name_x"]) > math.log10(one["seconds"])
        for other in named[:i]:  # from left to right
            apart = math.log10(one["name_x"] / other["name_x"]) >= len(other["arm"]) * across / 80
            assert apart or abs(one["name_y"] - other["name_y"]) > 0.99 * line, (one, other)


def test_a_lone_name_stands_beside_its_point():
    far, near = _spread(points([(0.1, 5.0), (1.0, -5.0)]))
    assert abs(far["name_y"] - 5.0) < 0.5 and abs(near["name_y"] + 5.0) < 0.5
