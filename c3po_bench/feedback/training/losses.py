"""The losses: constrained DPO (C3PO) and supervised context distillation, with their trainers.

    L = L_DPO(in scope) + lambda_out * L_keep(out of scope) + lambda_near * L_keep(near scope)

Stephan et al., "RLVF: Learning from Verbal Feedback without Overgeneralization", arXiv 2402.10893, eq. 5. The
in-scope term is any of TRL's losses on summed log-probabilities; L_keep is a mean over tokens: the negative
log-likelihood of the starting model's own answers (the paper), or the KL divergence from the starting model
on them at the same scale.

Supervised context distillation (SCD and SCD + Negatives, section 5) is the mean over all tokens of a batch of
revised answers, with the model's own answers elsewhere as negatives.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from accelerate.utils import is_peft_model
from datasets import Dataset
from packaging.version import Version
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import use_adapter

from c3po_bench.errors import unknown
from c3po_bench.feedback.training.recipes import CONSTRAINTS
from c3po_bench.feedback.training.rows import (
    IGNORED,
    SCOPES,
    Row,
    labelled_logits,
    pad_rows,
    pair_schedule,
    token_fields,
    token_kl,
)

CHECKPOINTING = (
    f"{'activation' if Version(transformers.__version__) >= Version('5.18') else 'gradient'}_checkpointing"
)
"""What transformers' arguments call it; TRL's are on by default."""


@dataclass
class ConstrainedDPOConfig(DPOConfig):
    """`DPOConfig` with the constraint: weights, kind, and rows a batch (of each scope)."""

    lambda_near: float = field(default=0.1, metadata={"help": "Weight of the near-scope term (paper: 0.1)."})
    lambda_out: float = field(default=0.2, metadata={"help": "Weight of the out-of-scope term (paper: 0.2)."})
    constraint: str = field(default="nll", metadata={"help": "nll or kl; both are means over tokens."})
    constraint_batch_size: int = field(default=4, metadata={"help": "Rows of each scope beside a batch."})
    plain_head: bool = field(
        default=True, metadata={"help": "Plain logits (CPU) in place of TRL's fused head."}
    )

    def __post_init__(self) -> None:
        """Checks the constraint and fixes what an exact resume needs.

        The rows come in the order of the schedule.
        """
        if self.constraint not in CONSTRAINTS:
            raise unknown("constraint", self.constraint, CONSTRAINTS)
        self.train_sampling_strategy = "sequential"
        if self.router_aux_loss_coef is None:
            self.router_aux_loss_coef = 0.0  # a load-balancing term is no part of either paper's objective
        super().__post_init__()


@dataclass
class ConstrainedCollator(DataCollatorForPreference):
    """TRL's collator, plus the constraint rows of a batch.

    These are ``keep_ids``, ``keep_labels``, ``keep_attention`` and ``keep_scope`` (an index into `SCOPES`).

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
            names = ("keep_ids", "keep_labels", "keep_attention")
            batch |= zip(names, pad_rows(kept, self.pad_token_id, self.max_length), strict=True)
            batch["keep_scope"] = torch.tensor(scopes)
        return batch


class ConstrainedDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` with near-scope and out-of-scope terms.

    `near`, `out` are the rows to keep answers on.

    `max_steps` decides how long it trains (or `num_train_epochs` passes over the pairs). The reference model
    runs on the pairs only, and only once when `precompute_ref_log_probs` is set.
    """

    args: ConstrainedDPOConfig

    def __init__(
        self,
        *args: Any,
        near: Sequence[Row] = (),
        out: Sequence[Row] = (),
        eval_near: Sequence[Row] = (),
        eval_out: Sequence[Row] = (),
        **kwargs: Any,
    ) -> None:
        config: ConstrainedDPOConfig = kwargs["args"]
        tokenizer = kwargs["processing_class"]
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        collator = ConstrainedCollator(
            pad_token_id=tokenizer.pad_token_id,
            max_length=config.max_length,
            tables={"near": list(near), "out": list(out)},
            eval_tables={"near": list(eval_near), "out": list(eval_out)},
        )
        super().__init__(*args, data_collator=collator, **kwargs)
        self.train_dataset = self._in_order(self.train_dataset, collator.tables)
        if isinstance(self.eval_dataset, Dataset):
            self.eval_dataset = self._attach_eval(self.eval_dataset, collator.eval_tables)

    def _in_order(self, pairs: Dataset, tables: dict[str, list[Row]]) -> Dataset:
        """The rows of the whole run (`rows.pair_schedule`); scopes of weight 0 are left out.

        The processes of a run take a batch's rows in turn, so together they see what one process would.
        """
        args = self.args
        batch = args.per_device_train_batch_size * args.world_size
        if args.max_steps <= 0:
            args.max_steps = math.ceil(
                args.num_train_epochs * len(pairs) / (batch * args.gradient_accumulation_steps)
            )
        weights = self.scope_weights()
        rows = pair_schedule(
            len(pairs),
            {scope: len(tables[scope]) for scope in SCOPES if weights[scope]},
            batch,
            args.constraint_batch_size,
            args.max_steps * args.gradient_accumulation_steps,
            args.seed,
        )
        ordered = pairs.select([row["pair"] for row in rows])
        for scope in SCOPES:
            ordered = ordered.add_column(f"{scope}_rows", [row.get(scope, []) for row in rows])  # type: ignore[call-arg]
        return ordered

    def _attach_eval(self, pairs: Dataset, tables: dict[str, list[Row]]) -> Dataset:
        """Every validation constraint row once, spread over the validation pairs."""
        for scope in SCOPES:
            rows = [list(range(i, len(tables[scope]), len(pairs))) for i in range(len(pairs))]
            pairs = pairs.add_column(f"{scope}_rows", rows)  # type: ignore[call-arg]
        return pairs.add_column("is_eval", [True] * len(pairs))  # type: ignore[call-arg]

    def scope_weights(self) -> dict[str, float]:
        """The weight by scope."""
        return {"near": self.args.lambda_near, "out": self.args.lambda_out}

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Leaves rows that already are token ids as they are."""
        if isinstance(dataset, Dataset) and "prompt_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(
            dict.fromkeys([*self._signature_columns, "near_rows", "out_rows", "is_eval"])
        )

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The reference sees pairs only."""
        pairs, _ = _split(inputs)
        return super().compute_ref_log_probs(self._head(model), pairs)

    def _head(self, model: Any) -> Any:
        """What TRL calls in place of the model."""
        return partial(token_fields, model) if self.args.plain_head else model

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """Equation 5: TRL's loss on the pairs plus the weighted constraint terms, recorded by scope."""
        pairs, keep = _split(inputs)
        loss = super()._compute_loss(self._head(model), pairs, False)
        mode = "train" if model.training else "eval"
        self._metrics[mode]["loss/pairs"].append(self._mean(loss))
        if keep:
            values, mask = self._constraint_values(model, keep)
        else:  # this process may have no such rows where another has some
            values = mask = loss.new_zeros(0)
        for index, scope in enumerate(SCOPES):
            rows = keep["scope"] == index if keep else mask.bool()
            if self.accelerator.reduce(rows.any().float(), reduction="sum"):
                term = token_mean(self.accelerator, values[rows], mask[rows])
                self._metrics[mode][f"{scope}/{self.args.constraint}"].append(self._mean(term))
                loss = loss + self.scope_weights()[scope] * term
        return (loss, {}) if return_outputs else loss

    def _constraint_values(self, model: Any, keep: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The constraint's value at every labelled token [rows, length - 1] and the mask of those tokens."""
        if self.args.constraint == "kl":
            return self._divergence(model, keep)
        if self.args.plain_head:
            fields = token_fields(model, keep["ids"], keep["labels"], attention_mask=keep["attention"])
            return -fields.log_probs, fields.mask
        output = model(
            input_ids=keep["ids"],
            attention_mask=keep["attention"],
            labels=keep["labels"],
            use_cache=False,
            fused_lm_head=True,
        )
        return -output.log_probs, keep["labels"][:, 1:] != IGNORED

    def _divergence(self, model: Any, keep: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(reference || policy) at every labelled token."""
        mask, attention = keep["labels"][:, 1:] != IGNORED, keep["attention"]
        with torch.no_grad(), self._reference() as reference:
            target, _ = labelled_logits(reference, keep["ids"], keep["labels"], attention_mask=attention)
        policy, _ = labelled_logits(model, keep["ids"], keep["labels"], attention_mask=attention)
        values = token_kl(target, policy)
        return values.new_zeros(mask.shape).masked_scatter(mask, values), mask

    @contextlib.contextmanager
    def _reference(self) -> Any:
        """The starting model: the given one, the frozen starting adapter, or the adapter switched off."""
        if self.ref_model is not None or not is_peft_model(self.model):
            if self.ref_model is None:
                raise ValueError("a KL constraint on a fully tuned model needs an explicit ref_model")
            yield self.ref_model
            return
        unwrapped = self.accelerator.unwrap_model(self.model)
        with use_adapter(unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None):
            yield self.model

    def _mean(self, loss: torch.Tensor) -> float:
        """A loss averaged over the processes."""
        mean: Any = self.accelerator.reduce(loss.detach(), reduction="mean")
        return mean.item()


def token_mean(accelerator: Any, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over tokens, over all processes: each one's sum over the average count."""
    count = accelerator.reduce(mask.sum().float(), reduction="mean")
    return values.sum() / count.clamp_min(1e-6)


def _split(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch in TRL's part and the constraint's part."""
    pairs = {k: v for k, v in inputs.items() if not k.startswith("keep_")}
    return pairs, {k.removeprefix("keep_"): v for k, v in inputs.items() if k.startswith("keep_")}


class AnswerTrainer(transformers.Trainer):
    """Mean token NLL of rows; `per_device_train_batch_size` counts all rows of a batch."""

    def __init__(self, *args: Any, max_length: int, **kwargs: Any) -> None:
        kwargs["args"].train_sampling_strategy = "sequential"
        kwargs["args"].remove_unused_columns = False
        tokenizer = kwargs["processing_class"]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

        def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
            names = ("input_ids", "row_labels", "attention_mask")
            return dict(zip(names, pad_rows(rows, pad, max_length), strict=True))

        super().__init__(*args, data_collator=collate, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the labelled tokens of the batch, over all processes."""
        fields = token_fields(
            model, inputs["input_ids"], inputs["row_labels"], attention_mask=inputs["attention_mask"]
        )
        loss = token_mean(self.accelerator, -fields.log_probs, fields.mask)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """The loss alone."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None
