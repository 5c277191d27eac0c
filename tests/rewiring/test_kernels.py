"""Kernels against scikit-learn and scipy, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.gaussian_process.kernels import RBF, Matern

from c3po_bench.errors import UserError
from c3po_bench.rewiring.config import KernelConfig
from c3po_bench.rewiring.kernels import KERNELS, kernel_weights


@pytest.fixture(scope="module")
def units():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:1], vectors[1:]


def weights(units, **options):
    query, bank = units
    similarity = torch.tensor(query @ bank.T)
    return kernel_weights(
        KernelConfig(**options), similarity, torch.ones_like(similarity, dtype=torch.bool)
    ).numpy()


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_gaussian_is_rbf(units, scale):
    np.testing.assert_allclose(
        weights(units, name="gaussian", bandwidth=str(scale)), RBF(scale)(*units), rtol=1e-9
    )


@pytest.mark.parametrize(("name", "nu"), [("matern12", 0.5), ("matern32", 1.5), ("matern52", 2.5)])
def test_matern_is_sklearns(units, name, nu):
    np.testing.assert_allclose(
        weights(units, name=name, bandwidth="0.7"), Matern(0.7, nu=nu)(*units), rtol=1e-9
    )


def test_median_bandwidth_is_the_neighbors_median_distance(units):
    distance = np.sort(cdist(*units)[0])
    lower_median = distance[(len(distance) - 1) // 2]
    np.testing.assert_allclose(
        weights(units, name="gaussian", bandwidth="median"), RBF(lower_median)(*units), rtol=1e-9
    )


def test_every_query_has_a_median_of_its_own():
    """Of three queries with three neighbors, one of them masked: a bandwidth laid along the wrong axis would fit, too."""
    similarity = torch.tensor([[0.9, 0.8, 0.7], [0.5, 0.4, 0.3], [0.6, 0.1, 0.0]])
    mask = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    found = kernel_weights(KernelConfig(), similarity, mask)
    for row, known, together in zip(similarity, mask, found, strict=True):
        torch.testing.assert_close(kernel_weights(KernelConfig(), row[None], known[None])[0], together)
        distance = (2 - 2 * row).sqrt()
        torch.testing.assert_close(
            together, (torch.exp(-(distance**2) / (2 * distance[known].median() ** 2)) * known)
        )


def test_linear_is_cosine_and_polynomial_its_power(units):
    cosine = units[0] @ units[1].T
    np.testing.assert_allclose(weights(units, name="linear"), cosine.clip(0), rtol=1e-12)
    np.testing.assert_allclose(
        weights(units, name="polynomial", degree=4), ((1 + cosine) / 2) ** 4, rtol=1e-12
    )


@pytest.mark.parametrize("name", KERNELS)
def test_nearer_weighs_more_and_masked_weighs_nothing(name):
    similarity = torch.tensor([[0.9, 0.5, 0.1, 0.1]])
    mask = torch.tensor([[True, True, True, False]])
    found = kernel_weights(KernelConfig(name=name), similarity, mask)[0]
    assert found[0] > found[1] > found[2] > 0 and found[3] == 0


@pytest.mark.parametrize("name", KERNELS)
def test_identical_and_lone_neighbors_give_finite_weights(name):
    ones = torch.ones(1, 3)
    assert torch.isfinite(kernel_weights(KernelConfig(name=name), ones, ones.bool())).all()
    none = kernel_weights(KernelConfig(name=name), ones, torch.zeros(1, 3, dtype=torch.bool))
    assert none.equal(torch.zeros(1, 3))


def test_no_neighbors_have_no_weights():
    assert kernel_weights(KernelConfig(), torch.ones(2, 0), torch.ones(2, 0, dtype=torch.bool)).shape == (
        2,
        0,
    )


@pytest.mark.parametrize("bandwidth", ["0", "-1", "wide", "nan"])
def test_bandwidths_that_cannot_be(bandwidth):
    with pytest.raises(UserError, match="method.kernel.bandwidth"):
        kernel_weights(
            KernelConfig(bandwidth=bandwidth), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
        )


def test_unknown_kernel_names_the_nearest():
    with pytest.raises(UserError, match="'gaussian'"):
        kernel_weights(KernelConfig(name="gausian"), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("name", ["gaussian", "matern12", "matern32", "matern52"])
def test_neighbors_far_for_the_bandwidth_keep_their_ratios(name):
    """Their weights are below what single precision has; a mean over them must stay a mean."""
    similarity = torch.tensor([[0.3, 0.2, 0.1], [0.99, 0.2, 0.1]])
    found = kernel_weights(
        KernelConfig(name=name, bandwidth="0.1" if name == "gaussian" else "0.02"), similarity, similarity > 0
    )
    assert found[0, 0] == 1 and 0 < found[0, 1] < 1 and found[0, 2] < found[0, 1]
    if name == "gaussian":
        assert found[0, 1] == pytest.approx(np.exp(-(1.6 - 1.4) / 0.02), rel=1e-4)
        assert found[1, 0] == pytest.approx(np.exp(-0.02 / 0.02), rel=1e-4)
