"""Reference items: labelled questions from training splits of other tasks, that rewiring may learn from.

Paper Table 7 pairs each benchmark with reference sets. Some of them no task or no local copy offers; `SUBSTITUTES`
says what is used instead, and the notes of a run repeat it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError
from c3po_bench.tasks.catalog import Catalog
from c3po_bench.tasks.items import Item
from c3po_bench.tasks.local_data import check_root, has_local

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

# A reference set of the paper -> lm-eval tasks of the same kind with labelled training data, best first.
# All that can be read are used together.
SUBSTITUTES = {
    "bigbench": ("commonsense_qa", "openbookqa", "sciq"),
    "super_glue": ("copa", "boolq", "cb", "sglue_rte", "wic", "wsc"),
    "knowref": ("winogrande",),
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
    """Draw labelled items for the reference bank, `limit` in all, spread evenly over `names`.

    Each comes from its task's training split, else from a validation split that is not evaluated, else (noted) from
    the evaluated split of a task that is not in `tested`. The draw depends on the seed only. Returns the items and
    notes on substitutions.
    """
    root = None if data_root is None else check_root(data_root)
    if not names:
        raise UserError("references.tasks is empty: name the tasks whose training items rewiring may learn from")
    items: list[Item] = []
    notes: list[str] = []
    for name, share in zip(names, _shares(limit, len(names)), strict=True):
        drawn, said = _draw(name, root, rule, num_fewshot, share, seed, permute_options, tested)
        items += drawn
        notes += said
    return items, list(dict.fromkeys(notes))


def _shares(limit: int | None, n: int) -> list[int | None]:
    """`limit` in `n` nearly equal parts."""
    if limit is None:
        return [None] * n
    return [limit // n + (i < limit % n) for i in range(n)]


def substitutes(name: str, root: Path | None) -> list[str]:
    """The tasks that stand for reference set `name`: itself, or what of its substitutes can be read from `root`."""
    if name not in SUBSTITUTES:
        return [name]
    found = [task for task in SUBSTITUTES[name] if root is None or has_local(task, root)]
    if not found:
        raise UserError(f"references.tasks: no data for {name!r} or for its substitutes {', '.join(SUBSTITUTES[name])}")
    return found


def _draw(
    name: str,
    root: Path | None,
    rule: str,
    num_fewshot: int,
    share: int | None,
    seed: int,
    permute: bool,
    tested: Sequence[str],
) -> tuple[list[Item], list[str]]:
    from c3po_bench.tasks.taskset import TaskSet

    used = substitutes(name, root)
    notes = [f"references {name!r}: used {', '.join(used)} instead"] if used != [name] else []
    tasks = TaskSet(
        used, data_root=root, rule=rule, num_fewshot=num_fewshot, seed=seed, permute_options=permute
    )
    off_limits = _leaves(tested)
    pools: dict[str, tuple[Any, list[int]]] = {}
    split_of: dict[str, list[str]] = {}
    for leaf, task in tasks.load().items():
        if task.OUTPUT_TYPE != "multiple_choice":
            raise UserError(f"references.tasks: {leaf!r} is not multiple-choice")
        split, docs, evaluated = _docs(task)
        if evaluated and leaf in off_limits:
            raise UserError(f"references.tasks: {leaf!r} has only its test items, and they are being tested")
        if split != task.config.training_split:
            split_of.setdefault(split, []).append(leaf)
        order = random.Random(f"{seed}:{leaf}").sample(range(len(docs)), len(docs))
        pools[leaf] = (docs, order)
    for split, leaves in split_of.items():
        who = leaves[0] if len(leaves) == 1 else f"{len(leaves)} tasks of {name}"
        notes.append(f"references {who}: {split} split (no train data)")
    notes += [f"references {note}" for note in tasks.notes]
    sizes = _fill({leaf: len(order) for leaf, (_, order) in pools.items()}, share)
    items: list[Item] = []
    for leaf, (docs, order) in pools.items():
        task = tasks.load()[leaf]
        shots = list(task.sampler.sample(num_fewshot)) if num_fewshot else []  # they stand before every question
        chosen = ((i, doc) for i in order if (doc := docs[i]) not in shots)
        items += tasks.items(task, sorted(islice(chosen, sizes[leaf]), key=lambda pair: pair[0]))
    return items, notes


def _leaves(names: Sequence[str]) -> set[str]:
    catalog = Catalog()
    return {leaf for name in names for leaf in catalog.expand(name)}


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
        for leaf in available:
            if left and taken[leaf] < available[leaf]:
                taken[leaf] += 1
                left -= 1
    return taken
