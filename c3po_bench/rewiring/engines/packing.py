"""Several answers after one prompt in one row: they share its keys and values, and do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAD, PADDING = -1, -2


@dataclass
class Packed:
    """Where the tokens of packed rows are.

    start: column of the first token of each answer, by row.
    offset: [rows, width] distance of each token from the first one after the earlier tokens.
    back: [rows, width, width] distance back to each visible token of the row, -1 where hidden.
    """

    start: list[list[int]]
    offset: Tensor
    back: Tensor


def pack(sizes: Sequence[Sequence[int]], lead: int, device: torch.device) -> Packed:
    """Lay out rows of `lead` shared tokens followed by answers of `sizes` tokens each."""
    width = max(1, max(lead + sum(row) for row in sizes))
    offset = torch.zeros(len(sizes), width, dtype=torch.long)
    branch = torch.full((len(sizes), width), PADDING)
    starts = []
    for i, row in enumerate(sizes):
        branch[i, :lead] = LEAD
        offset[i, :lead] = torch.arange(lead)
        column, found = lead, []
        for answer, size in enumerate(row):
            found.append(column)
            branch[i, column : column + size] = answer
            offset[i, column : column + size] = lead + torch.arange(size)
            column += size
        starts.append(found)
    back = offset[:, :, None] - offset[:, None, :]
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == LEAD)
    return Packed(starts, offset.to(device), back.masked_fill(~same | (back < 0), -1).to(device))


def with_earlier(packed: Packed, earlier: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Positions [rows, tokens] and distances back [rows, tokens, width + tokens] after `earlier` [rows] tokens.

    `width` is the padded number of earlier keys; those beyond a row's own count are hidden.
    """
    positions = earlier[:, None] + packed.offset
    at = torch.arange(width, device=earlier.device)[None].expand(len(earlier), -1)
    back = positions[:, :, None] - at[:, None, :]
    back = back.masked_fill((at >= earlier[:, None])[:, None, :], -1)
    return positions, torch.cat([back, packed.back], dim=2)
