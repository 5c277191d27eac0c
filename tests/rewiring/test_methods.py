"""Surrogates on problems whose answer is known: formulas by hand, descent on a quadratic, controls as far as the method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from c3po_bench.errors import UserError
from c3po_bench.registry import checked_options, load, options_of
from c3po_bench.rewiring.arms import ARMS
from c3po_bench.rewiring.config import KernelConfig, MethodConfig, NeighborsConfig
from c3po_bench.rewiring.kernels import kernel_weights
from c3po_bench.rewiring.methods import Queries
from c3po_bench.rewiring.methods.kernel_regression import kernel_regression
from c3po_bench.rewiring.methods.mode_finding import mode_finding, mode_finding_random_neighbors
from c3po_bench.rewiring.methods.ngd import learning_rate, ngd, to_parameters, to_pathway
from c3po_bench.rewiring.methods.permuted_experts import ngd_permuted_experts
from c3po_bench.rewiring.methods.random_pathway import random_pathway
from c3po_bench.rewiring.methods.routing_temperature import routing_temperature
from c3po_bench.rewiring.movement import total_variation
from c3po_bench.rewiring.neighbors import Neighborhood
from c3po_bench.rewiring.pathway import core_experts

SOLVERS = [name for name, row in ARMS.items() if row.builds == "solver"]


def simplex(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def make_queries(queries: int = 3, experts: str = "all", seed: int = 0, **method) -> Queries:
    """Loss = squared distance to a target pathway, which is therefore the best one."""
    own, references, target = (
        simplex(queries, 2, 6, seed=seed),
        simplex(9, 2, 6, seed=100),
        simplex(queries, 2, 6, seed=seed + 7),
    )
    similarity = torch.rand(queries, 3, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.2
    options = MethodConfig(
        **{
            "experts": experts,
            "optimizer": "adam",
            "parameterization": "logits",
            "kernel": KernelConfig(bandwidth="0.5"),
            **method,
        }
    )
    weights = kernel_weights(options.kernel, similarity, torch.ones_like(similarity, dtype=torch.bool))
    index = torch.arange(queries)[:, None] + torch.arange(3)[None]
    return Queries(
        original=own,
        core=core_experts(own, experts, 2),
        neighborhood=Neighborhood(index, similarity, weights, torch.zeros(queries)),
        references=references,
        loss=lambda w: ((w - target) ** 2).sum((1, 2)),
        method=options,
        seeds=list(range(seed, seed + queries)),
    )


def take(queries: Queries, i: int) -> Queries:
    """The queries of query i alone (losses of the others are those of its own target)."""
    near = queries.neighborhood
    whole = queries.original

    def loss(w: torch.Tensor) -> torch.Tensor:
        return queries.loss(torch.cat([whole[:i], w, whole[i + 1 :]]))[i : i + 1]

    part = Neighborhood(
        near.index[i : i + 1], near.similarity[i : i + 1], near.weights[i : i + 1], near.dropped[i : i + 1]
    )
    return replace(
        queries,
        original=whole[i : i + 1],
        core=queries.core[i : i + 1],
        neighborhood=part,
        loss=loss,
        seeds=queries.seeds[i : i + 1],
    )


def hand_mean(queries: Queries) -> torch.Tensor:
    near, rows = queries.neighborhood, []
    for q in range(len(queries.original)):
        total = sum(near.weights[q, j] for j in range(3))
        rows.append(sum(near.weights[q, j] / total * queries.references[near.index[q, j]] for j in range(3)))
    return torch.stack(rows)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_kernel_regression_by_hand(alpha):
    queries = make_queries()
    solution = kernel_regression(queries, search="fixed", alpha=alpha)
    torch.testing.assert_close(solution.pathway, alpha * queries.original + (1 - alpha) * hand_mean(queries))
    assert solution.losses is None


@pytest.mark.parametrize("search", ["grid", "binary"])
def test_alpha_search_finds_the_least_loss(search):
    """The quadratic's best alpha is known in closed form; golden section may leave an interval of 0.62^17."""
    queries = make_queries(queries=5)
    mean = hand_mean(queries)
    fine = torch.linspace(0, 1, 1001)
    losses = torch.stack([queries.loss(a * queries.original + (1 - a) * mean) for a in fine])
    best = fine[losses.argmin(0)]
    solution = kernel_regression(queries, search=search, points=21)
    found = queries.loss(solution.pathway)
    expected = queries.loss(best[:, None, None] * queries.original + (1 - best[:, None, None]) * mean)
    assert (found - expected < 2e-3).all() and (found <= queries.loss(queries.original) + 1e-6).all()
    assert solution.losses.shape == (21, 5)
    assert (solution.losses.diff(dim=0) <= 0).all(), "the best loss so far never rises"
    assert len({round(float(a), 2) for a in best}) > 1, "the search should differ by query"


