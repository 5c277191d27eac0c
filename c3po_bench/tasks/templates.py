"""The templates of tasks (Jinja), which come with the task and are not trusted: rendered in jinja2's sandbox, within limits.

lm-evaluation-harness renders them in an open environment, where a template can reach any function of Python.
Its environment is replaced here. What a template writes stays the same, but for the filter `random`, which
draws by the document alone, and for a missing value, which is refused.
"""

import random
import re
from collections.abc import Iterable
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment, SecurityError
from lm_eval import utils as lm_eval_utils

from c3po_bench.runtime.limits import time_limit
from c3po_bench.store.identity import content_hash
from c3po_bench.tasks.fields import Unsound, is_missing

SECONDS = 5.0  # of one rendering, which takes some microseconds
MOST = 10_000_000  # characters, or elements, of what an operator or a method makes
SIZED = ("center", "indent", "batch", "slice")
"""Filters of which a number says how much they write."""
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")
"""Methods of a text of which a number says so."""
_WIDE = re.compile(r"[%:][^}a-zA-Z]*(\*|\d{7})")  # a field of a format


class LimitedTemplate(jinja2.Template):
    """A template whose rendering ends."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """The text.

        Raises:
            OutOfTime: where it does not end.
        """
        with time_limit(SECONDS):
            return super().render(*args, **kwargs)


class TaskEnvironment(SandboxedEnvironment):
    """jinja2's sandbox, with bounds on what a short expression may make."""

    template_class = LimitedTemplate
    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse what would be too large to be meant."""
        if operator == "*" and hasattr(left, "__len__") is not hasattr(right, "__len__"):
            times, whole = (right, left) if hasattr(left, "__len__") else (left, right)
            if isinstance(times, int) and times * len(whole) > MOST:
                raise SecurityError(f"it repeats a value {times} times")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MOST:
                raise SecurityError("it raises a number to a power without bounds")
        elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise SecurityError(f"it writes a field beyond all measure, {left[:40]!r}")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        """Refuse a size beyond all measure in the arguments of a method, such as `"x".center`."""
        method = getattr(obj, "__wrapped__", obj)  # the sandbox has a `format` of its own
        name, text = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        if isinstance(text, str):
            if name in PADDING:
                _check_sizes(name, (*args, *kwargs.values()))
            elif name in ("format", "format_map") and _WIDE.search(text):
                raise SecurityError(f"it writes a field beyond all measure, {text[:40]!r}")
        return super().call(context, obj, *args, **kwargs)


def _check_sizes(name: str, arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, int) and argument > MOST:
            raise SecurityError(f"{name} is given the size {argument}")


def _sized(function: Any) -> Any:
    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _check_sizes(function.__name__, (*args[1:], *kwargs.values()))
        return function(*args, **kwargs)

    return limited


def _printed(value: Any) -> Any:
    """A value to be written: a missing one would be asked as the word None."""
    if is_missing(value):
        raise Unsound("it prints a field that has no value")
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise Unsound(
            f"it prints a function, {getattr(value, '__name__', type(value).__name__)}: call it by ()"
        )
    if isinstance(value, bytes | bytearray):
        raise Unsound("it prints bytes, which are no text: decode them, or leave the field out")
    return value


@jinja2.pass_context
def _draw(context: Any, choices: Any) -> Any:
    names = {name: value for name, value in context.get_all().items() if not callable(value)}
    return random.Random(content_hash(names)).choice(choices)


def use_sandbox() -> None:
    """Let lm-eval render by `TaskEnvironment`, and compile each template once instead of for each rendering."""
    if isinstance(lm_eval_utils.env, TaskEnvironment):
        return
    before: Any = lm_eval_utils.env
    made: Any = TaskEnvironment(
        undefined=before.undefined,
        keep_trailing_newline=before.keep_trailing_newline,
        finalize=_printed,
    )
    made.filters |= before.filters | {"random": _draw}
    made.filters |= {name: _sized(made.filters[name]) for name in SIZED}
    made.globals.pop("lipsum", None)
    made.from_string = lru_cache(1024)(made.from_string)
    lm_eval_utils.env = made
