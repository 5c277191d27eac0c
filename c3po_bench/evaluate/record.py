"""What is written down of a scored arm and of an experiment."""

from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from c3po_bench.config import Config
from c3po_bench.contract import Arm
from c3po_bench.runtime.ranks import parse_shard
from c3po_bench.store import provenance
from c3po_bench.store.files import write_json
from c3po_bench.store.identity import content_hash
from c3po_bench.store.reader import Run
from c3po_bench.store.schema import SCHEMA_VERSION
from c3po_bench.tasks.taskset import TaskSet


def store_dir(cfg: Config) -> Path:
    """Where runs go: a shard's to a store of its own inside, so that only merged runs are ever compared."""
    if not cfg.shard:
        return Path(cfg.results_dir)
    share, of = parse_shard(cfg.shard)
    return Path(cfg.results_dir) / "shards" / f"{share}-of-{of}"


def training_seed(cfg: Config, arm: Arm) -> int:
    """The seed that an arm trains with: one of `seeds`, of arms that train.

    Of all others the experiment's.
    """
    return getattr(arm, "seed", cfg.seed)


def mean_correct(rows: list[dict[str, Any]]) -> float:
    """Share of right answers over all items."""
    return fmean([row["correct"] for row in judged(rows)] or [0.0])


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that have a score: all, but answers to feedback prompts whose judgement could not be had."""
    return [row for row in rows if row.get("score", row["correct"]) is not None]


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
        correct = [row["correct"] for row in judged(rows) if row["task"] == task]
        if correct:
            metrics[task] = {"acc": sum(correct) / len(correct), "n": len(correct)}
    for task, more in extra.items():
        metrics.setdefault(task, {}).update(more)
    report, cost = arm.report(), arm.cost()
    curves = dict(report.curves)
    losses = [row["losses"] for row in rows if row.get("losses")]
    if losses:
        curves["surrogate_loss"] = [sum(step) / len(step) for step in zip(*losses, strict=False)]
    counts = tasks.counts | report.counts
    if any("dropped_duplicates" in row for row in rows):
        counts["dropped_duplicates"] = sum(row.get("dropped_duplicates", 0) for row in rows)
    result = {
        "schema_version": SCHEMA_VERSION,
        "run_id": name,
        "arm": arm.row.name,
        "arm_row": arm.row.record(),
        "backend": cfg.backend.name,
        "model": cfg.model.name,
        "tasks": list(tasks.load()),
        "groups": tasks.groups,
        "comparison_key": content_hash(shared),
        "limit": cfg.limit,
        "seed": training_seed(cfg, arm),
        "scoring": shared["scoring"],
        "versions": {"arm": arm.row.version, **shared["versions"]},
        "metrics": metrics,
        "settings": arm.settings(),
        "cost": {
            "phases": {name: asdict(phase) for name, phase in cost.phases.items()} | totals["phases"],
            "peak_memory_bytes": cost.peak_memory_bytes,
            "seconds": totals["seconds"],
            "items": len(rows),
        },
        "counts": counts,
        "curves": curves,
        "notes": [*tasks.notes, *report.notes, *totals["notes"]],
    }
    more = {"movement": report.movement, "tuning": report.tuning}
    return result | {name: value for name, value in more.items() if value}


def record_experiment(cfg: Config, runs: list[Run]) -> None:
    """Write down which runs this experiment compares."""
    names = [run.run_id for run in runs]
    path = store_dir(cfg) / "experiments" / f"{cfg.name}-{content_hash(names)}.json"
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
