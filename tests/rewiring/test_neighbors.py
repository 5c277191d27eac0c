"""Retrieval: k nearest, epsilon ball, near-duplicates, and the control's random draw."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from c3po_bench.rewiring.config import MethodConfig, NeighborsConfig
from c3po_bench.rewiring.neighbors import item_seed, nearest, random_draw


def units(count: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def method(**changes) -> MethodConfig:
    return MethodConfig(neighbors=NeighborsConfig(**changes))


def test_knn_is_sklearns():
    queries, bank = units(5, 0), units(40, 1)
    found = nearest(method(k=4), queries, bank)
    _, index = (
        NearestNeighbors(n_neighbors=4, algorithm="brute").fit(bank.numpy()).kneighbors(queries.numpy())
    )
    assert found.index.tolist() == index.tolist()
    torch.testing.assert_close(found.similarity, (queries[:, None] * bank[found.index]).sum(-1))
    assert (found.weights > 0).all() and (found.dropped == 0).all()


def test_epsilon_ball_is_sklearns():
    queries, bank = units(5, 0), units(40, 1)
    found = nearest(method(kind="epsilon", epsilon=0.9, epsilon_most=40), queries, bank)
    _, index = (
        NearestNeighbors(radius=0.9, algorithm="brute").fit(bank.numpy()).radius_neighbors(queries.numpy())
    )
    ours = [set(i[w > 0].tolist()) for i, w in zip(found.index, found.weights, strict=True)]
    assert ours == [set(map(int, row)) for row in index]
    assert len({len(row) for row in ours}) > 1, "the ball should hold different numbers"
    few = nearest(method(kind="epsilon", epsilon=0.9, epsilon_most=2), queries, bank)
    assert few.index.shape == (5, 2)


def test_near_duplicates_are_dropped_and_counted():
    bank = units(20, 1)
    queries = torch.stack([bank[3], bank[7]])
    found = nearest(method(k=3), queries, bank)
    assert 3 not in found.index[0] and 7 not in found.index[1] and found.dropped.tolist() == [1, 1]
    kept = nearest(method(k=3, max_similarity=2.0), queries, bank)
    assert kept.index[0, 0] == 3 and kept.dropped.tolist() == [0, 0]


def test_a_bank_of_duplicates_leaves_no_neighbor():
    bank = units(1, 1).expand(4, -1)
    found = nearest(method(k=3), bank[:1], bank)
    assert (found.weights == 0).all() and found.dropped.tolist() == [4]
    assert (random_draw(method(k=3), bank[:1], bank, [0]).weights == 0).all(), "nor does the control draw one"


def test_fewer_references_than_k():
    assert nearest(method(k=9), units(2, 0), units(4, 1)).index.shape == (2, 4)


def test_random_draw_depends_on_the_items_seed_only():
    queries, bank = units(3, 0), units(30, 1)
    seeds = [item_seed(0, name) for name in "abc"]
    together = random_draw(method(k=3), queries, bank, seeds)
    for i in range(3):
        assert (
            random_draw(method(k=3), queries[i : i + 1], bank, seeds[i : i + 1])
            .index[0]
            .equal(together.index[i])
        )
    assert (
        random_draw(method(k=3), queries, bank, [item_seed(1, n) for n in "abc"]).index.tolist()
        != together.index.tolist()
    )


def test_random_draw_is_even_and_never_a_near_duplicate():
    bank = units(10, 1)
    queries = bank[:1].expand(400, -1)
    found = random_draw(method(k=3), queries, bank, [item_seed(0, i) for i in range(400)])
    used = found.index[found.weights > 0]
    counts = np.bincount(used.numpy(), minlength=10)
    assert counts[0] == 0 and (counts[1:] > 80).all()
    assert ((found.weights > 0).sum(-1) == 3).all(), (
        "a dropped duplicate is replaced, so the control has k neighbors"
    )


def test_the_control_has_as_many_neighbors_with_the_same_weights():
    """Only which references they are differs: in an epsilon ball, too, and where a linear kernel gives some no weight."""
    queries, bank = units(6, 0), units(40, 1)
    seeds = [item_seed(0, i) for i in range(6)]
    ball = method(kind="epsilon", epsilon=0.9, epsilon_most=40)
    linear = method(k=30)
    linear.kernel.name = "linear"
    for choice in (ball, linear):
        found, drawn = nearest(choice, queries, bank), random_draw(choice, queries, bank, seeds)
        assert len(set((found.weights > 0).sum(-1).tolist())) > 1
        torch.testing.assert_close(drawn.weights, found.weights)
        assert not drawn.index.equal(found.index)
