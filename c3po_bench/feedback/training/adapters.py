"""Adapters: trained once for each (model, data, plan), kept in the cache, resumed exactly after a kill."""

import hashlib
import json
import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.synthesis import FeedbackDataset
from c3po_bench.feedback.training.distributed import RankGroup
from c3po_bench.feedback.training.recipes import Plan, precision
from c3po_bench.models.flops import counting, shape_of, trained_part
from c3po_bench.models.targets import find_targets
from c3po_bench.store.files import write_json

log = logging.getLogger(__name__)
DONE = "training.json"
VERSION = 2  # raise when training changes its numbers
TERMS = ("loss/pairs", "near/nll", "out/nll", "near/kl", "out/kl", "rewards/margins", "rewards/accuracies")
VALIDATED = ("loss", *TERMS, "in_loss", "near_loss", "out_loss")


def adapter_folder(plan: Plan, datasets: Sequence[FeedbackDataset], context: SynthesisContext) -> Path:
    """Where the adapter of this plan on these data and this model lives."""
    identity = {
        "version": VERSION,
        "model": context.subject.hash,
        "data": [d.digest() for d in datasets],
        "seed": context.seed,
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

    Trains it unless it is there, going on from the last checkpoint of a killed run. The ranks of one run
    train together; any other process waits and finds the adapter done.
    """
    folder = adapter_folder(plan, datasets, context)
    group = RankGroup(context.subject.model.device.type)
    start = train_adapter(plan.start, datasets, context) if plan.start else None
    with group.exclusive_lock(folder):
        if group.broadcast(lambda: not (folder / DONE).exists()):
            _train(plan, datasets, context, folder, start, group)
    return folder


def training_record(folder: Path) -> dict[str, Any]:
    """What was written down of a finished training: seconds, losses, validation, rows, rows left out."""
    return json.loads((folder / DONE).read_text(encoding="utf-8"))


def _train(
    plan: Plan,
    datasets: Sequence[FeedbackDataset],
    context: SynthesisContext,
    folder: Path,
    start: Path | None,
    group: RankGroup,
) -> None:
    from c3po_bench.feedback.training.trainers import make_trainer, show_progress  # needs TRL, which is slow

    checkpoints = folder / "checkpoints"
    log.info("training %s on %s", plan.name, ", ".join(d.feedback.id for d in datasets))
    began = time.perf_counter()
    with context.subject.model_for_training() as model, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL's and PEFT's calls into transformers
        trainer, counts, left_out = make_trainer(plan, datasets, context, model, checkpoints, start)
        show_progress(trainer, f"training {plan.name}")
        last = _last_checkpoint(checkpoints)
        trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
        part = trained_part(trained, model.config.hidden_size)
        with counting(trainer.model, shape_of(trainer.model), part) as passes:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            history = trainer.state.log_history
            if trainer.eval_dataset is not None and trainer.state.global_step not in _evaluated(history):
                trainer.evaluate()
        flops = group.total(sum(passes))
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
        for scratch in (checkpoints, checkpoints.with_name("pairs"), checkpoints.with_name("kept")):
            shutil.rmtree(scratch, ignore_errors=True)
        write_json(folder / DONE, record)
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


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: the trainer state is written last."""
    whole = [p.parent for p in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda p: int(p.name.split("-")[1]), default=None)
