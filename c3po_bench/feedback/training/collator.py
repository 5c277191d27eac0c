"""The collator that puts constraint rows beside TRL's preference pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from c3po_bench.feedback.training.rows import SCOPES, Row, pad_rows


@dataclass
class ConstrainedCollator(DataCollatorForPreference):
    """TRL's collator, plus ``keep_ids``, ``keep_labels``, ``keep_attention`` and ``keep_scope`` (an index into `SCOPES`).

    A row names its constraint rows by index in ``near_rows`` and ``out_rows``, so nothing is copied into the
    data set.
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
            lengths = torch.tensor(
                [min(len(r.prompt_ids) + len(r.completion_ids), self.max_length or 2**62) for r in kept]
            )
            batch["keep_ids"], batch["keep_labels"] = ids, labels
            batch["keep_attention"] = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            batch["keep_scope"] = torch.tensor(scopes)
        return batch
