"""Rows in groups times a matrix each, on a CPU.

Torch's operation `c3po_bench::grouped_product`, made of `grouped.c`.

A step asks each of some sixty experts about a few rows, and so reads hundreds of megabytes of weights for
little work each. One call for all experts, whose threads take panel after panel of weights that lie in the
order in which they are read, needs 0.45 to 0.7 of the time of oneDNN's calls, an expert each (3 to 30 rows).
Where nothing compiles, `available` is false and `packed` asks oneDNN.
"""

from __future__ import annotations

import ctypes
import functools
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from c3po_bench.rewiring.engines import compiled

SMALL = 1 << 17
"""Multiplications up to which a second thread takes longer to wake than to help (measured)."""


def available() -> bool:
    """Whether products can be asked for."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = compiled.load(Path(__file__).with_suffix(".c"))
    if library is not None:
        library.panel.restype = ctypes.c_size_t
        library.grouped_product.restype = None
        library.grouped_product.argtypes = [
            *[ctypes.c_void_p] * 4,
            *[ctypes.c_size_t] * 3,
            ctypes.c_void_p,
            ctypes.c_uint,
        ]
    return library


def in_panels(matrices: Tensor) -> Tensor:
    """A copy of matrices [n, out, in] as `grouped_product` reads them.

    [n, panels, in, outputs of a panel], zeros behind.
    """
    library = _library()
    assert library is not None
    count, outputs, inputs = matrices.shape
    width = library.panel()
    full, rest = divmod(outputs, width)
    panels = matrices.new_zeros(count, full + (rest > 0), inputs, width)
    panels[:, :full] = matrices[:, : full * width].unflatten(1, (full, width)).mT
    if rest:
        panels[:, full, :, :rest] = matrices[:, full * width :].mT
    return panels


def _grouped_product(rows: Tensor, panels: Tensor, counts: list[int], outputs: int) -> Tensor:
    library = _library()
    assert library is not None
    groups, inputs = len(panels), panels.shape[2]
    if rows.shape[1] != inputs or rows.dtype != torch.float32:
        raise ValueError(f"rows are {rows.dtype} {tuple(rows.shape)}, not float32 [n, {inputs}]")
    if len(counts) != groups or sum(counts) != len(rows):
        raise ValueError(
            f"{len(counts)} groups of {sum(counts)} rows in all for {groups} matrices and {len(rows)} rows"
        )
    rows = rows.contiguous()
    out = rows.new_empty(len(rows), outputs)
    several = ctypes.c_longlong * groups
    starts = several(0, *accumulate(counts[:-1]))
    threads = torch.get_num_threads() if rows.numel() * outputs > SMALL else 1
    library.grouped_product(
        rows.data_ptr(),
        panels.data_ptr(),
        several(*counts),
        starts,
        groups,
        inputs,
        outputs,
        out.data_ptr(),
        threads,
    )
    return out


# An operation of torch's, so that FLOP counters and profilers see it.
_ours = torch.library.Library("c3po_bench", "DEF")
_ours.define("grouped_product(Tensor rows, Tensor panels, int[] counts, int outputs) -> Tensor")
_ours.impl("grouped_product", _grouped_product, "CPU")
grouped_product = torch.ops.c3po_bench.grouped_product.default
"""Rows [n, in], the first counts[0] of them times the first matrix of `panels`, and so on -> [n, outputs].

No gradient.
"""
