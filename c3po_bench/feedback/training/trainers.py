"""From plan and data to a ready trainer: rows, LoRA, training arguments."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from c3po_bench.errors import UserError, finite
from c3po_bench.feedback.answering import completion_ids, prompt_ids
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.synthesis import Example, FeedbackDataset
from c3po_bench.feedback.training.distributed import RankGroup, share_of
from c3po_bench.feedback.training.losses import (
    CHECKPOINTING,
    AnswerTrainer,
    ConstrainedDPOConfig,
    ConstrainedDPOTrainer,
)
from c3po_bench.feedback.training.recipes import Plan, precision
from c3po_bench.feedback.training.rows import SCOPES, Row, answer_schedule
from c3po_bench.models.targets import check_adapted, find_targets
from c3po_bench.runtime.console import Progress
from c3po_bench.store.files import remove
from c3po_bench.store.records import file_checksums, write_sealed

CHECKPOINT_STEPS = 10  # a killed training goes on from the last multiple of them


class _Steps(TrainerCallback):
    """Shows steps as everything else in the program is shown."""

    def __init__(self, what: str) -> None:
        self.what, self.progress = what, Progress()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first step, which may take a minute."""
        self.progress(self.what, state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each optimizer step."""
        self.progress(self.what, state.global_step, state.max_steps)


class _Guard(TrainerCallback):
    """Stops a training that diverges, and seals each checkpoint with the checksums of its files.

    The trainer itself would log a loss of 0 in place of one that is no number, and go on.
    """

    def __init__(self, plan: Plan, group: RankGroup, seal: str) -> None:
        self.plan, self.group, self.seal = plan, group, seal

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """After each step: the losses, and the norm of the gradient."""
        for name, value in (logs or {}).items():
            if isinstance(value, float) and "loss" in name or name == "grad_norm":
                what = f"{self.plan.name}: {name.replace('_', ' ')} of the training"
                try:
                    finite(value, what, state.global_step)
                except UserError:  # what was saved may hold the seed of it
                    remove(Path(args.output_dir))
                    raise

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each checkpoint, when every rank has written its part."""
        self.group.wait()
        if self.group.is_main_process:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_sealed(folder / self.seal, file_checksums(folder, skip=(self.seal,)))


def guard(trainer: Any, plan: Plan, group: RankGroup, seal: str) -> None:
    """Have a training stop where it diverges, and each checkpoint get a file `seal` of checksums."""
    trainer.add_callback(_Guard(plan, group, seal))


def loss_now(trainer: Any) -> float:
    """The loss of a training's first batch under the weights as they are: the last step's own was logged before it."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)))


def show_progress(trainer: Any, what: str) -> None:
    """Put our progress bar in place of the trainer's printing."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Steps(what))


def lora_config(model: Any, plan: Plan) -> LoraConfig:
    """LoRA on the named modules; on MoE models the router and the experts only where the plan says so."""
    cfg, targets = plan.cfg.lora, find_targets(model, plan.cfg.lora)
    return LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=list(targets.modules) or None,
        target_parameters=list(targets.parameters) or None,
    )


