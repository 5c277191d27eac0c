"""The journals of a run's shards become the journal of the whole run, which then needs no scoring.

So a merged run is made by the same code as an unsharded one, and its samples are the same bytes.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from c3po_bench.config import Config
from c3po_bench.errors import UserError
from c3po_bench.launch.sweep_folder import typed_config
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.runtime.ranks import parse_shard
from c3po_bench.store.files import Journal, read_groups
from c3po_bench.store.identity import run_id
from c3po_bench.store.reader import Run, load_experiments

OWN = ("results_dir", "threads", "reference_cache_gb", "log_level", "tracking")
"""What each shard has of its own: its machine, its disk, its log."""


def merge_shards(results_dir: Path, run: Callable[[Config], list[Run]]) -> Iterator[list[Run]]:
    """Merge every complete set of shards under `results_dir`/shards; yields the runs of each experiment.

    `run` is what runs an experiment's config.

    Raises:
        UserError: when there are no shards, and at the end when some of a set are missing.
    """
    sets = sets_of_shards(results_dir)
    for shards in sets:
        if not lacking(shards):
            for experiment in shards.values():
                for name in experiment["runs"]:
                    take_over(experiment["store"] / "runs" / name, results_dir)
            config = next(iter(shards.values()))["config"]
            yield run(typed_config({**config, "shard": None, "results_dir": str(results_dir)}))
    for shards in sets:
        if missing := lacking(shards):
            command = next(iter(shards.values()))["command"]
            raise UserError(f"{results_dir}: not done yet: shard={', shard='.join(missing)} of {command}")


def sets_of_shards(results_dir: Path) -> list[dict[int, dict[str, Any]]]:
    """The shards of each experiment, by their number: alike in all but what is each shard's `OWN`."""
    sets: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for store in sorted((results_dir / "shards").glob("*-of-*")):
        for experiment in load_experiments(store):
            share, _, of = experiment["config"]["shard"].partition("/")
            alike = {name: value for name, value in experiment["config"].items() if name not in OWN}
            key = json.dumps(alike | {"shard": of}, sort_keys=True, default=str)
            sets[key][int(share)] = {**experiment, "store": store}
    if not sets:
        raise UserError(
            f"{results_dir} holds no shards: run with shard=1/N results_dir={results_dir} to shard=N/N first"
        )
    return list(sets.values())


def lacking(shards: dict[int, dict[str, Any]]) -> list[str]:
    """The shards that an experiment still lacks."""
    of = parse_shard(next(iter(shards.values()))["config"]["shard"])[1]
    return [f"{i}/{of}" for i in range(1, of + 1) if i not in shards]


def take_over(shard: Path, results_dir: Path) -> None:
    """Add a shard's finished items to the journal of the whole run."""
    identity = {**Run(shard).provenance["identity"], "shard": None}
    folder = results_dir / "runs" / run_id(identity["arm"], identity)
    if (folder / "result.json").exists():
        return
    with exclusive_lock(folder, ".lock-0"):
        journal = Journal(folder / "journal.jsonl")
        rows = [row for path in sorted(shard.glob("journal*.jsonl")) for row in read_groups(path)]
        new = [row for row in rows if row["key"] not in journal.rows]
        if new:
            journal.append({name: value for name, value in row.items() if name != "of"} for row in new)
