"""Constraint rows, their order over the steps, and the collator that puts them beside TRL's preference pairs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

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
    """Endless indices below `n`: one seeded permutation after the other, so every index comes equally often."""
    for turn in range(2**62):
        order = list(range(n))
        random.Random(f"{seed}/{turn}").shuffle(order)
        yield from order


def schedule(
    pairs: int, sizes: Mapping[str, int], batch: int, constraint_batch: int, batches: int, seed: int
) -> list[dict[str, Any]]:
    """What each pair row of `batches` batches holds: ``pair`` (an index) and, by scope, a list of constraint indices.

    Every set is walked at its own pace, so the sets need not be equal in size, and the whole run is laid out before it
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


def pad_rows(rows: Sequence[Row], pad_token_id: int, max_length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [rows, longest], padded on the right."""
    tensors = [row.tensors(max_length) for row in rows]
    stack = torch.nn.utils.rnn.pad_sequence
    ids = stack([t[0] for t in tensors], batch_first=True, padding_value=pad_token_id)
    return ids, stack([t[1] for t in tensors], batch_first=True, padding_value=IGNORED)


@dataclass
class ConstrainedCollator(DataCollatorForPreference):
    """TRL's collator, plus ``keep_ids``, ``keep_labels``, ``keep_attention`` and ``keep_scope`` (an index into `SCOPES`).

    A row names its constraint rows by index in ``near_rows`` and ``out_rows``, so nothing is copied into the data set.
    """

    tables: dict[str, list[Row]] = field(default_factory=dict)
    eval_tables: dict[str, list[Row]] = field(default_factory=dict)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """One padded batch."""
        batch = super().torch_call(examples)
        kept: list[Row] = []
        scopes: list[int] = []
        for index, scope in enumerate(SCOPES):
            for example in examples:
                tables = self.eval_tables if example.get("is_eval") else self.tables
                rows = [tables[scope][i] for i in example.get(f"{scope}_rows") or []]
                kept += rows
                scopes += [index] * len(rows)
        if kept:
            ids, labels = pad_rows(kept, self.pad_token_id, self.max_length)
            lengths = torch.tensor([min(len(r.prompt_ids) + len(r.completion_ids), self.max_length or 2**62) for r in kept])
            batch["keep_ids"], batch["keep_labels"] = ids, labels
            batch["keep_attention"] = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            batch["keep_scope"] = torch.tensor(scopes)
        return batch