@pytest.mark.parametrize("search", ["grid", "binary"])
@pytest.mark.parametrize("best", [0.0, 1.0])
def test_a_search_takes_an_end_that_is_best(best, search):
    """And what it tried, never a point between that nobody evaluated."""
    queries = make_queries()
    end = best * queries.original + (1 - best) * hand_mean(queries)
    narrow = replace(queries, loss=lambda w: ((w - end).flatten(1).norm(dim=1) > 1e-6).float())
    torch.testing.assert_close(kernel_regression(narrow, search=search).pathway, end)


def tried(queries: Queries, search: str, points: int) -> list[float]:
    """The alphas whose loss the search asks for, of the first query."""
    own, mean, asked = queries.original[0], hand_mean(queries)[0], []

    def loss(w: torch.Tensor) -> torch.Tensor:
        asked.append(float(((w[0] - mean) * (own - mean)).sum() / ((own - mean) ** 2).sum()))
        return queries.loss(w)

    kernel_regression(replace(queries, loss=loss), search=search, points=points)
    return asked


def test_what_each_search_tries():
    """A grid over all of [0, 1]; golden section: the ends, then points that cut an interval by 0.618, one at a time."""
    queries = make_queries()
    assert tried(queries, "grid", 5) == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-5)
    found, golden = tried(queries, "binary", 6), (5**0.5 - 1) / 2
    assert found[:4] == pytest.approx([1, 0, 1 - golden, golden], abs=1e-5)
    assert found[4:] == pytest.approx(golden_points(queries, golden), abs=1e-4)


def golden_points(queries: Queries, golden: float) -> list[float]:
    """Points five and six of a golden section for the first query, written for one number."""
    own, mean = queries.original, hand_mean(queries)
    low, high, points = 0.0, 1.0, []
    for _ in range(2):
        inner, outer = high - golden * (high - low), low + golden * (high - low)
        one, two = (float(queries.loss(a * own + (1 - a) * mean)[0]) for a in (inner, outer))
        low, high = (low, outer) if one < two else (inner, high)
        points.append(high - golden * (high - low) if one < two else low + golden * (high - low))
    return points


def test_alpha_stays_at_the_original_pathway_where_it_does_not_matter():
    queries = replace(make_queries(), loss=lambda w: w.sum((1, 2)) * 0)
    for search in ("grid", "binary"):
        torch.testing.assert_close(kernel_regression(queries, search=search).pathway, queries.original)


def test_kernel_regression_without_neighbors_keeps_the_original_pathway():
    queries = make_queries()
    near = queries.neighborhood
    empty = replace(queries, neighborhood=replace(near, weights=near.weights * 0))
    torch.testing.assert_close(kernel_regression(empty, search="fixed").pathway, queries.original)


def test_unknown_search():
    with pytest.raises(UserError, match="search"):
        kernel_regression(make_queries(), search="gird")


def test_mode_finding_by_hand():
    """One mean-shift step, written with loops: neighbors by cosine in pathway space."""
    queries = make_queries(neighbors=NeighborsConfig(k=2))
    solution = mode_finding(queries, iterations=1, alpha=0.25)
    for q in range(3):
        flat = queries.original[q].flatten()
        cosine = torch.stack([torch.cosine_similarity(flat, r.flatten(), dim=0) for r in queries.references])
        index = cosine.argsort(descending=True)[:2]
        distance = (2 - 2 * cosine[index]).sqrt()
        weight = torch.exp(-(distance**2) / (2 * 0.5**2))
        mean = (weight[:, None, None] * queries.references[index]).sum(0) / weight.sum()
        torch.testing.assert_close(solution.pathway[q], 0.25 * queries.original[q] + 0.75 * mean)


def test_mode_finding_converges_into_the_references():
    queries = make_queries(neighbors=NeighborsConfig(k=1))
    solution = mode_finding(queries, iterations=60, alpha=0.5)
    nearest = torch.cdist(solution.pathway.flatten(1), queries.references.flatten(1)).min(1).values
    assert (nearest < 1e-5).all()
    torch.testing.assert_close(mode_finding(queries, iterations=0).pathway, queries.original)


