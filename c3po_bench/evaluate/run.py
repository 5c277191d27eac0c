"""run(cfg): score every arm of an experiment on the same items, write the runs down, publish."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from c3po_bench import __version__
from c3po_bench.analysis.config import POOLED
from c3po_bench.config import Config, check_ranges
from c3po_bench.contract import Arm, Backend
from c3po_bench.errors import UserError, unknown
from c3po_bench.evaluate.budget import SweepPlace, record_of, with_limit
from c3po_bench.evaluate.chunks import make_chunks, other_size
from c3po_bench.evaluate.forecast import Watch, announce
from c3po_bench.evaluate.record import make_result, mean_correct, record_experiment, store_dir, training_seed
from c3po_bench.registry import Registry, import_plugins
from c3po_bench.runtime import ranks
from c3po_bench.runtime.console import WHOLE, Progress, close_bar, log_to, set_up_logging
from c3po_bench.runtime.locks import LockHeld, exclusive_lock
from c3po_bench.runtime.ranks import parse_shard
from c3po_bench.runtime.resources import keep_freed_memory, rare_collections, sleep_where_shared
from c3po_bench.store import provenance
from c3po_bench.store.files import Journal, read_groups, write_json, write_jsonl, write_settings, writing
from c3po_bench.store.identity import run_id, source_hash
from c3po_bench.store.reader import Run
from c3po_bench.store.records import file_checksum, write_sealed
from c3po_bench.store.schema import SCHEMA_VERSION
from c3po_bench.store.versions import shared_versions
from c3po_bench.tasks.taskset import TaskSet
from c3po_bench.tracking import publish as publish_store

log = logging.getLogger("c3po_bench")
BACKENDS: Registry[type[Backend]] = Registry(
    "backend",
    {
        "rewiring": "c3po_bench.rewiring.backend:RewiringBackend",
        "feedback": "c3po_bench.feedback.backend:FeedbackBackend",
        "both": "c3po_bench.evaluate.tuned_then_rewired:BothBackend",
    },
)


def run(cfg: Config, place: SweepPlace | None = None) -> list[Run]:
    """Score every arm of an experiment, compare them, publish; what is done already is not done again.

    `place` is that of a cell in its sweep.

    Raises:
        UserError: for anything in the config, the data or the model that the user can mend.
    """
    check_ranges(cfg)
    set_up(cfg)
    try:
        with writing(Path(cfg.results_dir), "results_dir"):
            return run_arms(with_limit(cfg, open_backend, place), place)
    finally:
        close_bar()
        WHOLE.cell, WHOLE.arm, WHOLE.left = "", "", lambda _: None


def run_arms(cfg: Config, place: SweepPlace | None = None) -> list[Run]:
    """The same, for a config that has been checked."""
    with rare_collections():
        backend = open_backend(cfg)
    tasks = backend.tasks
    check_primary(cfg, tasks)
    shared = shared_identity(cfg, tasks, backend)
    done: dict[int, Run] = {}  # by place among the arms: one that trains may run with several seeds
    # all first: bad options of the last one are refused before anything is scored
    arms = list(backend.arms())
    waiting, watch = [], Watch()
    WHOLE.cell = f"cell {place.number + 1} of {place.cells}" if place else ""

    @cache
    def check() -> None:
        check_items(cfg, tasks, backend)
        watch.begin(announce(cfg, backend), place.cells - place.number - 1 if place else 0)

    WHOLE.left = watch.left
    for number, arm in enumerate(arms):
        with watch.over(arm.row.name):
            try:
                done[number] = run_arm(cfg, arm, tasks, backend, shared, ranks.world() > 1, check)
            except LockHeld:
                log.info("%s: another process is on it, the other arms first", arm.row.name)
                waiting.append(number)
                continue
        show_newest(cfg, list(done.values()), tasks)
    for number in waiting:
        with watch.over(arms[number].row.name):
            done[number] = run_arm(cfg, arms[number], tasks, backend, shared, check=check)
    runs = [done[number] for number in range(len(arms))]
    backend.close()
    if ranks.rank() == 0:
        record_experiment(cfg, runs)
        publish(cfg)
    return runs


def check_primary(cfg: Config, tasks: TaskSet) -> None:
    """Refuse a primary comparison on a task that is not evaluated: it would be corrected like all others, unsaid."""
    task = (cfg.analysis.primary or "").partition(":")[2]
    benchmarks = [Path(name).stem if name.endswith((".yaml", ".yml")) else name for name in tasks.groups]
    names = list(dict.fromkeys([*benchmarks, *tasks.configs, POOLED]))
    if task and task not in names:
        raise unknown("task in analysis.primary", task, names)


def show_newest(cfg: Config, runs: list[Run], tasks: TaskSet) -> None:
    """Log the newest arm against its base while the others still run, and base against what is published for the model."""
    base = next((run for run in runs if run.arm == "base"), None)
    stock = cfg.scoring.rule == "cloze" and not cfg.scoring.num_fewshot
    alone = len(runs) < 2 and not (stock and cfg.model.published)
    if base is None or alone or ranks.rank() != 0:
        return
    # with pandas and rich: the first arm need not wait for them
    from c3po_bench.analysis.live import live_line, unlike_published

    try:
        if runs[-1] is not base:
            log.info(live_line(runs[-1], base))
        elif stock:
            lines = unlike_published(base, cfg.model.published)
            tasks.notes += lines
            for line in lines:
                log.warning("%s", line)
    except UserError as error:
        log.warning("%s", error)


def set_up(cfg: Config) -> None:
    """Memory, logging, threads, plugins."""
    keep_freed_memory()
    sleep_where_shared(cfg.threads)
    set_up_logging(cfg.log_level if ranks.rank() == 0 else "warning")
    import_plugins(cfg.plugins)
    if cfg.threads:
        import torch

        torch.set_num_threads(cfg.threads)


def open_backend(cfg: Config) -> Backend:
    """The backend of an experiment, which refuses what is wrong before anything is loaded."""
    kind = BACKENDS[cfg.backend.name]
    kind.check(cfg)
    return kind.open(cfg, partial(make_tasks, cfg))


def make_tasks(cfg: Config, own: Mapping[str, dict[str, dict[str, Any]]] | None = None) -> TaskSet:
    """The tasks of an experiment, found and checked; `own` are those that a backend brings."""
    if not cfg.tasks:
        raise UserError("no tasks: give tasks=[...], +task=NAME or +experiment=NAME")
    scoring = cfg.scoring
    return TaskSet(
        cfg.tasks,
        data_root=cfg.data.root,
        rule=scoring.rule,
        num_fewshot=scoring.num_fewshot,
        seed=cfg.seed,
        permute_options=scoring.permute_options,
        own=own,
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
        "requests": tasks.request_hashes(cfg.limit),
        "limit": cfg.limit,
        "shard": cfg.shard,
        "scoring": scoring,
        "versions": shared_versions(cfg.scoring.rule, _metrics(tasks)),
    }


def _metrics(tasks: TaskSet) -> list[str]:
    """Names of what is measured: the tasks' headline metrics, and what stands beside them."""
    chosen = any(task.OUTPUT_TYPE == "multiple_choice" for task in tasks.load().values())
    about_feedback = "score" in tasks.headline.values()
    beside = ["p_gold"] * chosen + ["drift", "similarity", "degeneration"] * about_feedback
    return [*tasks.headline.values(), *beside]


