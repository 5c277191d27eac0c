"""Constraint rows and their order over the steps.

Without TRL, which is slow to import, for scoring arms that do not train.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from c3po_bench.feedback.training.heads import IGNORED

SCOPES = ("near", "out")


@dataclass(frozen=True)
class Row:
    """One prompt and the answer that the model should keep giving to it."""

    prompt_ids: list[int]
    completion_ids: list[int]

    def tensors(self, max_length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels [length], cut at `max_length`, prompt ignored in the labels."""
        ids = (self.prompt_ids + self.completion_ids)[:max_length]
        labels = ([IGNORED] * len(self.prompt_ids) + self.completion_ids)[:max_length]
        return torch.tensor(ids), torch.tensor(labels)


def walk(n: int, seed: str) -> Iterator[int]:
    """Endless indices below `n`.

    One seeded permutation after the other, so every index comes equally often.
    """
    for turn in range(2**62):
        order = list(range(n))
        random.Random(f"{seed}/{turn}").shuffle(order)
        yield from order


def schedule(
    pairs: int, sizes: Mapping[str, int], batch: int, constraint_batch: int, batches: int, seed: int
) -> list[dict[str, Any]]:
    """What each pair row of `batches` batches holds.

    ``pair`` (an index) and, by scope, a list of constraint indices.

    Every set is walked at its own pace, so the sets need not be equal in size, and the whole run is laid out
    before it
    starts: a resumed run goes on with exactly the rows it would have had.
    """
    order = walk(pairs, f"pairs/{seed}")
    walks = {scope: walk(n, f"{scope}/{seed}") for scope, n in sizes.items() if n}
    rows = []
    for _ in range(batches):
        chosen = {scope: [next(w) for _ in range(constraint_batch)] for scope, w in walks.items()}
        for slot in range(batch):
            rows.append({"pair": next(order), **{scope: chosen[scope][slot::batch] for scope in chosen}})
    return rows


def pad_rows(
    rows: Sequence[Row], pad_token_id: int, max_length: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [rows, longest], padded on the right."""
    tensors = [row.tensors(max_length) for row in rows]
    stack = torch.nn.utils.rnn.pad_sequence
    ids = stack([t[0] for t in tensors], batch_first=True, padding_value=pad_token_id)
    return ids, stack([t[1] for t in tensors], batch_first=True, padding_value=IGNORED)