def test_the_control_of_mode_finding_weighs_drawn_references_as_the_nearest():
    """With the weights of the nearest, whose sum is 1: one step by hand, and a draw that depends on the item's seed alone."""
    queries = make_queries(neighbors=NeighborsConfig(k=2))
    found = mode_finding_random_neighbors(queries, iterations=1, alpha=0.25).pathway
    for q, seed in enumerate(queries.seeds):
        flat = queries.original[q].flatten()
        cosine = torch.stack([torch.cosine_similarity(flat, r.flatten(), dim=0) for r in queries.references])
        weight = torch.exp(-(2 - 2 * cosine.sort(descending=True).values[:2]) / (2 * 0.5**2))
        drawn = torch.randperm(9, generator=torch.Generator().manual_seed(seed))[:2]
        mean = (weight[:, None, None] * queries.references[drawn]).sum(0) / weight.sum()
        torch.testing.assert_close(found[q], 0.25 * queries.original[q] + 0.75 * mean)
    alone = replace(queries, original=queries.original[1:2], seeds=queries.seeds[1:2])
    torch.testing.assert_close(
        mode_finding_random_neighbors(alone, iterations=1, alpha=0.25).pathway, found[1:2]
    )
    every = make_queries(neighbors=NeighborsConfig(k=20), kernel=KernelConfig(bandwidth="1e6"))
    torch.testing.assert_close(mode_finding_random_neighbors(every).pathway, mode_finding(every).pathway)


