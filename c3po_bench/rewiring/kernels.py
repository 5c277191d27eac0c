"""Kernels: a neighbor's weight from its distance or cosine similarity (paper Table 6).

All take `distance` and `similarity` of unit-length embeddings, [..., k], and a bandwidth broadcastable to
them, for which the paper gives no value.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from c3po_bench.errors import UserError
from c3po_bench.registry import Registry
from c3po_bench.rewiring.config import KernelConfig

TINY = 1e-12


def gaussian(distance: Tensor, similarity: Tensor, bandwidth: Tensor, degree: int) -> Tensor:
    """exp(-d^2 / 2 s^2)."""
    return torch.exp(-(distance**2) / (2 * bandwidth**2))


def linear(distance: Tensor, similarity: Tensor, bandwidth: Tensor, degree: int) -> Tensor:
    """The cosine similarity itself, as the paper's released code weighs; negative ones count as 0."""
    return similarity.clamp_min(0.0)


def polynomial(distance: Tensor, similarity: Tensor, bandwidth: Tensor, degree: int) -> Tensor:
    """((1 + cosine) / 2) ^ degree."""
    return ((1 + similarity) / 2) ** degree


def matern12(distance: Tensor, similarity: Tensor, bandwidth: Tensor, degree: int) -> Tensor:
    """exp(-d / s)."""
    return torch.exp(-distance / bandwidth)


def matern32(distance: Tensor, similarity: Tensor, bandwidth: Tensor, degree: int) -> Tensor:
    """(1 + r) exp(-r), r = sqrt(3) d / s."""
    r = math.sqrt(3) * distance / bandwidth
    return (1 + r) * torch.exp(-r)


def matern52(distance: Tensor, similarity: Tensor, bandwidth: Tensor, degree: int) -> Tensor:
    """(1 + r + r^2 / 3) exp(-r), r = sqrt(5) d / s."""
    r = math.sqrt(5) * distance / bandwidth
    return (1 + r + r**2 / 3) * torch.exp(-r)


KERNELS: Registry[Callable[[Tensor, Tensor, Tensor, int], Tensor]] = Registry(
    "method.kernel.name",
    {kernel.__name__: kernel for kernel in (gaussian, linear, polynomial, matern12, matern32, matern52)},
)


def check_kernel(cfg: KernelConfig) -> None:
    """Refuse an unknown kernel or a bandwidth that is neither `median` nor a positive number.

    Raises:
        UserError: in one line.
    """
    KERNELS.check(cfg.name)
    try:
        fits = cfg.bandwidth == "median" or 0 < float(cfg.bandwidth) < math.inf
    except ValueError:
        fits = False
    if not fits:
        raise UserError(f"method.kernel.bandwidth={cfg.bandwidth}: use median or a positive number")


def kernel_weights(cfg: KernelConfig, similarity: Tensor, mask: Tensor) -> Tensor:
    """Weights [queries, k] of neighbors with cosine `similarity` [queries, k]; 0 where `mask` is false.

    Only their ratios count: where all are far for the bandwidth, they are given relative to the largest, lest
    they be lost.
    """
    check_kernel(cfg)
    if not similarity.shape[-1]:
        return similarity
    given, similarity = similarity.dtype, similarity.double()
    distance = (2 - 2 * similarity).clamp_min(0.0).sqrt()
    if cfg.bandwidth == "median":
        known = distance.masked_fill(~mask, float("nan"))
        bandwidth = known.nanmedian(dim=-1, keepdim=True).values.nan_to_num(1.0).clamp_min(1e-6)
    else:
        bandwidth = distance.new_tensor(float(cfg.bandwidth))
    weights = KERNELS[cfg.name](distance, similarity, bandwidth, cfg.degree).masked_fill(~mask, 0.0)
    largest = weights.amax(dim=-1, keepdim=True)
    return torch.where((largest > 0) & (largest < TINY), weights / largest, weights).to(given)
