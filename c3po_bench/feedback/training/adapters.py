"""Adapters: trained once for each (model, data, plan), kept in the cache, resumed exactly after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c3po_bench.feedback.synthesis import Material
from c3po_bench.feedback.training.recipes import Plan
from c3po_bench.feedback.training.together import Together
from c3po_bench.feedback.workshop import Workshop

log = logging.getLogger(__name__)
DONE = "training.json"
VERSION = 2  # raise when training changes its numbers
TERMS = ("loss/pairs", "near/nll", "out/nll", "near/kl", "out/kl", "rewards/margins", "rewards/accuracies")
VALIDATED = ("loss", *TERMS, "in_loss", "near_loss", "out_loss")


def adapter_folder(plan: Plan, materials: Sequence[Material], workshop: Workshop) -> Path:
    """Where the adapter of this plan on this material and model lives."""
    identity = {
        "version": VERSION,
        "model": workshop.subject.hash,
        "data": [m.digest() for m in materials],
        "seed": workshop.seed,
        **resolved(plan, workshop),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return (
        workshop.folder / "adapters" / f"{plan.name}-{'+'.join(m.piece.id for m in materials)[:60]}-{digest}"
    )


def resolved(plan: Plan, workshop: Workshop) -> dict[str, Any]:
    """The plan's numbers with the precision that this machine trains in, and with what is adapted of this model."""
    from c3po_bench.feedback.training.precision import precision
    from c3po_bench.models.targets import find_targets

    identity, model = plan.identity(), workshop.subject.model
    adapted = find_targets(model, plan.cfg.lora)
    known = {
        "precision": precision(plan.cfg.train.precision, model.device.type),
        "routers_trained": adapted.routers,
        "experts_trained": adapted.experts,
    }
    for key, value in known.items():
        identity |= {name: value for name in (key, f"start_{key}") if name in identity}
    return identity | ({"layers_by_weight": len(adapted.by_weight)} if adapted.by_weight else {})


def train_adapter(plan: Plan, materials: Sequence[Material], workshop: Workshop) -> Path:
    """The folder of the trained adapter.

    Trains it unless it is there, going on from the last checkpoint of a killed run.

    The ranks of one run train together; any other process waits and finds the adapter done.
    """
    folder = adapter_folder(plan, materials, workshop)
    together, start = Together(workshop.subject.model.device.type), None
    if plan.start:
        start = train_adapter(plan.start, materials, workshop)
    with together.exclusive_lock(folder):
        if together.agree(lambda: not (folder / DONE).exists()):
            _train(plan, materials, workshop, folder, start, together)
    return folder


def training_record(folder: Path) -> dict[str, Any]:
    """What was written down of a finished training.

    Seconds, losses and validation by step, rows, rows left out.
    """
    return json.loads((folder / DONE).read_text(encoding="utf-8"))


def _train(
    plan: Plan,
    materials: Sequence[Material],
    workshop: Workshop,
    folder: Path,
    start: Path | None,
    together: Together,
) -> None:
    from c3po_bench.feedback.training.runs import make_answer_trainer, make_pair_trainer, watch
    from c3po_bench.store.files import write_json

    make = make_pair_trainer if plan.recipe.objective == "pairs" else make_answer_trainer
    checkpoints = folder / "checkpoints"
    log.info("training %s on %s", plan.name, ", ".join(m.piece.id for m in materials))
    began = time.perf_counter()
    with workshop.subject.lent() as model, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL's and PEFT's calls into transformers
        trainer, counts, left_out = make(plan, materials, workshop, model, checkpoints, start)
        watch(trainer, f"training {plan.name}")
        last = _last_checkpoint(checkpoints)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if trainer.eval_dataset is not None and trainer.state.global_step not in _validation(trainer)["step"]:
            trainer.evaluate()
        if together.first:
            trainer.model.save_pretrained(str(folder), selected_adapters=["default"])
        history, validation = trainer.state.log_history, _validation(trainer)
        trainer.model.unload()
    record = {
        "seconds": round(time.perf_counter() - began, 2),
        "resumed_from": last.name if last else None,
        "loss": [round(entry["loss"], 6) for entry in history if "loss" in entry],
        "terms": _curves(history),
        "validation": validation,
        "counts": counts,
        "left_out": left_out,
        "plan": resolved(plan, workshop),
    }
    if together.first:
        for scratch in (checkpoints, checkpoints.with_name("pairs"), checkpoints.with_name("kept")):
            shutil.rmtree(scratch, ignore_errors=True)
        write_json(folder / DONE, record)
    together.wait()


def _curves(history: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """By term, its value at every logged step."""
    return {
        t: [round(e[t], 6) for e in history if t in e and "loss" in e]
        for t in TERMS
        if any(t in e for e in history)
    }


def _validation(trainer: Any) -> dict[str, list[float]]:
    """By term, its value at every evaluation so far; ``step`` says when these were."""
    steps: dict[int, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        found = {term: round(entry[f"eval_{term}"], 6) for term in VALIDATED if f"eval_{term}" in entry}
        if found:
            steps.setdefault(entry["step"], {}).update(found)
    terms = {term: [values[term] for values in steps.values() if term in values] for term in VALIDATED}
    return {"step": [float(step) for step in steps]} | {
        term: values for term, values in terms.items() if values
    }


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: the trainer state is written last."""
    whole = [p.parent for p in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda p: int(p.name.split("-")[1]), default=None)
