"""run(cfg): the table of contents of the whole program."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.backend import load_backend
from c3po_bench.console import Progress, log_to, set_up_logging
from c3po_bench.errors import UserError
from c3po_bench.store.files import Journal, write_json, write_jsonl, write_text
from c3po_bench.store.identity import content_hash, run_id
from c3po_bench.store.reader import Run
from c3po_bench.store.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from c3po_bench.backend import Arm, Backend
    from c3po_bench.config import Config
    from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger("c3po_bench")


def run(cfg: Config) -> list[Run]:
    """Score every arm of an experiment, compare them, publish; what is done already is not done again.

    Raises:
        UserError: for anything in the config, the data or the model that the user can mend.
    """
    set_up(cfg)
    kind = load_backend(cfg.backend.name)
    kind.check(cfg)
    tasks = load_tasks(cfg, kind)
    backend = kind(cfg, tasks)
    shared = shared_identity(cfg, tasks, backend)
    runs = []
    for arm in backend.arms():
        runs.append(run_arm(cfg, arm, tasks, backend, shared))
    record_experiment(cfg, runs)
    publish(cfg)
    return runs


def set_up(cfg: Config) -> None:
    """Logging, threads, plugins."""
    set_up_logging(cfg.log_level)
    for name in cfg.plugins:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"plugins: module {name!r} can't be imported ({error})") from error
    if cfg.threads:
        import torch

        torch.set_num_threads(cfg.threads)


def load_tasks(cfg: Config, kind: type[Backend]) -> TaskSet:
    """The tasks, checked; a backend may bring tasks of its own (`own_tasks`)."""
    from c3po_bench.tasks.taskset import TaskSet

    if not cfg.tasks:
        raise UserError("no tasks: give tasks=[...], task=NAME or +experiment=NAME")
    scoring = cfg.scoring
    return TaskSet(
        cfg.tasks,
        data_root=cfg.data.root,
        rule=scoring.rule,
        num_fewshot=scoring.num_fewshot,
        seed=cfg.seed,
        permute_options=scoring.permute_options,
        own=kind.own_tasks(cfg) if hasattr(kind, "own_tasks") else None,
    )


def shared_identity(cfg: Config, tasks: TaskSet, backend: Backend) -> dict[str, Any]:
    """What all arms have in common: runs may be compared item by item only where it is equal."""
    scoring = asdict(cfg.scoring)
    if cfg.scoring.num_fewshot or cfg.scoring.permute_options:
        scoring["seed"] = cfg.seed
    return {
        "schema": SCHEMA_VERSION,
        "model": backend.model_hash,
        "dtype": cfg.model.dtype,
        "data": tasks.data_hashes(),
        "limit": cfg.limit,
        "shard": cfg.shard,
        "scoring": scoring,
    }


def run_arm(cfg: Config, arm: Arm, tasks: TaskSet, backend: Backend, shared: dict[str, Any]) -> Run:
    """Score one arm into its run folder, going on where an earlier process stopped."""
    from omegaconf import OmegaConf

    from c3po_bench.scoring import score
    from c3po_bench.store import provenance

    identity = {"arm": arm.name, "backend": cfg.backend.name, **shared, **arm.identity()}
    folder = Path(cfg.results_dir) / "runs" / run_id(arm.name, identity)
    if (folder / "result.json").exists():
        log.info("%s: done before, in %s", arm.name, folder)
        return Run(folder)
    with log_to(folder / "log.txt"):
        started = provenance.now()
        log.info("%s: starting, in %s", arm.name, folder)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(cfg)))
        journal = Journal(folder / "journal.jsonl")
        rows, totals = score(
            arm,
            tasks,
            journal,
            Progress(),
            batch_size=cfg.batch_size,
            limit=cfg.limit,
            doc_ids=shard_ids(cfg, tasks),
            seed=cfg.seed,
        )
        extra: dict[str, Any] = {}
        if hasattr(arm, "finish"):
            rows, extra = arm.finish(rows)
        result = make_result(cfg, arm, tasks, shared, folder.name, rows, totals, extra)
        write_jsonl(folder / "samples.jsonl", rows)
        record = {
            "code_version": importlib.import_module("c3po_bench").__version__,
            "git_commit": provenance.git_commit(),
            "libraries": provenance.library_versions(),
            "model_hash": backend.model_hash,
            "data_hashes": tasks.data_hashes(),
            "identity": identity,
            "seeds": {"seed": cfg.seed},
            "hardware": provenance.hardware(),
            "command": provenance.command(),
            "started": started,
            "finished": provenance.now(),
        }
        write_json(folder / "provenance.json", record)
        write_json(folder / "result.json", result)
        log.info("%s: %d items, %.3f correct, %.0f s", arm.name, len(rows), mean_correct(rows), totals["seconds"])
    return Run(folder)


def mean_correct(rows: list[dict[str, Any]]) -> float:
    """Share of right answers over all items."""
    return sum(row["correct"] for row in rows) / max(1, len(rows))


def make_result(
    cfg: Config,
    arm: Arm,
    tasks: TaskSet,
    shared: dict[str, Any],
    name: str,
    rows: list[dict[str, Any]],
    totals: dict[str, Any],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """The `store.schema.Result` of a scored arm."""
    metrics: dict[str, dict[str, float]] = {}
    for task in tasks.load():
        correct = [row["correct"] for row in rows if row["task"] == task]
        if correct:
            metrics[task] = {"acc": sum(correct) / len(correct), "n": len(correct)}
    for task, more in extra.items():
        metrics.setdefault(task, {}).update(more)
    report, cost = arm.report(), arm.cost()
    curves = dict(report["curves"])
    losses = [row["losses"] for row in rows if row.get("losses")]
    if losses:
        curves["surrogate_loss"] = [sum(step) / len(step) for step in zip(*losses, strict=False)]
    counts = dict(report["counts"])
    if any("dropped_duplicates" in row for row in rows):
        counts["dropped_duplicates"] = sum(row.get("dropped_duplicates", 0) for row in rows)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": name,
        "arm": arm.name,
        "backend": cfg.backend.name,
        "model": cfg.model.name,
        "tasks": list(tasks.load()),
        "comparison_key": content_hash(shared),
        "limit": cfg.limit,
        "seed": cfg.seed,
        "scoring": shared["scoring"],
        "metrics": metrics,
        "settings": arm.settings(),
        "cost": {
            "phases": {**cost["phases"], **totals["phases"]},
            "peak_memory_bytes": cost["peak_memory_bytes"],
            "seconds": totals["seconds"],
            "items": len(rows),
        },
        "counts": counts,
        "curves": curves,
        "notes": [*tasks.notes, *report["notes"]],
    }


def shard_ids(cfg: Config, tasks: TaskSet) -> dict[str, list[int]] | None:
    """Items of each task that belong to `cfg.shard`, chosen by a hash of their content; None without a shard."""
    if not cfg.shard:
        return None
    try:
        share, of = (int(part) for part in cfg.shard.split("/"))
        assert 1 <= share <= of
    except (ValueError, AssertionError):
        raise UserError(f"shard={cfg.shard}: write i/n with i from 1 to n, like shard=1/4") from None
    chosen = {}
    for name, task in tasks.load().items():
        docs = list(task.eval_docs)[: cfg.limit]
        chosen[name] = [i for i, doc in enumerate(docs) if int(content_hash(doc, 12), 16) % of == share - 1]
    return {name: ids for name, ids in chosen.items() if ids}


def record_experiment(cfg: Config, runs: list[Run]) -> None:
    """Write down which runs this experiment compares."""
    from c3po_bench.store import provenance

    names = [run.run_id for run in runs]
    path = Path(cfg.results_dir) / "experiments" / f"{cfg.name}-{content_hash(names)}.json"
    if not path.exists():
        data = {
            "schema_version": SCHEMA_VERSION,
            "name": cfg.name,
            "config": asdict(cfg),
            "command": provenance.command(),
            "runs": names,
            "created": provenance.now(),
        }
        write_json(path, data)


def publish(cfg: Config) -> None:
    """Hand the store to W&B; whatever goes wrong there is one warning, never a failed run."""
    if cfg.tracking.mode == "disabled" or os.environ.get("RANK", "0") != "0":
        return
    from c3po_bench.tracking import publish as publish_store

    publish_store(cfg.results_dir, cfg.tracking)
