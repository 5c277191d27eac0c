"""Reference items: labelled questions from training splits of other tasks, that rewiring may learn from.

Paper Table 7 pairs each benchmark with reference sets of given sizes. Some of them no task or no local copy
offers: `SETS` says which tasks make up a set and what is used instead, and the notes of a run repeat it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.contract import Item
from c3po_bench.errors import UserError
from c3po_bench.tasks.local_data import check_root, has_local
from c3po_bench.tasks.taskset import TaskSet

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

BIGBENCH = (
    "general_knowledge",
    "strategyqa",
    "logical_deduction",
    "misconceptions",
    "novel_concepts",
    "epistemic_reasoning",
    "formal_fallacies_syllogisms_negation",
    "winowhy",
)


@dataclass(frozen=True)
class ReferenceSet:
    """A reference set of the paper: its size there, the tasks that make it up, and what is used instead."""

    size: int
    tasks: tuple[str, ...]
    instead: tuple[str, ...] = ()


SETS = {
    "bigbench": ReferenceSet(
        8000,
        tuple(f"bigbench_{name}_multiple_choice" for name in BIGBENCH),
        ("commonsense_qa", "openbookqa", "sciq"),
    ),
    "super_glue": ReferenceSet(
        8000, ("boolq", "cb", "copa", "multirc", "sglue_rte", "wic", "wsc"), ("social_iqa",)
    ),
    "commonsense_qa": ReferenceSet(6000, ("commonsense_qa",)),
    "social_iqa": ReferenceSet(6000, ("social_iqa",)),
    "openbookqa": ReferenceSet(2000, ("openbookqa",)),
    "sciq": ReferenceSet(2000, ("sciq",)),
    "knowref": ReferenceSet(2000, (), ("winogrande",)),
}


def reference_items(
    names: Sequence[str],
    *,
    data_root: str | Path | None = None,
    rule: str = "cloze",
    num_fewshot: int = 0,
    limit: int | None = None,
    seed: int = 0,
    permute_options: bool = False,
    tested: Sequence[str] = (),
) -> tuple[list[Item], list[str]]:
    """Draw labelled items for the reference bank, at most `limit` in all.

    The limit is shared out over `names` as the paper's sizes are (evenly, if one of them is not in the
    paper), and evenly over the tasks behind a name. Items come from a task's training split, else from a
    validation split
    that is not evaluated, else from the evaluated split: a `UserError` if the task is in `tested` (leaf
    names). The draw depends on the seed only. Returns the items and notes on substitutes.
    """
    from c3po_bench.tasks.taskset import TaskSet

    root = None if data_root is None else check_root(data_root)
    if not names:
        raise UserError(
            "references.tasks is empty: name the tasks whose training items rewiring may learn from"
        )
    off_limits = set(tested)
    items: list[Item] = []
    notes: list[str] = []
    taken: set[tuple[str, int]] = set()
    for name, share in shares(names, limit).items():
        used, substitutes = tasks_of(name, root)
        tasks = TaskSet(
            used,
            data_root=root,
            rule=rule,
            num_fewshot=num_fewshot,
            seed=seed,
            permute_options=permute_options,
        )
        drawn, more = _draw(name, tasks, share, off_limits, taken)
        items += drawn
        notes += substitutes + more
    return items, list(dict.fromkeys(notes))


def shares(names: Sequence[str], limit: int | None) -> dict[str, int | None]:
    """How many of `limit` items each name gets: in the paper's proportions, or evenly."""
    unique = list(dict.fromkeys(names))
    if limit is None:
        return dict.fromkeys(unique)
    known = all(name in SETS for name in unique)
    weights = [SETS[name].size if known else 1 for name in unique]
    whole = sum(weights)
    bounds = [limit * sum(weights[:i]) // whole for i in range(len(unique) + 1)]
    return {name: bounds[i + 1] - bounds[i] for i, name in enumerate(unique)}


def tasks_of(name: str, root: Path | None) -> tuple[list[str], list[str]]:
    """The tasks that make up a reference set, and a note if they are not the ones asked for."""
    if name not in SETS:
        return [name], []
    whole = SETS[name]
    found = [task for task in whole.tasks if root is None or has_local(task, root, {})]
    if not found:
        found = [task for task in whole.instead if root is None or has_local(task, root, {})]
    if not found:
        near = ", ".join([*whole.tasks, *whole.instead][:6])
        raise UserError(f"references.tasks: data.root={root} holds nothing for {name!r} (looked for {near})")
    missing = f"{name} references: used {', '.join(found)} instead"
    return found, [] if found == list(whole.tasks) else [missing]


def _draw(
    name: str, tasks: TaskSet, share: int | None, off_limits: set[str], taken: set[tuple[str, int]]
) -> tuple[list[Item], list[str]]:
    """Items of one name, at most `share`, none of them in `taken` (which grows)."""
    notes = [f"{note} serve as references" for note in tasks.stand_ins]
    pools: dict[str, list[tuple[int, Any]]] = {}
    stand_ins: dict[str, list[str]] = {}
    loaded = tasks.load()
    sizes = _fill({leaf: len(_docs(task)[1]) for leaf, task in loaded.items()}, share)
    for leaf, task in loaded.items():
        split, docs, evaluated = _docs(task)
        if task.OUTPUT_TYPE != "multiple_choice":
            raise UserError(f"references.tasks: {leaf!r} is not multiple-choice")
        if evaluated and leaf in off_limits:
            raise UserError(f"references.tasks: {leaf!r} has only its test items, and they are being tested")
        if split != task.config.training_split:
            stand_ins.setdefault(split, []).append(leaf)
        pool = _shuffled(task, docs, tasks.num_fewshot, f"{tasks.seed}:{leaf}")
        pools[leaf] = list(islice((pair for pair in pool if (leaf, pair[0]) not in taken), sizes[leaf]))
        taken |= {(leaf, doc_id) for doc_id, _ in pools[leaf]}
    for split, leaves in stand_ins.items():
        who = leaves[0] if len(leaves) == 1 else f"{len(leaves)} tasks of {name}"
        notes.append(f"{who} references: {split} split (no train data)")
    count = sum(map(len, pools.values()))
    if share is not None and count < share:
        notes.append(f"{name} references: only {count} of {share} can be had")
    items: list[Item] = []
    for leaf, pool in pools.items():
        items += tasks.references(leaf, sorted(pool, key=lambda pair: pair[0]))
    return items, notes


def _shuffled(task: ConfigurableTask, docs: Any, num_fewshot: int, key: str) -> Iterator[tuple[int, Any]]:
    """Documents in seeded order, without the few-shot examples (they stand before every question)."""
    shots = list(task.sampler.sample(num_fewshot)) if num_fewshot else []
    for index in random.Random(key).sample(range(len(docs)), len(docs)):
        if (doc := docs[index]) not in shots:
            yield index, doc


def _docs(task: ConfigurableTask) -> tuple[str, Any, bool]:
    """The split to draw from, its documents, and whether it is the split that is evaluated."""
    config = task.config
    if config.training_split is not None:
        return config.training_split, task.training_docs(), False
    if config.validation_split is not None:
        return config.validation_split, task.validation_docs(), config.test_split is None
    return str(config.test_split), task.test_docs(), True


def _fill(available: dict[str, int], total: int | None) -> dict[str, int]:
    """Spread `total` over the leaves as evenly as their sizes allow."""
    if total is None:
        return available
    taken = dict.fromkeys(available, 0)
    left = min(total, sum(available.values()))
    while left:
        open_leaves = [leaf for leaf in available if taken[leaf] < available[leaf]]
        step = max(1, left // len(open_leaves))
        for leaf in open_leaves:
            more = min(step, available[leaf] - taken[leaf], left)
            taken[leaf] += more
            left -= more
    return taken
