"""Few-shot examples that are the same for every question of a task, whatever the order, shard or limit.

lm-eval's own sampler draws anew for each document from one stream, so a prompt depends on how many were built
before it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from lm_eval.api.samplers import ContextSampler

from c3po_bench.errors import UserError
from c3po_bench.tasks.soundness import check_example, refused


class FixedShots(ContextSampler):
    """The first `n` of a seeded shuffle of the pool (of the pool as it is, without a seed), but for the evaluated document.

    `asked` gives what a document asks: one that asks the same is passed over, too, whatever its number or
    label.
    """

    seed: int | None = 0
    asked: Callable[[Mapping[str, Any]], Any] | None = None
    check: Callable[[int, Mapping[str, Any]], None] | None = None
    """Called with the place of an example and what it is, before it is first shown."""
    _order: list[int] | None = None
    _seen: dict[int, Any]
    _checked: set[int]

    def sample(
        self,
        n: int,
        eval_doc: dict[str, Any] | None = None,
        df: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """The examples for one document; `UserError` if the pool is too small."""
        pool = df or self.df
        if self._order is None or len(self._order) != len(pool):
            places = range(len(pool))
            shuffled = self.seed is not None
            self._order = random.Random(self.seed).sample(places, len(pool)) if shuffled else list(places)
            self._seen, self._checked = {}, set()
        same = (lambda doc: doc) if self.asked is None else self.asked
        own = None if eval_doc is None else same(eval_doc)

        def is_other(index: int) -> bool:
            if eval_doc is None:
                return True
            if index not in self._seen:
                self._seen[index] = same(pool[index])
            return pool[index] != eval_doc and self._seen[index] != own

        shots = list(islice(filter(is_other, self._order), n))
        if len(shots) < n:
            besides = "" if eval_doc is None else " besides the question itself"
            raise UserError(f"scoring.num_fewshot={n}: there are only {len(shots)} examples to show{besides}")
        for index in shots:
            if self.check is not None and index not in self._checked:
                self.check(index, pool[index])
                self._checked.add(index)
        return [pool[index] for index in shots]


def fixed_shots(seed: int | None) -> type[FixedShots]:
    """A sampler class for `seed`, for the `sampler` of a task's `fewshot_config`.

    None for lm-eval's `first_n`.
    """
    return type("FixedShots", (FixedShots,), {"seed": seed})


def leave_out_evaluated(task: Any) -> None:
    """Have a loaded task leave each document out of its own examples, whatever split they come from.

    lm-eval tells the sampler which document is asked only where the YAML names the evaluated split as that of
    the examples, not where the task has no other.
    """
    if not hasattr(task, "sampler"):
        return
    split = _shown_split(task)
    task.fewshot_cfg.split = task.config.test_split
    if isinstance(task.sampler, FixedShots):
        cfg = task.fewshot_cfg

        def asked(doc: Mapping[str, Any]) -> Any:
            try:
                choices = task.doc_to_choice(doc, cfg.doc_to_choice) if cfg.doc_to_choice else None
                return task.doc_to_text(doc, cfg.doc_to_text), choices
            except Exception:  # examples that the YAML lists may have other fields than documents
                return doc

        def check(index: int, doc: Mapping[str, Any]) -> None:
            files = getattr(task.config.custom_dataset, "keywords", {}).get("files") or {}
            file = None if cfg.process_docs else files.get(split)
            with refused(
                f"task {task.config.task}: example {index}{f' (row {index + 1} of {file})' if file else ''} can't be shown"
            ):
                check_example(task, doc)

        task.sampler.asked, task.sampler.check = asked, check


def _shown_split(task: Any) -> str | None:
    """The split that a loaded task takes its examples from, as lm-eval chooses it.

    None where its file lists them.
    """
    config, own = task.config, task.fewshot_cfg
    if own.split is not None or own.samples is not None:
        return own.split
    return config.training_split or config.validation_split or config.test_split
