"""The tasks of an experiment: named, found, given their data and put under one scoring rule."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from c3po_bench.contract import CHOICES, TEXT, Item
from c3po_bench.errors import UserError
from c3po_bench.store.identity import content_hash
from c3po_bench.tasks import rules
from c3po_bench.tasks.catalog import Catalog
from c3po_bench.tasks.fewshot import leave_out_evaluated
from c3po_bench.tasks.fields import Unsound, is_mmlu
from c3po_bench.tasks.functions import PROBED, check_repeatable, original, with_seeds
from c3po_bench.tasks.local_data import (
    check_root,
    evaluated_split,
    find_files,
    from_hub,
    has_local,
    localize,
    names_files,
)
from c3po_bench.tasks.settings import check_config
from c3po_bench.tasks.soundness import check_document, check_results, check_scoring, explain_loading, refused
from c3po_bench.tasks.templates import use_sandbox

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

SCORED_BY = ("output_type", "generation_kwargs", "repeats", "filter_list", "process_results", "metric_list")


class TaskSet:
    """Tasks, groups, tags or YAML files by name, as lm-eval tasks under one scoring rule.

    Names and local folders are checked at once (`UserError` with the nearest choice); `load` reads the data.
    `own` are tasks and groups that a backend brings: name -> leaf task -> lm-eval config.
    `groups` maps every asked name to its leaf tasks; `headline` every leaf task to the metric that counts.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        data_root: str | Path | None = None,
        rule: str = "cloze",
        num_fewshot: int = 0,
        seed: int = 0,
        permute_options: bool = False,
        own: Mapping[str, dict[str, dict[str, Any]]] | None = None,
    ) -> None:
        """Find the tasks and fix how they are asked; `seed` draws few-shot examples and permutations."""
        rules.check(rule, num_fewshot)
        root = None if data_root is None else check_root(data_root)
        self.names, self.rule, self.num_fewshot, self.seed = tuple(names), rule, num_fewshot, seed
        self.stand_ins: list[str] = []
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}
        self.groups: dict[str, list[str]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, ConfigurableTask] = {}
        self._ours: set[str] = set()
        catalog, stock = Catalog(), {}
        for name in names:
            with refused(f"task {name} can't be read"):
                leaves = own[name] if own and name in own else catalog.expand(name)
            if not leaves:
                raise UserError(f"task {name}: there is no task in this group")
            self.groups[name] = list(leaves)
            self._ours |= set(leaves) if own and name in own else set()
            for task, config in leaves.items():
                if stock.setdefault(task, _plain(config)) != _plain(config):
                    raise UserError(
                        f"tasks: {name} holds another task {task} than one before it: give one of them another name"
                    )
                if task not in self.configs:
                    with refused(f"task {task} can't be set up"):
                        check_config(task, config, ours=task in self._ours)
                        folder = catalog.folder_of(task)
                        self.configs[task] = self._configure(task, config, root, permute_options, folder)
        self._folders = catalog.folders

    def _configure(
        self, task: str, stock: dict[str, Any], root: Path | None, permute: bool, folder: Path | None
    ) -> dict[str, Any]:
        config = with_seeds(dict(stock), f"{self.seed}:{task}")
        if is_mmlu(task, config):  # the stock YAML does not name it; it serves as reference
            config.setdefault("validation_split", "validation")
        if "custom_dataset" not in config:
            if root is None or names_files(config) and not has_local(task, root, config):
                changed, notes = find_files(task, config, folder)
                config |= changed
                self.notes += notes
                config |= from_hub(task, config)
            else:
                changed, notes = localize(task, config, root)
                config |= changed
                self.stand_ins += notes
                self.notes += notes
        if (usual := config.get("num_fewshot") or 0) != self.num_fewshot and usual:
            self.notes.append(
                f"{task}: asked with {self.num_fewshot} examples (scoring.num_fewshot), in lm-eval with {usual}"
            )
        return config | rules.overrides(
            task, config, rule=self.rule, num_fewshot=self.num_fewshot, permute=permute, seed=self.seed
        )

    @cached_property
    def manager(self) -> TaskManager:
        """A TaskManager over the folders of these tasks only."""
        from lm_eval.tasks import TaskManager

        return TaskManager(include_defaults=False, include_path=[str(folder) for folder in self._folders])

    @property
    def specs(self) -> list[ConfigurableTask]:
        """For `lm_eval.simple_evaluate(tasks=...)`: the loaded tasks, so that no arm loads them again."""
        return list(self.load().values())

    def load(self) -> dict[str, ConfigurableTask]:
        """The leaf tasks by name, read once. `UserError` if there is no data for one of them."""
        if not self._tasks and self.configs:
            from lm_eval.tasks import TaskManager

            use_sandbox()
            builder, loaded = TaskManager(include_defaults=False), {}
            with quiet("lm_eval.api.task"):
                for name, config in self.configs.items():
                    # what a backend's own task fails at is no fault of a task's file
                    with nullcontext() if name in self._ours else refused(f"task {name} can't be set up"):
                        loaded[name] = cast("ConfigurableTask", self._build(builder, name, config))
                        leave_out_evaluated(loaded[name])
                        check_results(loaded[name], rules.headline(loaded[name], self.rule))
            self._tasks = loaded
        return self._tasks

    def _build(self, builder: TaskManager, name: str, config: dict[str, Any]) -> Any:
        try:
            return builder.load([dict(config)])["tasks"][name]
        except Exception as error:
            if name in self._ours:
                raise
            explain_loading(self.where(name, 0), config, error)
            raise

    def where(self, name: str, doc_id: int) -> str:
        """A document for an error: its number in the task and, where its file is known, the row."""
        config = self.configs.get(name, {})
        files = getattr(config.get("custom_dataset"), "keywords", {}).get("files") or {}
        split = evaluated_split(config)
        file = files.get(split) if isinstance(files, dict) else None
        row = f" (row {doc_id + 1} of {file})" if file and not config.get("process_docs") else ""
        return f"task {name}: document {doc_id}{row or (f' (of {file})' if file else '')} can't be asked"

    def extend(self, group: str, tasks: Mapping[str, ConfigurableTask]) -> None:
        """Add ready-made tasks under a group's name.

        Those that are made at run time, from a model's answers.
        """
        self._tasks = {**self.load(), **tasks}
        self.groups[group] = list(tasks)
        self.__dict__.pop("headline", None)

    @cached_property
    def headline(self) -> dict[str, str]:
        """The metric that counts for each leaf task: "acc", "acc_norm" or the task's own first metric."""
        return {name: rules.headline(task, self.rule) for name, task in self.load().items()}

    def data_hashes(self) -> dict[str, str]:
        """SHA-256 over the evaluated documents of each leaf task, in order."""
        hashes = {}
        for name, task in self.load().items():
            digest = hashlib.sha256()
            for doc in task.eval_docs:
                digest.update(json.dumps(doc, sort_keys=True, default=str).encode())
            hashes[name] = digest.hexdigest()
        return hashes

    def request_hashes(self, limit: int | None = None) -> dict[str, str]:
        """SHA-256 over what is asked of the first `limit` documents of each leaf task, and what counts as right.

        That is every request as it is rendered, with its examples, the right answer, and how answers become
        scores.
        """
        hashes = {}
        for name, task in self.load().items():
            settings = [getattr(task.config, key, None) for key in SCORED_BY]
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_source).encode())
            docs: Any = islice(task.eval_docs, limit)
            scored = callable(task.config.process_results)
            for doc_id, doc in enumerate(docs):
                with refused(self.where(name, doc_id)):
                    right = self._checked_golds(task, doc)
                    requests = self._requests(task, doc_id, doc)
                    asked = [request.args for request in requests]
                    if doc_id < PROBED:
                        again = [request.args for request in self._requests(task, doc_id, doc)]
                        check_repeatable(task.config, (asked, right), (again, self._checked_golds(task, doc)))
                    if scored or doc_id == 0 or isinstance(right, list) and len(right) > 1:
                        check_scoring(task, requests, doc, self.headline[name])
                digest.update(json.dumps([asked, right], sort_keys=True, default=str).encode())
            hashes[name] = digest.hexdigest()
        return hashes

    def _checked_golds(self, task: ConfigurableTask, doc: Mapping[str, Any]) -> Any:
        """Places of the right choices; of a task without choices the answer.

        ValueError where there is no such choice, or one that can't be scored.
        """
        check_document(task, doc)
        if task.OUTPUT_TYPE != "multiple_choice":
            return task.doc_to_target(doc)
        golds, lengths = rules.layout_of(task).golds(doc), self.choice_lengths(task, doc)
        if not all(0 <= gold < len(lengths) for gold in golds):
            raise Unsound(f"its answer, {golds}, is none of its {len(lengths)} choices")
        if rules.headline(task, self.rule) == "acc_norm" and not all(lengths):
            raise Unsound("a choice without text can't be scored by length")
        return golds

    @staticmethod
    def _requests(task: ConfigurableTask, doc_id: int, doc: dict[str, Any]) -> list[Any]:
        """lm-eval's own requests for a document."""
        context = task.fewshot_context(doc, task.config.num_fewshot or 0, gen_prefix=task.doc_to_prefix(doc))
        made = task.construct_requests(doc, context, metadata=(task.task_name, doc_id, 1))
        return made if isinstance(made, list) else [made]

    @staticmethod
    def question_text(task: ConfigurableTask, doc: Mapping[str, Any]) -> str:
        """The question alone: no examples, no options, never the label. Generation tasks: the prompt."""
        if task.OUTPUT_TYPE != "multiple_choice":
            return str(task.doc_to_text(doc))
        return rules.layout_of(task).fields.question(doc)

    @staticmethod
    def choice_texts(task: ConfigurableTask, doc: Mapping[str, Any]) -> list[str] | None:
        """The texts of the options in the order the model is asked about them; None for generation tasks."""
        return rules.layout_of(task).shown(doc) if task.OUTPUT_TYPE == "multiple_choice" else None

    @staticmethod
    def choice_lengths(task: ConfigurableTask, doc: Mapping[str, Any]) -> list[float]:
        """What `acc_norm` divides each log-likelihood by.

        The choice's length in characters, as in lm-eval.
        """
        return [float(len(choice)) for choice in task.doc_to_choice(doc)]

    @staticmethod
    def gold(task: ConfigurableTask, doc: Mapping[str, Any]) -> int:
        """Index of the right choice (the first, if there are several) in the order asked."""
        return rules.layout_of(task).golds(doc)[0]

    @staticmethod
    def golds(task: ConfigurableTask, doc: Mapping[str, Any]) -> list[int]:
        """Indices of all right choices in the order asked."""
        return rules.layout_of(task).golds(doc)

    def item(
        self,
        id: tuple[str, int],
        doc: Mapping[str, Any],
        kind: str,
        arguments: Sequence[Any],
        labelled: bool = True,
    ) -> Item:
        """The item of a document.

        Args:
            id: the task's name, and the document's number in it.
            doc: the document.
            kind: whether its options are scored (`contract.CHOICES`) or its prompt is continued
                (`contract.TEXT`).
            arguments: of lm-eval's requests for it: (context, continuation), or (prompt, generation
                settings).
            labelled: whether the item says which option is right.
        """
        task = self.load()[id[0]]
        metadata = getattr(task, "item_metadata", lambda _number: {})(id[1])
        if kind == TEXT:
            (prompt, settings), *_ = arguments
            # whom a prompt is about is part of what is asked: two feedbacks may share a prompt
            whose = {name: metadata[name] for name in ("feedback", "scope") if name in metadata}
            rendered = [(prompt, {**settings, **whose})]
            options = {"prompt": prompt, "decoding": dict(settings)}
        else:
            rendered = arguments
            n_choices, gold, lengths = len(arguments), None, ()
            if task.OUTPUT_TYPE == "multiple_choice":
                n_choices = len(self.choice_lengths(task, doc))
                gold = self.gold(task, doc) if labelled else None
                lengths = tuple(self.choice_lengths(task, doc)) if self.headline[id[0]] == "acc_norm" else ()
            pairs = tuple((str(context), str(continuation)) for context, continuation in arguments)
            options = {"requests": pairs, "n_choices": n_choices, "gold": gold, "lengths": lengths}
        request = {CHOICES: "loglikelihood", TEXT: "generate_until"}[kind]
        key = content_hash([request, id[0], [list(map(str, each)) for each in rendered]], 24)
        return Item(id, kind, key, self.question_text(task, doc), metadata=metadata, **options)

    def items(self, limit: int | None = None, *, labelled: bool = False) -> Iterator[Item]:
        """The items of the first `limit` documents of each task, as lm-eval will render them.

        Mostly without labels.
        """
        for name, task in self.load().items():
            kind = TEXT if task.OUTPUT_TYPE == "generate_until" else CHOICES
            docs: Any = islice(task.eval_docs, limit)
            for doc_id, doc in enumerate(docs):
                arguments = [request.args for request in self._requests(task, doc_id, doc)]
                yield self.item((name, doc_id), doc, kind, arguments, labelled=labelled)

    def references(self, name: str, docs: Iterable[tuple[int, dict[str, Any]]]) -> list[Item]:
        """Labelled items of (number, document) pairs of a multiple-choice task, rendered by lm-eval itself."""
        task, items = self.load()[name], []
        for doc_id, doc in docs:
            with refused(f"task {name}: document {doc_id} can't be asked"):
                self._checked_golds(task, doc)
                arguments = [request.args for request in self._requests(task, doc_id, doc)]
                item = self.item((name, doc_id), doc, CHOICES, arguments)
                # a metric's further requests teach nothing
                items.append(replace(item, requests=item.options))
        return items


def _plain(config: dict[str, Any]) -> str:
    """A config as text: equal for two readings of one file."""
    return json.dumps(config, sort_keys=True, default=_source)


def _source(value: Any) -> str:
    """What stands for a function in a hash: its file's text, helpers included.

    For anything else without JSON its type.

    Of a function of this package it is its own text: the rest of its file is not about scoring.
    """
    value = original(value)
    try:
        ours = str(value.__module__).startswith("c3po_bench.")
        return inspect.getsource(value) if ours else Path(inspect.getfile(value)).read_text(encoding="utf-8")
    except (AttributeError, TypeError, OSError):
        return type(value).__qualname__


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Hold back lm-eval's warnings about what is meant here (own dataset loaders, default aggregations)."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
