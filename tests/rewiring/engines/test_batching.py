"""Which rows share a pass: no partition of the sorted sizes is cheaper."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from c3po_bench.rewiring.engines.batching import min_cost_buckets


def cost(groups, sizes, group):
    return sum(group + len(rows) * max(sizes[i] for i in rows) for rows in groups)


@pytest.mark.parametrize("group", [0, 3, 20, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_no_partition_is_cheaper(group, seed):
    draw = random.Random(seed)
    sizes = [draw.choice([1, 2, 3, 5, 8, 13]) for _ in range(9)]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    cheapest = min(
        cost([order[a:b] for a, b in zip((0, *cuts), (*cuts, len(order)), strict=True)], sizes, group)
        for count in range(len(sizes))
        for cuts in combinations(range(1, len(sizes)), count)
    )
    groups = min_cost_buckets(sizes, group)
    assert sorted(i for rows in groups for i in rows) == list(range(len(sizes)))
    assert cost(groups, sizes, group) == cheapest


def test_a_pass_that_costs_much_is_shared_by_all():
    assert min_cost_buckets([1, 9, 1], 1000) == [[0, 1, 2]]
    assert min_cost_buckets([1, 9, 1], 1) == [[0, 2], [1]]
    assert min_cost_buckets([], 1) == []
