"""What goes through the model together: which rows share a pass, and how prompts and answers lie in a row.

Answers share their prompt's tokens, and no token sees another's branch: a tree is `lead` shared tokens
followed by branches of some tokens each. A row holds one tree or several, so little is lost to padding,
whatever the lengths.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LEAD, PADDING = -1, -2


def bucket_by_length(sizes: Sequence[int], ratio: float) -> list[list[int]]:
    """Indices in groups whose sizes differ by at most `ratio` (and one), smallest first.

    Little is lost to padding.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        if groups and sizes[index] <= ratio * sizes[groups[-1][0]] + 1:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def min_cost_buckets(sizes: Sequence[int], group: int) -> list[list[int]]:
    """Indices in groups, padded to their largest size, such that tokens plus `group` a group are fewest."""
    counts = sorted(Counter(sizes).items())
    best: list[tuple[int, int]] = [
        (0, 0)
    ]  # of the smallest sizes: the cost, and how many of them come before the last group
    for end in range(1, len(counts) + 1):
        widest, costs, rows = counts[end - 1][0], [], 0
        for start in reversed(range(end)):
            rows += counts[start][1]
            costs.append((best[start][0] + group + widest * rows, start))
        best.append(min(costs))
    groups, end = [], len(counts)
    while end:
        start = best[end][1]
        of_group = {size for size, _ in counts[start:end]}
        groups.append([index for index, size in enumerate(sizes) if size in of_group])
        end = start
    return groups[::-1]


def pad_right(
    sequences: list[tuple[int, ...]] | list[list[int]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids [rows, longest], padded with 0 on the right, and lengths [rows]."""
    lengths = torch.tensor([len(s) for s in sequences], device=device)
    ids = torch.zeros(len(sequences), max(1, int(lengths.max())), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return ids.to(device), lengths


class Tree(NamedTuple):
    """Lengths: `lead` tokens, then a branch for each of `branches`."""

    lead: int
    branches: tuple[int, ...]

    @property
    def size(self) -> int:
        """All tokens."""
        return self.lead + sum(self.branches)


@dataclass
class Packed:
    """Where the tokens of packed trees are. Places are indices into the flattened [rows x width].

    lead: place of the first token of each tree, in the order given.
    branches: place of the first token of each branch of each tree.
    offset: [rows, width] distance of each token from the first of its tree, along its branch.
    back: [rows, width, width] distance back to each visible token of the row, -1 where hidden.
    """

    lead: list[int]
    branches: list[list[int]]
    offset: Tensor
    back: Tensor


def pack(rows: Sequence[Sequence[tuple[int, Tree]]], device: torch.device) -> Packed:
    """Lay out rows of (number, tree); numbers count the trees from 0, in any order."""
    count = sum(len(row) for row in rows)
    width = max(1, max(sum(tree.size for _, tree in row) for row in rows))
    offset = torch.zeros(len(rows), width, dtype=torch.long)
    owner, branch = torch.full((len(rows), width), PADDING), torch.full((len(rows), width), PADDING)
    lead, branches = [0] * count, [[0]] * count
    for i, row in enumerate(rows):
        column = 0
        for number, tree in row:
            lead[number] = i * width + column
            owner[i, column : column + tree.size] = number
            branch[i, column : column + tree.lead] = LEAD
            offset[i, column : column + tree.lead] = torch.arange(tree.lead)
            column += tree.lead
            branches[number] = []
            for name, size in enumerate(tree.branches):
                branches[number].append(i * width + column)
                branch[i, column : column + size] = name
                offset[i, column : column + size] = tree.lead + torch.arange(size)
                column += size
    back = offset[:, :, None] - offset[:, None, :]
    seen = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == LEAD)
    seen &= (owner[:, :, None] == owner[:, None, :]) & (back >= 0)
    return Packed(lead, branches, offset.to(device), back.masked_fill(~seen, -1).to(device))


def fill(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices in rows of at most `capacity` tokens, longest first into the first row with room.

    What is longer has a row for itself.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        row = next((r for r, left in enumerate(room) if left >= sizes[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= sizes[index]
    return rows


def with_earlier(packed: Packed, earlier: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Positions [rows, tokens] and distances back [rows, tokens, width + tokens] after `earlier` tokens.

    `width` is the padded number of earlier keys; those beyond a row's own count are hidden.
    """
    positions = earlier[:, None] + packed.offset
    at = torch.arange(width, device=earlier.device)[None].expand(len(earlier), -1)
    back = positions[:, :, None] - at[:, None, :]
    back = back.masked_fill((at >= earlier[:, None])[:, None, :], -1)
    return positions, torch.cat([back, packed.back], dim=2)
