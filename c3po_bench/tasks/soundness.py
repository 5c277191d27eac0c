"""What of a task is refused before anything is scored, and how that is said: in one line, with file, row and field.

lm-evaluation-harness reads a task's first document when it loads it, and finds out about the others when all
are scored. Here every document that will be asked is looked at first.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import date
from functools import partial, wraps
from math import isfinite
from typing import Any, SupportsFloat

from lm_eval import utils as lm_eval_utils
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from c3po_bench.errors import UserError, cause, nearest, of_the_disk
from c3po_bench.tasks.fields import Unsound, is_missing, missing_fields, shown
from c3po_bench.tasks.settings import SPLITS


class _Mark(str):
    """Stands for a value that is missing, to see whether it is printed: in a list, too, without quotes."""

    __repr__ = str.__str__


MARKS = {"none": _Mark("\ue000"), "nan": _Mark("\ue001")}
"""By the word that is printed for what is missing."""


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Say in one line what a task's file or documents make lm-eval, or a function of theirs, fail at.

    Whoever named the task can mend it. `sys.exit` in such a function is no end of the program either.
    """
    try:
        yield
    except Unsound as error:
        raise UserError(f"{what}: {error}") from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if of_the_disk(error):
            raise
        raise UserError(f"{what} ({cause(error)})") from error


def read(task: Any, key: str, doc: Mapping[str, Any], own: Any = None) -> Any:
    """What `doc_to_text`, `doc_to_choice` or `doc_to_target` of a task gives for a document.

    `own` is what an example has in its place.

    Raises:
        Unsound: if it fails, or writes a missing field as the word None.
    """
    missing = missing_fields(doc)
    empty = f" (null: {', '.join(missing)})" if missing else ""
    template = getattr(task.config, key) if own is None else own
    rendered = getattr(task, key) if own is None else partial(getattr(task, key), **{key: own})
    try:
        value = rendered(doc)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError | SyntaxError) and "literal_eval" in _functions_of(error):
            kind = "a list" if key == "doc_to_choice" else "a number or list"
            written = lm_eval_utils.apply_template(template, dict(doc))
            raise Unsound(f"{key} writes {shown(written)}, which can't be read as {kind}") from error
        names = f"; its fields are {', '.join(doc)}" if type(error).__name__ == "UndefinedError" else ""
        text = str(error) if isinstance(error, Unsound) else cause(error)
        raise Unsound(f"{key}: {text}{empty or names}") from error
    if _prints_missing(rendered, doc, value):
        raise Unsound(f"{key} writes a field that has no value{empty}")
    asked_as_word = template == value and isinstance(value, str) and value.isidentifier() and value not in doc
    if asked_as_word and (close := nearest(value, doc, 1)):
        raise Unsound(f"{key}: {value!r} is none of its fields: did you mean {close[0]!r}?")
    return value


def _prints_missing(rendered: Callable[[Any], Any], doc: Mapping[str, Any], value: Any) -> bool:
    """Whether a function, or a filter of a template, has made a word of what is missing in a document.

    So it is if a mark in its place would stand where the word None, or nan, does. What looks at the missing
    field before it writes is not to blame.
    """
    words = _written(value)
    if words is None or not any(word in words for word in MARKS) or (marked := _marked(doc)) == doc:
        return False
    try:
        other = _written(rendered(marked))
    except (Exception, SystemExit):  # it does look at what is missing
        return False
    if other is None or not any(mark in other for mark in MARKS.values()):
        return False
    for word, mark in MARKS.items():
        other = other.replace(mark, word)
    return other == words


def _written(value: Any) -> str | None:
    """A text, or the texts of a list in one, whatever their case; None for anything else."""
    texts = value if isinstance(value, list) else [value]
    return "\n".join(texts).casefold() if all(isinstance(text, str) for text in texts) else None


def _marked(value: Any) -> Any:
    """A document with a mark for each value that is missing, be it in a list or an object."""
    if is_missing(value):
        return MARKS["none" if value is None else "nan"]
    if isinstance(value, Mapping):
        return {key: _marked(each) for key, each in value.items()}
    return [_marked(each) for each in value] if isinstance(value, list) else value


def _functions_of(error: BaseException) -> set[str]:
    return {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}


def check_document(task: Any, doc: Mapping[str, Any]) -> None:
    """Look at what a document asks and what counts as right.

    Raises:
        Unsound: for what lm-eval would ask or score in no defined way, naming the part of the task's file.
    """
    text = read(task, "doc_to_text", doc)
    if task.OUTPUT_TYPE == "multiple_choice":
        _check_choice_document(task, doc, text)
        return
    if not isinstance(text, str):
        raise Unsound(f"doc_to_text gives {shown(text)}, not text")
    target = read(task, "doc_to_target", doc)
    if task.OUTPUT_TYPE == "loglikelihood" and not isinstance(target, str):
        raise Unsound(
            f"doc_to_target gives {shown(target)}, not text: write {{{{field}}}} to make text of it"
        )
    if is_missing(target):
        raise Unsound(f"doc_to_target gives no value (null: {', '.join(missing_fields(doc))})")
    if (
        task.OUTPUT_TYPE == "generate_until"
        and not task.config.process_results
        and task.config.doc_to_choice is None
    ):
        if task.multiple_target and not isinstance(
            target, list
        ):  # lm-eval would take its letters for answers
            raise Unsound(
                f"doc_to_target gives {shown(target)}, and a list for the first document: give lists for all"
            )
        if not task.multiple_target and isinstance(target, list) and not _literal(task, doc):
            raise Unsound(
                f"doc_to_target gives the list {shown(target)}, and one answer for the first document"
            )