def _arguments(
    plan: Plan, context: SynthesisContext, folder: Path, lr: float, steps: int, batch: int, validated: bool
) -> dict[str, Any]:
    train, device = plan.cfg.train, context.subject.model.device
    every = train.eval_every if validated else 0
    return {
        "output_dir": str(folder),
        "max_steps": steps or -1,
        "num_train_epochs": train.epochs,
        "learning_rate": lr,
        "per_device_train_batch_size": share_of(batch, "feedback.train.batch_size"),
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "lr_scheduler_type": train.scheduler,
        "warmup_steps": train.warmup_ratio,
        CHECKPOINTING: train.gradient_checkpointing,
        "use_cpu": device.type == "cpu",
        # a rank may have no constraint row, hence one forward less: forwards must not wait for each other
        "ddp_broadcast_buffers": False,
        "ddp_find_unused_parameters": False,
        "bf16": precision(train.precision, device.type) == "bfloat16",
        "eval_strategy": "steps" if every else "no",
        "eval_steps": every or None,
        "per_device_eval_batch_size": train.batch_size,
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "save_strategy": "steps",
        "save_steps": CHECKPOINT_STEPS,
        "save_total_limit": 2,  # should the last be damaged
        "logging_nan_inf_filter": False,  # it would log 0 in their place
        "report_to": "none",
        "seed": plan.training_seed(context.seed),
        "data_seed": plan.training_seed(context.seed),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _fits(prompt: list[int], max_length: int, left_out: Counter[str]) -> bool:
    """Whether anything of an answer to `prompt` is left to train on; counted where not."""
    left_out["overlong_prompts"] += len(prompt) >= max_length
    return len(prompt) < max_length


def pair_rows(
    examples: Sequence[Example], tokenizer: Any, max_length: int, left_out: Counter[str]
) -> list[dict[str, list[int]]]:
    """Preference pairs as token ids: revised over baseline.

    Revisions that changed nothing are left out and counted.
    """
    rows = []
    for e in examples:
        if e.revised is None or e.baseline is None:
            continue
        if e.revised == e.baseline.text:
            left_out["unchanged_revisions"] += 1
            continue
        prompt = prompt_ids(tokenizer, e.prompt)
        if _fits(prompt, max_length, left_out):
            chosen = completion_ids(tokenizer, e.revised, e.revised_finished)
            rejected = completion_ids(tokenizer, e.baseline.text, e.baseline.finished)
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


def answer_rows(
    examples: Sequence[Example], tokenizer: Any, max_length: int, left_out: Counter[str]
) -> list[Row]:
    """Answers to train on as token ids: the revised ones in scope, the base model's own elsewhere."""
    rows = []
    for e in examples:
        text, finished = e.revised, e.revised_finished
        if e.scope != "in":
            text, finished = (e.baseline.text, e.baseline.finished) if e.baseline else (None, True)
        if text is None or (e.scope != "in" and not text):
            continue
        prompt = prompt_ids(tokenizer, e.prompt)
        if _fits(prompt, max_length, left_out):
            rows.append(Row(prompt, completion_ids(tokenizer, text, finished)))
    return rows


def make_trainer(
    plan: Plan,
    datasets: Sequence[FeedbackDataset],
    context: SynthesisContext,
    model: Any,
    folder: Path,
    start: Path | None = None,
) -> tuple[Any, dict[str, int], dict[str, int]]:
    """The trainer of a plan on the data of some pieces.

    Args:
        plan: what is trained on, and by which numbers.
        datasets: of the pieces that the adapter is for.
        context: in which they were made.
        model: without any adapter.
        folder: of the checkpoints.
        start: the folder of the adapter that a training on pairs goes on from.

    Returns:
        The trainer, the numbers of its rows by kind, and the numbers of rows left out by reason.

    Raises:
        UserError: where no row is left to train on.
    """
    left_out, most = Counter[str](), plan.cfg.train.max_length

    def select(scope: str, split: str) -> list[Example]:
        return [e for d in datasets for e in d.select(scope, split)]

    def answers(scope: str, split: str) -> list[Row]:
        return answer_rows(select(scope, split), context.subject.tokenizer, most, left_out)

    def pairs(split: str) -> list[dict[str, list[int]]]:
        return pair_rows(select("in", split), context.subject.tokenizer, most, left_out)

    if plan.recipe.objective == "pairs":
        trainer, counts = _pair_trainer(plan, context, model, folder, start, pairs, answers)
    else:
        trainer, counts = _answer_trainer(plan, context, model, folder, answers)
    return trainer, counts, +left_out


def _pair_trainer(
    plan: Plan,
    context: SynthesisContext,
    model: Any,
    folder: Path,
    start: Path | None,
    rows_of: Callable[[str], list[dict[str, list[int]]]],
    answers_of: Callable[[str, str], list[Row]],
) -> tuple[Any, dict[str, int]]:
    """The constrained DPO trainer.

    The reference is the base model, also where training starts from an adapter.
    """
    cfg, device = plan.cfg, context.subject.model.device
    pairs, validation = rows_of("train"), rows_of("validation")
    if not pairs:
        raise UserError(
            "no preference pair is left: every revision equals its baseline, or its prompt fills "
            f"feedback.train.max_length={cfg.train.max_length}; take another piece, or raise it"
        )
    keep = {(scope, split): answers_of(scope, split) for scope in SCOPES for split in ("train", "validation")}
    args = ConstrainedDPOConfig(
        **_arguments(
            plan, context, folder, cfg.train.lr, cfg.train.steps, cfg.train.batch_size, bool(validation)
        ),
        beta=cfg.beta,
        loss_type=plan.loss_type,
        lambda_near=plan.lambda_near,
        lambda_out=plan.lambda_out,
        constraint=plan.constraint,
        constraint_batch_size=cfg.train.constraint_batch_size,
        plain_head=device.type == "cpu",
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=4 * cfg.train.batch_size,
        max_length=cfg.train.max_length,
        disable_dropout=False,  # TRL's default; what is asked happens in every arm
    )
    group = RankGroup(device.type)
    trainer = ConstrainedDPOTrainer(
        model=model,
        args=args,
        processing_class=context.subject.tokenizer,
        peft_config=lora_config(model, plan),
        train_dataset=_dataset(pairs, group, folder.with_name("pairs")),
        eval_dataset=_dataset(validation, group, folder.with_name("kept")) if validation else None,
        near=keep["near", "train"],
        out=keep["out", "train"],
        eval_near=keep["near", "validation"],
        eval_out=keep["out", "validation"],
    )
    check_adapted(trainer.model, cfg.lora)
    if start is not None:
        set_peft_model_state_dict(trainer.model, load_peft_weights(str(start), device=str(model.device)))
    return trainer, {"pairs": len(pairs)} | {f"{scope}_rows": len(keep[scope, "train"]) for scope in SCOPES}


def _dataset(rows: list[dict[str, list[int]]], group: RankGroup, folder: Path) -> Dataset:
    """Rows as a `Dataset`; of several ranks, one kept in `folder`, since TRL's caches lie beside the data."""
    dataset = Dataset.from_list(rows)
    if not group.several:
        return dataset
    if group.is_main_process:
        dataset.save_to_disk(str(folder))
    group.wait()
    return Dataset.load_from_disk(str(folder))


def _answer_trainer(
    plan: Plan,
    context: SynthesisContext,
    model: Any,
    folder: Path,
    answers_of: Callable[[str, str], list[Row]],
) -> tuple[Any, dict[str, int]]:
    """The distillation trainer.

    Each batch holds as many negatives as in-scope rows where the recipe has them.
    """
    cfg, recipe = plan.cfg.train, plan.recipe
    inside = answers_of("in", "train")
    if not inside:
        raise UserError(f"every in-scope prompt fills feedback.train.max_length={cfg.max_length}: raise it")
    near = answers_of("near", "train") if recipe.near else []
    out = answers_of("out", "train") if recipe.out else []
    batch = cfg.batch_size * (2 if near or out else 1)
    steps = cfg.sft_steps or max(
        1, round(cfg.epochs * len(inside) / (cfg.batch_size * cfg.gradient_accumulation_steps))
    )
    validation = {scope: rows for scope in ("in", *SCOPES) if (rows := answers_of(scope, "validation"))}
    arguments = _arguments(plan, context, folder, cfg.sft_lr, steps, batch, bool(validation))
    seed = plan.training_seed(context.seed)
    set_seed(seed)
    trainer = AnswerTrainer(
        model=check_adapted(get_peft_model(model, lora_config(model, plan)), plan.cfg.lora),
        args=TrainingArguments(**arguments),
        train_dataset=answer_schedule(
            inside, near, out, cfg.batch_size, steps * cfg.gradient_accumulation_steps, seed
        ),
        eval_dataset=validation or None,
        processing_class=context.subject.tokenizer,
        max_length=cfg.max_length,
    )
    return trainer, {"in_rows": len(inside), "near_rows": len(near), "out_rows": len(out)}
