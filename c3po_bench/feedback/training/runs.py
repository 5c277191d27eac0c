"""From plan and material to a ready trainer: rows, LoRA, training arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftLora
from peft import get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from c3po_bench.console import Progress
from c3po_bench.errors import UserError
from c3po_bench.feedback.chat import completion_ids, prompt_ids
from c3po_bench.feedback.synthesis import Material
from c3po_bench.feedback.training.adapters import pair_rows
from c3po_bench.feedback.training.answers import AnswerTrainer, lay_out
from c3po_bench.feedback.training.constrained import ConstrainedDPOConfig, ConstrainedDPOTrainer
from c3po_bench.feedback.training.precision import precision
from c3po_bench.feedback.training.recipes import Plan
from c3po_bench.feedback.training.rows import Row
from c3po_bench.feedback.training.together import Together, share_of
from c3po_bench.feedback.workshop import Workshop

_EXPERTS = ("gate_up_proj", "down_proj")  # the fused expert weights of transformers 5
_ROUTER_MARKS = (".gate", ".router", ".gate.", ".router.")


class _Watch(TrainerCallback):
    """Shows steps as everything else in the program is shown."""

    def __init__(self, what: str) -> None:
        self.what, self.progress = what, Progress()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each optimizer step."""
        self.progress(self.what, state.global_step, state.max_steps)


def watch(trainer: Any, what: str) -> None:
    """Put our progress bar in place of the trainer's printing."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Watch(what))


def lora_config(model: Any, plan: Plan) -> PeftLora:
    """LoRA on the named modules; on MoE models the router and the experts only where the plan says so."""
    cfg = plan.cfg.lora
    fused = [name for name, _ in model.named_parameters() if ".experts." in name and name.endswith(_EXPERTS)]
    routers = [name for name, _ in model.named_modules() if name.endswith((".gate", ".router"))]
    targets: Any = cfg.targets
    if "all-linear" in cfg.targets:
        targets = _linear_names(model, set() if cfg.routers else set(routers)) or "all-linear"
    if cfg.experts and fused and cfg.dropout:
        raise UserError("feedback.lora.dropout must be 0 where fused experts are adapted (feedback.lora.experts=true)")
    parameters = sorted({name.split(".", 3)[-1] for name in fused}) if cfg.experts and fused else None
    return PeftLora(
        r=cfg.rank, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, bias="none", task_type="CAUSAL_LM",
        target_modules=targets, target_parameters=parameters,
    )  # fmt: skip


def _linear_names(model: Any, without: set[str]) -> list[str]:
    """Full names of all linear layers but the head, the fused experts (which are none) and `without`."""
    import torch

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and name not in without
    ]


def _arguments(plan: Plan, workshop: Workshop, folder: Path, lr: float, steps: int, batch: int) -> dict[str, Any]:
    train, device = plan.cfg.train, workshop.subject.model.device
    return {
        "output_dir": str(folder), "max_steps": steps or -1, "num_train_epochs": train.epochs, "learning_rate": lr,
        "per_device_train_batch_size": share_of(batch, "feedback.train.batch"),
        "gradient_accumulation_steps": train.accumulation,
        "lr_scheduler_type": train.scheduler, "warmup_steps": train.warmup, "max_grad_norm": train.max_grad_norm,
        "activation_checkpointing": train.gradient_checkpointing, "use_cpu": device.type == "cpu",
        # a rank may have no constraint row, hence one forward less: forwards must not wait for each other
        "ddp_broadcast_buffers": False, "ddp_find_unused_parameters": False,
        "bf16": precision(train.precision, device.type) == "bfloat16",
        "optim": "adamw_torch", "weight_decay": 0.0, "logging_steps": 1, "logging_strategy": "steps",
        "save_strategy": "steps", "save_steps": train.save_every, "save_total_limit": 1, "report_to": "none",
        "seed": workshop.seed, "data_seed": workshop.seed, "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip


def _rows(materials: Sequence[Material], scope: str, split: str, tokenizer: Any) -> list[Row]:
    """The base model's own answers in a scope, or the revised ones for ``in``."""
    rows = []
    for example in (e for m in materials for e in m.select(scope, split)):
        answer = example.baseline
        if scope == "in":
            if example.revised is None:
                continue
            text, finished = example.revised, example.revised_finished
        elif answer is not None and answer.text:
            text, finished = answer.text, answer.finished
        else:
            continue
        rows.append(Row(prompt_ids(tokenizer, example.prompt), completion_ids(tokenizer, text, finished)))
    return rows


