"""A task's own functions as they are called here: their draws are the same in every run and on every rank, and they end."""

import hashlib
import inspect
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial, wraps
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy

from c3po_bench.errors import LIBRARIES, STOCK_TASK, UserError
from c3po_bench.runtime.limits import time_limit
from c3po_bench.store.identity import content_hash
from c3po_bench.tasks.fields import Unsound

PROBED = 8  # documents that are processed or rendered twice, to see whether both give the same
PER_DOCUMENT = ("doc_to_text", "doc_to_choice", "doc_to_target", "process_results")
SECONDS = 60.0
"""For a function of one document; what makes or processes all documents of a split has `SPLIT_SECONDS`."""
SPLIT_SECONDS = 3600.0
_DRAWS = re.compile(r"random|shuffle|uuid|secrets")


@contextmanager
def fixed_draws(key: str) -> Iterator[None]:
    """Seed the global generators of Python and numpy by `key`.

    Afterwards they go on as if nothing had been drawn.
    """
    before, numpy_before = random.getstate(), numpy.random.get_state()
    random.seed(key)
    numpy.random.seed(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
    try:
        yield
    finally:
        random.setstate(before)
        numpy.random.set_state(numpy_before)


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Within the block `OutOfTime` is raised after so many seconds.

    Then the working folder is what it was.
    """
    folder = os.getcwd()
    try:
        with time_limit(seconds):
            yield
    finally:
        os.chdir(folder)


def original(function: Any) -> Any:
    """The function that a task's file names, without what is wrapped around it here."""
    while isinstance(function, partial):
        function = function.args[0] if function.args and callable(function.args[0]) else function.func
    return inspect.unwrap(function)


def may_draw(function: Any) -> bool:
    """Whether a function's file, or one that it imports from beside it, speaks of random numbers."""
    function = original(function)
    used = [
        v for v in getattr(function, "__globals__", {}).values() if isinstance(v, FunctionType | ModuleType)
    ]
    return any(map(_speaks_of_draws, {_file(each) for each in (function, *used)}))


def _file(thing: Any) -> str:
    try:
        return inspect.getfile(thing)
    except TypeError:
        return ""


@cache
def _speaks_of_draws(file: str) -> bool:
    if not file or file.startswith(LIBRARIES) and not STOCK_TASK.search(file):
        return False
    path = Path(file)
    return path.is_file() and bool(_DRAWS.search(path.read_text(encoding="utf-8", errors="replace")))


def seeded(function: Any, key: str) -> Any:
    """`function` of a document, bounded, its draws seeded by `key` and the document.

    What is no function comes back.
    """
    if not callable(function):
        return function
    draws = may_draw(function)

    @wraps(function)
    def call(*arguments: Any, **more: Any) -> Any:
        with ExitStack() as around:
            around.enter_context(bounded(SECONDS))
            if draws:
                around.enter_context(fixed_draws(f"{key}:{content_hash(arguments[0]) if arguments else ''}"))
            return function(*arguments, **more)

    return call


def with_seeds(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A task's config, every function in it that draws seeded: the same document is rendered the same every time."""
    fewshot = config.get("fewshot_config")
    changed = {
        name: seeded(config[name], f"{key}:render") for name in PER_DOCUMENT if callable(config.get(name))
    }
    if callable(config.get("process_docs")):
        changed["process_docs"] = ProcessedOnce(config["process_docs"], key)
    if callable(config.get("custom_dataset")):
        changed["custom_dataset"] = _once_seeded(config["custom_dataset"], key)
    if isinstance(fewshot, dict):
        own = {
            name: ProcessedOnce(value, key)
            if name == "process_docs"
            else seeded(value, f"{key}:render")
            if name in PER_DOCUMENT
            else _once_seeded(value, key)
            for name, value in fewshot.items()
            if inspect.isfunction(value)
        }
        changed["fewshot_config"] = {**fewshot, **own}
    return config | changed


def _once_seeded(function: Callable[..., Any], key: str) -> Callable[..., Any]:
    """A function that makes documents, bounded, and seeded by `key` alone."""

    @wraps(function)
    def call(*arguments: Any, **more: Any) -> Any:
        with bounded(SPLIT_SECONDS), fixed_draws(key):
            return function(*arguments, **more)

    return call


class ProcessedOnce:
    """A task's `process_docs`, applied once to each split (lm-eval asks many times), without a progress bar.

    What it draws is seeded by `key`, and nothing is taken from the cache of `datasets`: what an unseeded run
    has left there would be taken for the same.
    """

    def __init__(self, process: Callable[[Any], Any], key: str) -> None:
        """Wrap `process`."""
        self.process, self.key = process, key
        self._done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, split: Any) -> Any:
        """The processed split."""
        if id(split) not in self._done:
            self._done[id(split)] = (split, done := self._process(split))
            if not hasattr(done, "features"):
                where = f"{_file(original(self.process))}: {original(self.process).__name__}"
                raise UserError(
                    f"{where} gives {type(done).__name__}, not a Dataset: return docs.map(...), docs.filter(...) or "
                    "datasets.Dataset.from_list(...)"
                )
            if hasattr(split, "select"):
                few = split.select(range(min(PROBED, len(split))))
                if not self._is_same_twice(few):
                    raise UserError(_unseeded(self.process))
        return self._done[id(split)][1]

    def _is_same_twice(self, few: Any) -> bool:
        """Whether some documents are processed alike twice; so they are where a few alone can't be."""
        try:
            first, second = (list(self._process(few)) for _ in range(2))
        except (Exception, SystemExit):
            if may_draw(self.process):
                raise
            return True
        return first == second

    def _process(self, split: Any) -> Any:
        from datasets import disable_caching, enable_caching, is_caching_enabled
        from datasets.utils import disable_progress_bars, enable_progress_bars

        caching = is_caching_enabled()
        disable_progress_bars()
        disable_caching()
        try:
            with bounded(SPLIT_SECONDS), fixed_draws(self.key):
                return self.process(split)
        finally:
            enable_progress_bars()
            if caching:
                enable_caching()


def _unseeded(function: Any) -> str:
    return (
        f"{_file(original(function))}: {original(function).__name__} gives another result each time: draw from `random` or "
        "`numpy.random` themselves, which are seeded here, or give a generator of its own a seed"
    )


def check_repeatable(config: Any, first: Any, second: Any) -> None:
    """`UserError` if a document rendered twice is not the same twice, naming the function to blame."""
    if repr(first) != repr(second):
        names = [getattr(config, name, None) for name in PER_DOCUMENT]
        drawing = [function for function in names if callable(function)]
        if not drawing:
            raise Unsound("its templates write something else each time")
        raise UserError(_unseeded(next(filter(may_draw, drawing), drawing[0])))