def check_example(task: Any, doc: Mapping[str, Any]) -> None:
    """Look at what an example shows: its question, and its answer.

    Raises:
        Unsound: for what lm-eval would show without an answer, or with one that is none.
    """
    own = task.fewshot_cfg
    text = read(task, "doc_to_text", doc, own.doc_to_text)
    choices = read(task, "doc_to_choice", doc, own.doc_to_choice) if own.doc_to_choice else None
    target = read(task, "doc_to_target", doc, own.doc_to_target)
    if choices is not None and not (isinstance(choices, list) and all(isinstance(c, str) for c in choices)):
        raise Unsound(f"doc_to_choice gives {shown(choices)}, not a list of texts")
    if task.multiple_input and not _place(text, len(choices or [])):
        raise Unsound(f"doc_to_text gives {shown(text)}, which is the place of no choice")
    if not task.multiple_input and not isinstance(text, str):
        raise Unsound(f"doc_to_text gives {shown(text)}, not text")
    gives = f"doc_to_target gives {shown(target)}"
    if isinstance(target, list):
        if not target or not isinstance(target[0], str):
            raise Unsound(
                f"{gives}, and an example shows a single answer: give fewshot_config a doc_to_target"
            )
    elif isinstance(target, int):
        if choices is None or not _place(target, len(choices)):
            what = "not text" if choices is None else f"which is none of its {len(choices)} choices"
            raise Unsound(f"{gives}, {what}")
    elif not isinstance(target, str) or not target.strip():
        raise Unsound(f"{gives}: it has no answer to be shown")
    elif (
        task.OUTPUT_TYPE == "multiple_choice"
        and not task.multiple_input
        and own.doc_to_target == task.config.doc_to_target
        and choices
        and target not in choices
    ):
        raise Unsound(f"{gives}, which is none of its {len(choices)} choices{_spelling(target, choices)}")


def _literal(task: Any, doc: Mapping[str, Any]) -> bool:
    """Whether a target is a list only because lm-eval reads its text as one, as it does with "[2, 5]"."""
    template = task.config.doc_to_target
    return isinstance(template, str) and template not in doc


def _check_choice_document(task: Any, doc: Mapping[str, Any], text: Any) -> None:
    choices = read(task, "doc_to_choice", doc)
    if not isinstance(choices, list) or not choices:
        raise Unsound(f"doc_to_choice gives {shown(choices)}, not a list of choices")
    for number, choice in enumerate(choices, 1):
        if not isinstance(choice, str):
            raise Unsound(
                f"choice {number} of {len(choices)} is {shown(choice)}, which is not text{_as_text(task, choice)}"
            )
    target, count = read(task, "doc_to_target", doc), len(choices)
    if task.multiple_input:
        if not _place(text, count) or not isinstance(target, str):
            raise Unsound(
                f"doc_to_text gives {shown(text)}, which lm-eval takes for the place of a choice, as of the first document: "
                "put words around it"
            )
        return
    if isinstance(text, int):
        raise Unsound(
            f"doc_to_text gives the number {text} alone, which lm-eval takes for the place of a choice: put words around it"
        )
    if not isinstance(text, str):
        raise Unsound(f"doc_to_text gives {shown(text)}, not text")
    if isinstance(target, list) != bool(task.multiple_target):
        first = "a list" if task.multiple_target else "a single answer"
        raise Unsound(
            f"doc_to_target gives {shown(target)}, and {first} for the first document: give lists for all"
        )
    gives = f"doc_to_target ({shown(task.config.doc_to_target)})" if _is_text(task) else "doc_to_target"
    if isinstance(target, list) and any(isinstance(right, bool) for right in target):
        raise Unsound(
            f"{gives} gives {shown(target)}, true or false for each: lm-eval wants the right places"
        )
    for right in target if isinstance(target, list) else [target]:
        what = f"{gives} gives {shown(right)}, which is none of its {count} choices"
        if isinstance(right, str) and not isinstance(target, list):
            if right not in choices:
                raise Unsound(f"{what}{_spelling(right, choices)}")
        elif isinstance(right, str):
            raise Unsound(
                f"{gives} gives a list of texts, {shown(target)}: lm-eval wants their places, such as [0, 2]"
            )
        elif not _place(right, count):
            raise Unsound(f"{what}: it wants a place (an integer, from 0) or a choice's text")
    if target == []:
        raise Unsound(f"{gives} gives an empty list: no choice is right")


