"""Adapters: trained once for each (model, data, plan), kept in the cache, resumed exactly after a kill."""

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any, TypedDict

from c3po_bench.errors import UserError, finite, out_of_memory
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.synthesis import FeedbackDataset
from c3po_bench.feedback.training.distributed import RankGroup
from c3po_bench.feedback.training.recipes import Plan, precision
from c3po_bench.models.flops import counting, shape_of, trained_part
from c3po_bench.models.targets import find_targets
from c3po_bench.store.files import remove, writing
from c3po_bench.store.records import file_checksums, lost_file, read_sealed, write_sealed

log = logging.getLogger(__name__)
DONE = "training.json"
WHOLE = "checksums.json"
"""In each checkpoint, written last: what its files were."""
VERSION = 2  # raise when training changes its numbers
TERMS = ("loss/pairs", "near/nll", "out/nll", "near/kl", "out/kl", "rewards/margins", "rewards/accuracies")
VALIDATED = ("loss", *TERMS, "in_loss", "near_loss", "out_loss")


class Training(TypedDict):
    """training.json: what was written down of a finished training."""

    seconds: float
    flops: int | None
    resumed_from: str | None
    loss: list[float]
    terms: dict[str, list[float]]
    validation: dict[str, list[float]]
    counts: dict[str, int]
    left_out: dict[str, int]
    plan: dict[str, Any]
    files: dict[str, str]  # checksums of the adapter's files


