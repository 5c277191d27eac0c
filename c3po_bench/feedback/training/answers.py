"""Supervised context distillation.

Likelihood of revised answers, with the model's own answers elsewhere as negatives.

SCD and SCD + Negatives of RLVF (arXiv 2402.10893, section 5): the loss is the mean over all tokens of a batch
in which, with negatives, half of the added rows are near scope and half out of scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer

from c3po_bench.feedback.training.heads import IGNORED, token_fields
from c3po_bench.feedback.training.rows import Row, pad_rows, walk


class LaidOut(TorchDataset):
    """The rows of a whole run in order, so that a resumed run goes on with exactly the rows it would have had."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def lay_out(
    inside: Sequence[Row], near: Sequence[Row], out: Sequence[Row], batch: int, batches: int, seed: int
) -> LaidOut:
    """Batches of `batch` in-scope rows, plus as many negatives where there are any.

    Half near scope, half out of scope.

    Where `batch` is odd, the odd negative is out of scope and near scope in turn.
    """
    sets = {"in": inside} | ({"near": near, "out": out} if near and out else {"negative": near or out})
    walks = {name: walk(len(rows), f"{name}/{seed}") for name, rows in sets.items() if rows}
    laid = []
    for turn in range(batches):
        close = (batch + turn % 2) // 2
        counts = {"in": batch, "near": close, "out": batch - close, "negative": batch}
        laid += [sets[name][next(steps)] for name, steps in walks.items() for _ in range(counts[name])]
    return LaidOut(laid)


class AnswerTrainer(Trainer):
    """Mean token NLL of rows; `per_device_train_batch_size` counts all rows of a batch."""

    def __init__(self, *args: Any, max_length: int, **kwargs: Any) -> None:
        kwargs["args"].train_sampling_strategy = "sequential"
        kwargs["args"].remove_unused_columns = False
        tokenizer = kwargs["processing_class"]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

        def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
            ids, labels = pad_rows(rows, pad, max_length)
            lengths = torch.tensor([min(len(r.prompt_ids) + len(r.completion_ids), max_length) for r in rows])
            attention = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            return {"input_ids": ids, "row_labels": labels, "attention_mask": attention}

        super().__init__(*args, data_collator=collate, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the labelled tokens of the batch, over all processes.

        Each one's sum over the average count.
        """
        fields = token_fields(
            model, inputs["input_ids"], inputs["row_labels"], attention_mask=inputs["attention_mask"]
        )
        count: Any = fields.mask.sum().float()
        if self.accelerator.num_processes > 1:
            count = self.accelerator.reduce(count, reduction="mean")
        loss = -fields.log_probs.sum() / count.clamp_min(1e-6)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """The loss alone."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


__all__ = ["IGNORED", "AnswerTrainer", "LaidOut", "lay_out"]