def check_items(cfg: Config, tasks: TaskSet, backend: Backend) -> None:
    """Put all items in tokens before the first is answered, and note whose prompts are too long for the model.

    Raises:
        UserError: for an item that can't be.
    """
    from c3po_bench.models.encoding import ItemRefused  # torch and lm-eval: as in `score_arm`

    try:
        checked = backend.check_items(tasks.items(cfg.limit))
    except ItemRefused as error:
        raise UserError(f"{tasks.where(*error.id)}: {error.why}") from error
    cut = {task: (several, items) for task, (items, several) in checked.items() if several}
    tasks.notes += [
        f"{task}: {several} of {items} prompts are longer than the model reads, and lose their beginning, as in lm-eval"
        for task, (several, items) in cut.items()
    ]
    for note in tasks.notes[len(tasks.notes) - len(cut) :]:
        log.warning("%s", note)
    if cut:
        tasks.counts["cut_prompts"] = sum(several for several, _ in cut.values())


def identity_of(cfg: Config, arm: Arm, shared: dict[str, Any]) -> dict[str, Any]:
    """All that can change the numbers of an arm: its run's name is made of it.

    `shared` is that of all arms.
    """
    identity = {"arm": arm.row.name, "backend": cfg.backend.name, **shared, **arm.identity()}
    identity["version"] = arm.row.version
    if arm.row.other_batches:  # which are what it is about
        identity["batches"] = {"size": other_size(cfg.batch_size), "order": "by hash"}
    if cfg.plugins:
        identity["plugins"] = {name: source_hash(name) for name in cfg.plugins}
    return identity