def adapter_folder(plan: Plan, datasets: Sequence[FeedbackDataset], context: SynthesisContext) -> Path:
    """Where the adapter of this plan on these data and this model lives."""
    identity = {
        "version": VERSION,
        "model": context.subject.hash,
        "data": [d.digest() for d in datasets],
        "seed": plan.training_seed(context.seed),
        **resolved(plan, context),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    ids = "+".join(d.feedback.id for d in datasets)[:60]
    return context.folder / "adapters" / f"{plan.name}-{ids}-{digest}"


def resolved(plan: Plan, context: SynthesisContext) -> dict[str, Any]:
    """The plan's numbers, with the precision of this machine and what is adapted of this model."""
    identity, model = plan.identity(), context.subject.model
    adapted = find_targets(model, plan.cfg.lora)
    known = {
        "precision": precision(plan.cfg.train.precision, model.device.type),
        "routers_trained": adapted.routers,
        "experts_trained": adapted.experts,
    }
    for key, value in known.items():
        identity |= {name: value for name in (key, f"start_{key}") if name in identity}
    return identity | ({"layers_by_weight": len(adapted.by_weight)} if adapted.by_weight else {})


def train_adapter(plan: Plan, datasets: Sequence[FeedbackDataset], context: SynthesisContext) -> Path:
    """The folder of the trained adapter.

    Trains it unless it is there and whole, going on from the last whole checkpoint of a killed run. The ranks
    of one run train together; any other process waits and finds the adapter done.

    Raises:
        UserError: where the training diverges, or the disk is full or fails.
    """
    folder = adapter_folder(plan, datasets, context)
    group = RankGroup(context.subject.model.device.type)
    start = train_adapter(plan.start, datasets, context) if plan.start else None
    with writing(context.folder, "feedback.cache_dir"), group.exclusive_lock(folder):
        if group.broadcast(lambda: training_record(folder) is None):
            _train(plan, datasets, context, folder, start, group)
    return folder


def training_record(folder: Path) -> dict[str, Any] | None:
    """What was written down of a finished training: seconds, losses, validation, rows, rows left out.

    None where it is not done, or where a file of the adapter is missing or damaged: it is then trained anew.
    """
    record = read_sealed(folder / DONE, Training)
    if record and (lost := lost_file(folder, record["files"])):
        log.warning("%s is missing or damaged: it is trained anew", folder / lost)
        return None
    return record


def _train(
    plan: Plan,
    datasets: Sequence[FeedbackDataset],
    context: SynthesisContext,
    folder: Path,
    start: Path | None,
    group: RankGroup,
) -> None:
    from c3po_bench.feedback.training import trainers  # needs TRL, which is slow

    checkpoints = folder / "checkpoints"
    log.info("training %s on %s", plan.name, ", ".join(d.feedback.id for d in datasets))
    began = time.perf_counter()
    with context.subject.model_for_training() as model, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL's and PEFT's calls into transformers
        trainer, counts, left_out = trainers.make_trainer(plan, datasets, context, model, checkpoints, start)
        trainers.show_progress(trainer, f"training {plan.name}")
        trainers.guard(trainer, plan, group, WHOLE)
        group.broadcast(lambda: drop_damaged(checkpoints))
        last = _last_checkpoint(checkpoints)
        trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        part = trained_part(trained, model.config.hidden_size)
        with counting(trainer.model, shape_of(trainer.model), part) as passes:
            try:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                raise UserError(no_memory(plan, error)) from error
            history = trainer.state.log_history
            if trainer.eval_dataset is not None and trainer.state.global_step not in _evaluated(history):
                trainer.evaluate()
        flops = group.total(sum(passes))
        try:
            steps = trainer.state.global_step
            finite(trainers.loss_now(trainer), f"{plan.name}: the loss after the training", steps)
            for name, weight in trained.items():
                finite(weight.sum().item(), f"{plan.name}: a weight of {name}", steps)
        except UserError:  # what was saved holds the same weights
            remove(checkpoints)
            raise
        if group.is_main_process:
            trainer.model.save_pretrained(str(folder), selected_adapters=["default"])
        trainer.model.unload()
    record = {
        "seconds": round(time.perf_counter() - began, 2),
        "flops": None if isnan(flops) else round(flops),
        "resumed_from": last.name if last else None,
        "loss": _curves(history, ["loss"]).get("loss", []),
        "terms": _curves(history, TERMS),
        "validation": {"step": _evaluated(history), **_curves(history, VALIDATED, "eval_")},
        "counts": counts,
        "left_out": left_out,
        "plan": resolved(plan, context),
    }
    if group.is_main_process:
        scratch = [folder / name for name in ("checkpoints", "pairs", "kept")]
        for path in scratch:
            remove(path)
        write_sealed(folder / DONE, record | {"files": file_checksums(folder, skip=(DONE,))})
    group.wait()


def _curves(
    history: Sequence[dict[str, Any]], terms: Sequence[str], prefix: str = ""
) -> dict[str, list[float]]:
    """By term, its value at every step where it was logged, under its name with `prefix`."""
    curves = {term: [round(e[prefix + term], 6) for e in history if prefix + term in e] for term in terms}
    return {term: values for term, values in curves.items() if values}


def _evaluated(history: Sequence[dict[str, Any]]) -> list[float]:
    """The steps after which the validation split was evaluated."""
    evaluations = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    return list(dict.fromkeys(float(entry["step"]) for entry in evaluations))


def no_memory(plan: Plan, error: BaseException) -> str:
    """The line for a training that memory does not suffice for: a smaller batch would be another training."""
    train = plan.cfg.train
    return (
        f"{plan.name}: memory does not suffice to train on batches of {train.batch_size} rows of up to {train.max_length} "
        f"tokens, and as many to be kept ({' '.join(str(error).split())[:160]}): lower feedback.train.batch_size, "
        "constraint_batch_size or max_length, or set feedback.train.gradient_checkpointing=true"
    )


def drop_damaged(folder: Path) -> bool:
    """Remove the checkpoints in `folder` that are not whole, and say so; whether there were any."""
    dropped = []
    for checkpoint in sorted(folder.glob("checkpoint-*")):
        record = read_sealed(checkpoint / WHOLE, dict[str, str])
        lost = WHOLE if record is None else lost_file(checkpoint, record)
        if lost:
            log.warning(
                "%s is cut short or damaged: training goes on from an earlier state", checkpoint / lost
            )
            remove(checkpoint)
            dropped.append(checkpoint)
    return bool(dropped)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint."""
    return max(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), default=None)