def _as_text(task: Any, value: Any) -> str:
    """How a value that is no text becomes one."""
    if value is None:
        csv = task.config.dataset_path == "csv"
        return ": words like NA and None are read as nothing (dataset_kwargs: keep_default_na: false)" * csv
    if isinstance(value, date):
        return ": what looks like a date is read as one; write {{...|string}}, or the data otherwise"
    return ": write it in quotes"


def _is_text(task: Any) -> bool:
    return isinstance(task.config.doc_to_target, str)


def _place(value: Any, count: int) -> bool:
    return isinstance(value, int) and 0 <= value < count


def _spelling(right: str, choices: Sequence[str]) -> str:
    alike = [choice for choice in choices if choice.strip().casefold() == right.strip().casefold()]
    return f": it is spelt {alike[0]!r} there" if alike else ""


def check_scoring(task: Any, requests: Sequence[Any], doc: Mapping[str, Any], metric: str) -> None:
    """Have made-up answers filtered and scored as the true ones will be.

    Raises:
        Unsound: if that fails, or `metric` gives no number for the document.
    """
    texts = task.OUTPUT_TYPE == "generate_until"
    own_metrics = any(
        m.get("hf_evaluate") or callable(m.get("metric")) for m in task.config.metric_list or []
    )
    if task.config.unsafe_code or texts and (task.config.process_results or own_metrics):
        return  # it would run code of answers, or ask the hub, or may be right to fail at an empty answer
    answer = task.doc_to_target(doc)
    answer = str(answer[0] if isinstance(answer, list) and answer else answer)
    made_up = []
    for number, request in enumerate(requests):
        made_up.append(copy(request))
        made_up[-1].filtered_resps = {}
        made_up[-1].resps = [answer if texts else (-1.0 - number, False)] * (request.repeats or 1)
    for pipeline in task._filters:
        try:
            pipeline.apply(made_up)
            scores = task.process_results(doc, [each.filtered_resps[pipeline.name] for each in made_up])
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise Unsound(f"it can't be scored ({cause(error)})") from error
        check_score(task.task_name, metric, scores)


def check_results(task: Any, metric: str) -> None:
    """Have a loaded task's scores looked at as they are made: of what is no number lm-eval makes no mean, or NaN.

    `metric` is the one that counts.
    """
    process = task.process_results

    @wraps(process)
    def checked(doc: Any, results: Any) -> Any:
        scores = process(doc, results)
        bad = None if isinstance(scores, Mapping) else f"{shown(scores)}, not scores by metric"
        for name, value in scores.items() if bad is None else ():
            averaged = name == metric or task.aggregation().get(name) is mean
            whole = name == metric and not isinstance(value, SupportsFloat)  # `check_score` says what that is
            if averaged and not whole and not (isinstance(value, SupportsFloat) and isfinite(float(value))):
                bad = f"{name}={shown(value)}, which is no number"
        if bad is not None:
            places = (number for number, each in enumerate(task.eval_docs) if each == doc)
            raise UserError(
                f"task {task.task_name}: document {next(places, '?')} can't be scored: process_results gives {bad}"
            )
        return scores

    task.process_results = checked


def check_score(task: str, metric: str, scores: Mapping[str, Any]) -> float:
    """The item's score.

    Raises:
        UserError: where the metric gives none for a single item, as those of whole corpora do (BLEU,
            perplexity).
    """
    value = scores.get(metric)
    if not isinstance(value, SupportsFloat):
        raise UserError(
            f"task {task!r}: its headline metric {metric!r} gives no number for each item, and arms are "
            "compared item by item; name a task whose first metric does (acc, exact_match)"
        )
    return float(value)


def explain_loading(first: str, config: Mapping[str, Any], error: BaseException) -> None:
    """Find out what of a task's data lm-eval failed at when it loaded the task, which its own words do not say.

    `first` names the first document.

    Raises:
        Unsound: naming the document or the split. Returns where neither explains it.
    """
    task: Any = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get("self"), ConfigurableTask):
            task = frame.f_locals["self"]
    data = getattr(task, "dataset", None)
    if data is None:
        return
    if isinstance(error, KeyError) and error.args and error.args[0] not in data:
        for key in SPLITS:
            if config.get(key) == error.args[0]:
                raise Unsound(
                    f"{key}: its data has no split {error.args[0]!r}, only {', '.join(map(repr, data))}"
                )
    docs: Any = getattr(task, "task_docs", None)
    if docs is None:
        return
    if len(docs) == 0:
        raise Unsound(
            f"its split {config.get('test_split') or config.get('validation_split')!r} holds no documents"
        )
    if hasattr(task, "multiple_target"):
        with refused(first):
            check_document(task, docs[0])
            for number, choice in enumerate(
                task.doc_to_choice(docs[0]) if task.config.doc_to_choice else [], 1
            ):
                if not choice:
                    raise Unsound(f"choice {number} is empty: lm-eval scores no empty continuation")