def run_arm(
    cfg: Config,
    arm: Arm,
    tasks: TaskSet,
    backend: Backend,
    shared: dict[str, Any],
    wait: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Run:
    """Score one arm into its run folder, going on where an earlier process stopped.

    Alone, or with other ranks. `check` looks at all items first; without effect from the second time on.

    Raises:
        LockHeld: if another process has the folder and `wait` is false.
    """
    identity = identity_of(cfg, arm, shared)
    folder = store_dir(cfg) / "runs" / run_id(arm.row.name, identity)
    done = (folder / "result.json").exists
    if done():
        log.info("%s: done before, in %s", arm.row.name, folder)
        return Run(folder)
    check()
    with exclusive_lock(folder, f".lock-{ranks.rank()}", wait):
        if done():
            log.info("%s: done meanwhile, in %s", arm.row.name, folder)
            return Run(folder)
        try:
            if ranks.rank() == 0:
                with log_to(folder / "log.txt"):
                    record_arm(cfg, arm, tasks, backend, shared, identity, folder)
            else:
                score_arm(cfg, arm, tasks, folder)
                ranks.wait_for(done)
        finally:
            arm.close()
    return Run(folder)


def score_arm(
    cfg: Config, arm: Arm, tasks: TaskSet, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sample rows and totals of all items; what ranks but the first return is only their share."""
    from c3po_bench.evaluate.adapter import score  # lm-eval and torch: a finished experiment needs neither

    journal = Journal(folder / ranks.journal_name())
    adopt(journal, folder)
    if arm.row.other_batches:
        chunks = make_chunks(tasks, other_size(cfg.batch_size), cfg.limit, by_length=False)
    else:
        chunks = make_chunks(tasks, cfg.batch_size, cfg.limit)
    chosen = None
    if cfg.shard:
        share, of = parse_shard(cfg.shard)
        chosen = chunks.share(share - 1, of)
        if not chosen:
            raise UserError(
                f"shard={cfg.shard}: {len(chunks.items)} batches can't be cut in {of}: use fewer shards"
            )

    def scored(numbers: Sequence[int] | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        doc_ids = None if numbers is None else chunks.doc_ids(numbers)
        settings = {"chunks": chunks, "limit": cfg.limit, "doc_ids": doc_ids, "seed": cfg.seed}
        return score(arm, tasks, journal, Progress(), **settings, prepare=prepare)

    prepare = cache(arm.prepare)
    if ranks.world() > 1:
        prepare()  # all ranks together, also one without a share: they train as a group
        rows = scored(chunks.share(ranks.rank(), ranks.world(), chosen))
        ranks.finish_share(folder)
        if ranks.rank() > 0:
            return rows
        ranks.await_shares(folder)
        adopt(journal, folder)
    found = scored(chosen)
    prepare()  # also where every answer was in the journal: cost and counts are those of a training, of references
    return found


def adopt(journal: Journal, folder: Path) -> None:
    """Let `journal` know what the other processes' journals hold, in whole groups.

    A torn one is scored again as one.
    """
    for path in sorted(folder.glob("journal*.jsonl")):
        if path != journal.path:
            for row in read_groups(path):
                journal.rows.setdefault(row["key"], row)


def record_arm(
    cfg: Config,
    arm: Arm,
    tasks: TaskSet,
    backend: Backend,
    shared: dict[str, Any],
    identity: dict[str, Any],
    folder: Path,
) -> None:
    """Score an arm and write down its run, result.json last."""
    started = provenance.now()
    log.info("%s: starting, in %s", arm.row.name, folder)
    write_settings(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    rows, totals = score_arm(cfg, arm, tasks, folder)
    rows, extra = arm.finish(rows)
    result = make_result(cfg, arm, tasks, shared, folder.name, rows, totals, extra)
    write_jsonl(samples := folder / "samples.jsonl", rows)
    record = {
        "code_version": __version__,
        "git_commit": provenance.git_commit(),
        "libraries": provenance.library_versions(),
        "model_hash": backend.model_hash,
        "data_hashes": shared["data"],
        "identity": identity,
        "seeds": {"seed": cfg.seed, "training": training_seed(cfg, arm)},
        "hardware": provenance.hardware(),
        "remote_code": False,
        "checksums": {samples.name: file_checksum(samples)},
        **record_of(cfg),
        "command": provenance.command(),
        "started": started,
        "finished": provenance.now(),
    }
    write_json(folder / "provenance.json", record)
    write_sealed(folder / "result.json", result)
    seconds = totals["seconds"]
    log.info("%s: %d items, %.3f correct, %.0f s", arm.row.name, len(rows), mean_correct(rows), seconds)


def publish(cfg: Config) -> None:
    """Hand the store to W&B; whatever goes wrong there is one warning, never a failed run."""
    if cfg.tracking.mode == "disabled" or cfg.shard:
        return
    publish_store(cfg.results_dir, cfg.tracking)
