"""Constrained DPO: learn the feedback where it applies, and stay what you were elsewhere (C3PO).

    L = L_DPO(in scope) + lambda_out * L_keep(out of scope) + lambda_near * L_keep(near scope)

Stephan et al., "RLVF: Learning from Verbal Feedback without Overgeneralization", arXiv 2402.10893, eq. 5. The
in-scope term is any of TRL's losses on summed log-probabilities; L_keep is a mean over tokens: the negative
log-likelihood of the starting model's own answers (the paper), or the KL divergence from the starting model
on them at the same scale.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from accelerate.utils import is_peft_model
from datasets import Dataset
from packaging.version import Version
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import use_adapter

from c3po_bench.errors import unknown
from c3po_bench.feedback.training.collator import ConstrainedCollator
from c3po_bench.feedback.training.heads import IGNORED, PlainHead, labelled_logits, token_fields
from c3po_bench.feedback.training.rows import SCOPES, Row, schedule
from c3po_bench.feedback.training.values import CONSTRAINTS

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
        self.train_dataset = self._lay_out(self.train_dataset, collator.tables)
        if isinstance(self.eval_dataset, Dataset):
            self.eval_dataset = self._attach_eval(self.eval_dataset, collator.eval_tables)

    def _lay_out(self, pairs: Dataset, tables: dict[str, list[Row]]) -> Dataset:
        """The rows of the whole run, in order (`rows.schedule`); scopes of weight 0 are left out.

        The processes of a run take a batch's rows in turn, so together they see what one process would.
        """
        args = self.args
        batch = args.per_device_train_batch_size * args.world_size
        if args.max_steps <= 0:
            args.max_steps = math.ceil(
                args.num_train_epochs * len(pairs) / (batch * args.gradient_accumulation_steps)
            )
        weights = self.scope_weights()
        rows = schedule(
            len(pairs),
            {scope: len(tables[scope]) for scope in SCOPES if weights[scope]},
            batch,
            args.constraint_batch_size,
            args.max_steps * args.gradient_accumulation_steps,
            args.seed,
        )
        laid = pairs.select([row["pair"] for row in rows])
        for scope in SCOPES:
            laid = laid.add_column(f"{scope}_rows", [row.get(scope, []) for row in rows])  # type: ignore[call-arg]
        return laid

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
        return PlainHead(model) if self.args.plain_head else model

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """Equation 5: TRL's loss on the pairs plus the weighted constraint terms, which are recorded by scope."""
        pairs, keep = _split(inputs)
        loss = super()._compute_loss(self._head(model), pairs, False)
        mode = "train" if model.training else "eval"
        self._metrics[mode]["loss/pairs"].append(self._mean(loss))
        values, mask = (
            self._constraint_values(model, keep) if keep else (loss.new_zeros(0), loss.new_zeros(0))
        )
        for index, scope in enumerate(SCOPES):
            rows = keep["scope"] == index if keep else mask.bool()
            if self._anywhere(rows):
                term = self._token_mean(values[rows], mask[rows])
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
        mask = keep["labels"][:, 1:] != IGNORED
        arguments = (keep["ids"], keep["labels"])
        with torch.no_grad(), self._reference() as reference:
            target, _ = labelled_logits(reference, *arguments, attention_mask=keep["attention"])
            target = target.float().log_softmax(dim=-1)
        policy, _ = labelled_logits(model, *arguments, attention_mask=keep["attention"])
        policy = policy.float().log_softmax(dim=-1)
        values = (target.exp() * (target - policy)).sum(dim=-1)
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

    def _token_mean(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean over tokens, over all processes: each one's sum over the average count."""
        count: Any = mask.sum()
        if self.accelerator.num_processes > 1:
            count = self.accelerator.reduce(count.float(), reduction="mean")
        return values.sum() / count.clamp_min(1e-6)

    def _mean(self, loss: torch.Tensor) -> float:
        """A loss averaged over the processes."""
        several = self.accelerator.num_processes > 1
        mean: Any = self.accelerator.reduce(loss.detach(), reduction="mean") if several else loss
        return mean.item()

    def _anywhere(self, rows: torch.Tensor) -> bool:
        """Whether any process has such rows."""
        here = rows.any()
        if self.accelerator.num_processes > 1:
            here = self.accelerator.reduce(here.float(), reduction="sum")  # type: ignore[assignment]
        return bool(here)


def _split(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch in TRL's part and the constraint's part."""
    pairs = {k: v for k, v in inputs.items() if not k.startswith("keep_")}
    return pairs, {k.removeprefix("keep_"): v for k, v in inputs.items() if k.startswith("keep_")}
