"""Headroom of an experiment: its items, measured in the chunks that arms answer, kept where its runs lie."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from c3po_bench.analysis.headroom import sentences, summarize
from c3po_bench.config import Config
from c3po_bench.contract import Item
from c3po_bench.errors import UserError
from c3po_bench.evaluate.adapter import PASSAGES
from c3po_bench.evaluate.chunks import make_chunks
from c3po_bench.evaluate.run import check_items, open_backend, set_up, shared_identity
from c3po_bench.rewiring.headroom import ORACLE, Headroom, Routes
from c3po_bench.runtime.console import Progress
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.runtime.resources import in_halves
from c3po_bench.store import provenance
from c3po_bench.store.files import Journal, write_json, writing
from c3po_bench.store.identity import content_hash
from c3po_bench.store.reader import HEADROOM_FOLDER, read_headroom
from c3po_bench.store.schema import SCHEMA_VERSION
from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger("c3po_bench")


def measure(cfg: Config, routes: int, temperature: float) -> dict[str, Any]:
    """Measure what is not measured yet, write the record and return it.

    Args:
        cfg: of an experiment on the rewiring backend, with `base` as its only arm.
        routes: drawn for each item.
        temperature: of the noise that draws them.

    Raises:
        UserError: for tasks without choices, and all that an experiment is refused for.
    """
    set_up(cfg)
    with writing(Path(cfg.results_dir), "results_dir"):
        backend: Any = open_backend(cfg)
        tasks: TaskSet = backend.tasks
        for name, task in tasks.load().items():
            if task.OUTPUT_TYPE != "multiple_choice":
                raise UserError(
                    f"task {name} has written answers, and headroom compares choices: leave it out"
                )
        key = content_hash(shared_identity(cfg, tasks, backend))
        drawn = Routes(routes, temperature)
        identity = [key, asdict(cfg.method), cfg.engine, cfg.seed, cfg.batch_size, asdict(drawn)]
        if cfg.method.tune != "none":
            identity.append(backend.reference_identity)
        path = Path(cfg.results_dir) / HEADROOM_FOLDER / f"{cfg.name}-{content_hash(identity)}.json"
        with exclusive_lock(path.parent, f"{path.name}.lock"):
            if path.exists():
                log.info("done before, in %s", path)
                return read_headroom(path)
            check_items(cfg, tasks, backend)
            rows = _rows(cfg, Headroom(backend, drawn), path.with_suffix(".jsonl"))
            found = summarize(rows) | {"oracle_arm": ORACLE}
            record = {
                "schema_version": SCHEMA_VERSION,
                "name": cfg.name,
                "model": cfg.model.name,
                "comparison_key": key,
                "limit": cfg.limit,
                "seed": cfg.seed,
                "routes": asdict(drawn),
                "method": asdict(cfg.method),
                "summary": found,
                "sentences": sentences(found),
                "seconds": sum(row["seconds"] for row in rows),
                "command": provenance.command(),
                "created": provenance.now(),
            }
            write_json(path, record)
    return read_headroom(path)


def _rows(cfg: Config, headroom: Headroom, path: Path) -> list[dict[str, Any]]:
    """The rows of all items, measured or taken from the journal."""
    tasks: TaskSet = headroom.backend.tasks
    items = {item.id: item for item in tasks.items(cfg.limit, labelled=True)}
    journal, progress, done = Journal(path), Progress(), 0
    for chunk in make_chunks(tasks, cfg.batch_size, cfg.limit).items:
        asked = [items[id] for id in chunk]
        pending = [item for item in asked if _key(item) not in journal.rows]
        done += len(asked) - len(pending)
        if pending:
            start = time.perf_counter()
            measured = in_halves(headroom.measure, pending, "items", _key)
            seconds = (time.perf_counter() - start) / len(pending)
            for item, row in zip(pending, measured, strict=True):
                row |= {"key": _key(item), "routes": headroom.routes.count, "seconds": round(seconds, 6)}
                row |= {"cluster": _cluster(tasks, item)}
            journal.append(measured)
            done += len(pending)
        progress("measuring headroom", done, len(items))
    return [journal.rows[_key(item)] for item in items.values()]


def _key(item: Item) -> str:
    return f"{item.id[0]}/{item.id[1]}"


def _cluster(tasks: TaskSet, item: Item) -> str | None:
    """Hash of the passage that the item may share with others."""
    docs: Any = tasks.load()[item.id[0]].eval_docs
    doc = docs[item.id[1]]
    passage = next((doc[field] for field in PASSAGES if doc.get(field)), None)
    return content_hash(passage, 16) if passage else None