def make_pair_trainer(
    plan: Plan, materials: Sequence[Material], workshop: Workshop, model: Any, folder: Path, start: Path | None
) -> tuple[Any, dict[str, int]]:
    """The constrained DPO trainer. The reference is the base model, also where training starts from an adapter."""
    cfg, tokenizer = plan.cfg, workshop.subject.tokenizer
    pairs = {
        split: pair_rows([e for m in materials for e in m.select("in", split)], tokenizer, workshop)
        for split in ("train", "validation")
    }
    if not pairs["train"]:
        raise UserError("no preference pair is left: every revision equals its baseline; take another piece")
    keep = {
        (scope, split): _rows(materials, scope, split, tokenizer)
        for scope in ("near", "out")
        for split in ("train", "validation")
    }
    together = Together(workshop.subject.model.device.type)
    args = ConstrainedDPOConfig(
        **_arguments(plan, workshop, folder, cfg.train.lr, cfg.train.steps, cfg.train.batch),
        beta=cfg.beta, loss_type=plan.loss_type, loss_weights=list(cfg.loss_weights) or None,
        lambda_near=plan.lambda_near, lambda_out=plan.lambda_out, constraint=plan.constraint,
        kl_temperature=cfg.kl_temperature, constraint_batch_size=cfg.train.constraint_batch,
        single_forward=cfg.train.single_forward, plain_head=workshop.subject.model.device.type == "cpu",
        precompute_ref_log_probs=cfg.train.precompute_reference, precompute_ref_batch_size=4 * cfg.train.batch,
        max_length=cfg.train.max_length, eval_strategy="steps" if cfg.train.eval_every else "no",
        eval_steps=cfg.train.eval_every or None, per_device_eval_batch_size=cfg.train.batch,
    )  # fmt: skip
    trainer = ConstrainedDPOTrainer(
        model=model, args=args, processing_class=tokenizer, peft_config=lora_config(model, plan),
        train_dataset=together.dataset(pairs["train"], folder.with_name("pairs")),
        eval_dataset=together.dataset(kept, folder.with_name("kept")) if (kept := pairs["validation"]) else None,
        near=keep["near", "train"], out=keep["out", "train"],
        eval_near=keep["near", "validation"], eval_out=keep["out", "validation"],
    )  # fmt: skip
    if start is not None:
        set_peft_model_state_dict(trainer.model, load_peft_weights(str(start), device=str(model.device)))
    counts = {"pairs": len(pairs["train"])} | {f"{s}_rows": len(keep[s, "train"]) for s in ("near", "out")}
    return trainer, counts


def make_answer_trainer(
    plan: Plan, materials: Sequence[Material], workshop: Workshop, model: Any, folder: Path, start: Path | None
) -> tuple[Any, dict[str, int]]:
    """The distillation trainer; each batch holds as many negatives as in-scope rows where the recipe has them."""
    del start
    cfg, recipe, tokenizer = plan.cfg.train, plan.recipe, workshop.subject.tokenizer
    inside = _rows(materials, "in", "train", tokenizer)
    near = _rows(materials, "near", "train", tokenizer) if recipe.near else []
    out = _rows(materials, "out", "train", tokenizer) if recipe.out else []
    batch = cfg.batch * (2 if near or out else 1)
    steps = cfg.sft_steps or max(1, round(cfg.epochs * len(inside) / (cfg.batch * cfg.accumulation)))
    arguments = _arguments(plan, workshop, folder, cfg.sft_lr, steps, batch)
    set_seed(workshop.seed)
    validation = _rows(materials, "in", "validation", tokenizer)
    trainer = AnswerTrainer(
        model=get_peft_model(model, lora_config(model, plan)),
        args=TrainingArguments(**arguments, per_device_eval_batch_size=cfg.batch),
        train_dataset=lay_out(inside, near, out, cfg.batch, steps * cfg.accumulation, workshop.seed),
        eval_dataset=lay_out(validation, [], [], len(validation), 1, 0) if validation else None,
        processing_class=tokenizer,
        max_length=cfg.max_length,
    )
    return trainer, {"in_rows": len(inside), "near_rows": len(near), "out_rows": len(out)}