@pytest.mark.parametrize("parameterization", ["logits", "probabilities"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_ngd_descends_on_the_simplex(parameterization, optimizer):
    rate = {"adam": 0.05, "sgd": 0.5}[optimizer] * (1 if parameterization == "logits" else 0.3)
    queries = make_queries(
        parameterization=parameterization, optimizer=optimizer, learning_rate=rate, steps=40
    )
    solution = ngd(queries)
    assert (queries.loss(solution.pathway) < 0.6 * queries.loss(queries.original)).all()
    torch.testing.assert_close(solution.losses[0], queries.loss(queries.original), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(solution.pathway.sum(-1), torch.ones(3, 2))
    assert (solution.pathway >= 0).all() and solution.losses.shape == (40, 3)


@pytest.mark.parametrize("parameterization", ["logits", "probabilities"])
def test_ngd_moves_core_experts_only(parameterization):
    queries = make_queries(experts="top:3", parameterization=parameterization, learning_rate=0.05)
    solution = ngd(queries)
    outside = ~queries.core
    before, after = (
        queries.original.masked_fill(queries.core, 0),
        solution.pathway.masked_fill(queries.core, 0),
    )
    if parameterization == "probabilities":
        torch.testing.assert_close(after[outside], before[outside])
    else:  # their proportions stay; the softmax shares out what the core gives or takes
        torch.testing.assert_close(after / after.sum(-1, keepdim=True), before / before.sum(-1, keepdim=True))
    assert (solution.pathway - queries.original)[queries.core].abs().max() > 1e-3


@pytest.mark.parametrize("parameterization", ["logits", "probabilities"])
def test_parameters_stand_for_the_original_pathway_at_first(parameterization):
    queries = make_queries(experts="top:3")
    parameters = to_parameters(queries.original, parameterization)
    torch.testing.assert_close(
        to_pathway(parameters, queries.core, queries.original, parameterization), queries.original
    )


def test_no_steps_is_no_change():
    queries = make_queries(steps=0)
    solution = ngd(queries)
    torch.testing.assert_close(solution.pathway, queries.original)
    assert solution.losses is None


def test_learning_rate_schedules():
    method = MethodConfig(learning_rate=0.1, final_learning_rate=1e-4, steps=10)
    cosine = [learning_rate(method, s) for s in range(11)]
    assert (
        cosine[0] == pytest.approx(0.1)
        and cosine[10] == pytest.approx(1e-4)
        and cosine[5] == pytest.approx(0.05005)
    )
    assert all(a > b for a, b in zip(cosine, cosine[1:], strict=False))
    method.schedule = "fixed"
    assert {learning_rate(method, s) for s in range(10)} == {0.1}
    method.schedule, method.steps = "step", 9
    assert [round(learning_rate(method, s), 4) for s in range(9)] == [0.1] * 3 + [0.05] * 3 + [0.025] * 3


@pytest.mark.parametrize("parameterization", ["logits", "probabilities"])
def test_random_pathway_is_as_far_as_ngd(parameterization):
    """In each layer, on the same simplex: what NGD may not move stays, the core's total weight too."""
    queries = make_queries(experts="top:4", learning_rate=0.05, parameterization=parameterization)
    moved, random = ngd(queries).pathway, random_pathway(queries).pathway
    far = (moved - queries.original).norm(dim=-1)
    torch.testing.assert_close((random - queries.original).norm(dim=-1), far, atol=1e-4, rtol=1e-3)
    assert (random - moved).abs().max() > 0.01
    torch.testing.assert_close(random.sum(-1), torch.ones(3, 2))
    if parameterization == "probabilities":
        torch.testing.assert_close(random[~queries.core], queries.original[~queries.core])
    else:  # their proportions stay
        before, after = (pathway.masked_fill(queries.core, 0) for pathway in (queries.original, random))
        torch.testing.assert_close(after / after.sum(-1, keepdim=True), before / before.sum(-1, keepdim=True))


def test_temperature_sharpens():
    queries = make_queries()
    torch.testing.assert_close(routing_temperature(queries, temperature=1.0).pathway, queries.original)
    assert (routing_temperature(queries, temperature=0.5).pathway.amax(-1) > queries.original.amax(-1)).all()


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"planted_optimum", "right_expert", "oracle"}))
def test_queries_do_not_interact(name):
    queries = make_queries(queries=4, learning_rate=0.05)
    together = load(ARMS[name].factory)(queries).pathway
    for i in range(4):
        alone = load(ARMS[name].factory)(take(queries, i)).pathway[0]
        torch.testing.assert_close(alone, together[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_surrogates_document_their_options(name):
    function = load(ARMS[name].factory)
    assert function.__doc__
    for option in options_of(function):
        assert f"{option}:" in function.__doc__ or len(options_of(function)) == 1


def test_options_are_checked():
    assert options_of(kernel_regression) == {"search": "grid", "alpha": 0.0, "points": 11}
    assert (
        options_of(mode_finding)
        == options_of(mode_finding_random_neighbors)
        == {"iterations": 10, "alpha": 0.5}
    )
    assert checked_options("a", kernel_regression, {"alpha": 1}) == {
        "search": "grid",
        "alpha": 1,
        "points": 11,
    }
    with pytest.raises(UserError, match="did you mean 'alpha'"):
        checked_options("kernel_regression", kernel_regression, {"alhpa": 1})
    with pytest.raises(UserError, match="int expected"):
        checked_options("kernel_regression", kernel_regression, {"points": "many"})
    with pytest.raises(UserError, match="int expected"):
        checked_options("kernel_regression", kernel_regression, {"points": True})


@pytest.mark.parametrize("parameterization", ["logits", "probabilities"])
@pytest.mark.parametrize("experts", ["all", "top:4"])
def test_permuted_experts_have_ngds_weights_and_distance(parameterization, experts):
    queries = make_queries(8, experts, parameterization=parameterization, learning_rate=0.3, steps=6)
    own, core = queries.original, queries.core
    moved, permuted = ngd(queries).pathway, ngd_permuted_experts(queries).pathway
    assert torch.allclose(permuted.sort().values, moved.sort().values), "the same weights"
    assert torch.equal(permuted[~core], moved[~core]), "within the core"
    own_top = own.topk(2, dim=-1).indices
    others = core.clone().scatter(-1, own_top, False)
    assert (permuted != moved)[others].all(), "each of the others gets another's weight"
    goal, found = total_variation(own, moved), total_variation(own, permuted)
    far = (found - goal).abs()  # of top:4 only two experts are others: they have one way to change places
    assert far.mean() < 0.04 and far.max() < (0.1 if experts == "all" else 0.15)
    again = ngd_permuted_experts(replace(queries, descent=ngd(queries)))
    assert torch.equal(again.pathway, permuted)
    alone = ngd_permuted_experts(take(queries, 2)).pathway
    assert torch.allclose(alone[0], permuted[2], atol=1e-5), "drawn by the item alone"


def test_permuted_experts_of_a_pathway_that_stands_still_run_the_same_experts():
    queries = make_queries(4, steps=0)
    permuted = ngd_permuted_experts(queries).pathway
    before, after = queries.original.topk(2), permuted.topk(2)
    assert torch.equal(before.indices, after.indices) and torch.allclose(before.values, after.values)
