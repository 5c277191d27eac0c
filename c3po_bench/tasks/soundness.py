"""What of a task is refused before anything is scored, and how that is said: in one line, with file, row and field.

lm-evaluation-harness reads a task's first document when it loads it, and finds out about the others when all
are scored. Here every document that will be asked is looked at first.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import fields
from typing import Any, SupportsFloat

from lm_eval import filters as lm_eval_filters
from lm_eval import utils as lm_eval_utils
from lm_eval.api import metrics, registry
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig

from c3po_bench.errors import UserError, cause, nearest, of_the_disk, unknown
from c3po_bench.tasks.fields import Unsound, is_missing, missing_fields

del metrics, lm_eval_filters  # imported to be registered
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
LENGTHS = {"max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
DECODING = {"until", "do_sample", *LENGTHS}
HARMLESS = {
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "num_beams": 1,
    "repetition_penalty": 1,
}
"""Settings that change nothing about the likeliest answer: None where any value does, else the one that does."""
_UNSET = "\ue000"  # stands for a field without a value, to see whether it is printed


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


def check_config(task: str, config: Mapping[str, Any], ours: bool = False) -> None:
    """`UserError` for what a task's file lacks or has too much, and for names in it that lm-eval does not know.

    How answers are drawn is not looked at where the task is `ours`: its backend writes them itself.
    """
    known = [field.name for field in fields(TaskConfig)]
    for key in config:
        if key not in known and "class" not in config:
            raise unknown(f"key of task {task}", str(key), known)
    kind = config.get("output_type") or "generate_until"
    if kind == "loglikelihood_rolling":
        raise UserError(
            f"task {task} measures the perplexity of whole texts, which has no answer to compare: leave it out"
        )
    if kind not in ("multiple_choice", "loglikelihood", "generate_until"):
        raise unknown(
            f"output_type of task {task}", str(kind), ("multiple_choice", "loglikelihood", "generate_until")
        )
    if "class" not in config and not config.get("test_split") and not config.get("validation_split"):
        raise UserError(
            f"task {task}: it names neither test_split nor validation_split, so nothing is evaluated"
        )
    needed = ("doc_to_text", "doc_to_choice", "doc_to_target") if kind == "multiple_choice" else ()
    for key in needed if not config.get("use_prompt") else ():
        if config.get(key) is None:
            raise UserError(f"task {task}: a multiple-choice task needs {key}, which its file lacks")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(f"task {task} asks about images or sounds, and arms here read text: leave it out")
    if config.get("unsafe_code"):
        raise UserError(f"task {task} runs code that the model writes, which is not done here: leave it out")
    for key in ("target_delimiter", "fewshot_delimiter"):
        if key in config and not isinstance(config[key], str):  # null would be asked as the word None
            raise UserError(f'task {task}: {key} is {_shown(config[key])}, not text: write "" for none')
    _check_choices(task, config.get("doc_to_choice"))
    _check_metrics(task, config)
    if kind == "generate_until" and not ours:
        _check_decoding(task, config)


def _check_choices(task: str, choices: Any) -> None:
    """YAML reads yes, no, on and off as true and false."""
    listed = list(choices.values()) if isinstance(choices, dict) else choices
    for choice in listed if isinstance(listed, list) else []:
        if not isinstance(choice, str):
            hint = "; YAML reads yes and no as true and false" if isinstance(choice, bool) else ""
            raise UserError(
                f"task {task}: doc_to_choice holds {_shown(choice)}, which is not text: write choices in quotes{hint}"
            )


def _check_metrics(task: str, config: Mapping[str, Any]) -> None:
    """A metric that lm-eval would look for on the hub without a word, and an aggregation that it has not."""
    listed = config.get("metric_list")
    if listed is not None and not (
        isinstance(listed, list) and listed and all(isinstance(m, dict) for m in listed)
    ):
        raise UserError(
            f"task {task}: metric_list wants a list like [{{metric: acc}}], and is {_shown(listed)}"
        )
    for metric in listed or []:
        name, aggregation = metric.get("metric"), metric.get("aggregation")
        if name is None:
            raise UserError(f"task {task}: an entry of metric_list names no metric: {_shown(metric)}")
        if isinstance(aggregation, str) and aggregation not in registry.AGGREGATION_REGISTRY:
            raise unknown(f"aggregation of task {task}", aggregation, list(registry.AGGREGATION_REGISTRY))
        plain = isinstance(name, str) and not metric.get("hf_evaluate") and not config.get("process_results")
        if plain and name not in registry.metric_registry:
            raise unknown(f"metric of task {task}", str(name), list(registry.metric_registry))
    for filters in config.get("filter_list") or []:
        for step in filters.get("filter") or []:
            name = step.get("function")
            if isinstance(name, str) and name not in registry.filter_registry:
                raise unknown(f"filter of task {task}", name, list(registry.filter_registry))


def _check_decoding(task: str, config: Mapping[str, Any]) -> None:
    """Settings that one arm would obey and another not: here every arm writes the likeliest answer, token by token."""
    settings = config.get("generation_kwargs") or {}
    if not isinstance(settings, dict):
        raise UserError(f"task {task}: generation_kwargs wants settings by name, and is {_shown(settings)}")
    until = settings.get("until", [])
    if not all(isinstance(stop, str) for stop in (until if isinstance(until, list) else [until])):
        raise UserError(
            f"task {task}: generation_kwargs.until wants texts that end an answer, and has {_shown(until)}"
        )
    for key in LENGTHS & settings.keys():
        if not isinstance(settings[key], int) or isinstance(settings[key], bool):
            raise UserError(
                f"task {task}: generation_kwargs.{key} wants a number of tokens, and is {_shown(settings[key])}"
            )
    sampled = settings.get("do_sample", (settings.get("temperature") or 0) > 0)
    if sampled:
        raise UserError(
            f"task {task} samples its answers, and arms here write the likeliest: give it do_sample=false"
        )
    for key, value in settings.items():
        if key in DECODING or key in HARMLESS and HARMLESS[key] in (None, value):
            continue
        if key in HARMLESS or (close := nearest(key, [*DECODING, *HARMLESS], 1)) == []:
            raise UserError(
                f"task {task}: generation_kwargs.{key}={_shown(value)} is not obeyed by every arm, which write the likeliest "
                "answer token by token: leave it out"
            )
        raise UserError(f"task {task}: unknown generation_kwargs.{key}: did you mean {close[0]!r}?")


def read(task: Any, key: str, doc: Mapping[str, Any]) -> Any:
    """What `doc_to_text`, `doc_to_choice` or `doc_to_target` of a task gives for a document.

    Raises:
        Unsound: if it fails, or writes a missing field as the word None.
    """
    missing = missing_fields(doc)
    empty = f" (null: {', '.join(missing)})" if missing else ""
    try:
        value = getattr(task, key)(doc)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError | SyntaxError) and "literal_eval" in _functions_of(error):
            kind = "a list" if key == "doc_to_choice" else "a number or list"
            written = lm_eval_utils.apply_template(getattr(task.config, key), dict(doc))
            raise Unsound(f"{key} writes {_shown(written)}, which can't be read as {kind}") from error
        names = f"; its fields are {', '.join(doc)}" if type(error).__name__ == "UndefinedError" else ""
        text = str(error) if isinstance(error, Unsound) else cause(error)
        raise Unsound(f"{key}: {text}{empty or names}") from error
    template = getattr(task.config, key)
    if missing and callable(template) and ("None" in str(value) or "nan" in str(value)):
        try:
            other = template({**doc, **dict.fromkeys(missing, _UNSET)})
        except Exception:  # it does look at what is missing
            return value
        if _UNSET in str(other):
            raise Unsound(f"{key} writes a field that has no value{empty}")
    asked_as_word = template == value and isinstance(value, str) and value.isidentifier() and value not in doc
    if asked_as_word and (close := nearest(value, doc, 1)):
        raise Unsound(f"{key}: {value!r} is none of its fields: did you mean {close[0]!r}?")
    return value


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
        raise Unsound(f"doc_to_text gives {_shown(text)}, not text")
    target = read(task, "doc_to_target", doc)
    if task.OUTPUT_TYPE == "loglikelihood" and not isinstance(target, str):
        raise Unsound(
            f"doc_to_target gives {_shown(target)}, not text: write {{{{field}}}} to make text of it"
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
                f"doc_to_target gives {_shown(target)}, and a list for the first document: give lists for all"
            )
        if not task.multiple_target and isinstance(target, list) and not _literal(task, doc):
            raise Unsound(
                f"doc_to_target gives the list {_shown(target)}, and one answer for the first document"
            )


def _literal(task: Any, doc: Mapping[str, Any]) -> bool:
    """Whether a target is a list only because lm-eval reads its text as one, as it does with "[2, 5]"."""
    template = task.config.doc_to_target
    return isinstance(template, str) and template not in doc


def _check_choice_document(task: Any, doc: Mapping[str, Any], text: Any) -> None:
    choices = read(task, "doc_to_choice", doc)
    if not isinstance(choices, list) or not choices:
        raise Unsound(f"doc_to_choice gives {_shown(choices)}, not a list of choices")
    for number, choice in enumerate(choices, 1):
        if not isinstance(choice, str):
            raise Unsound(
                f"choice {number} of {len(choices)} is {_shown(choice)}, which is not text: write it in quotes"
            )
    target, count = read(task, "doc_to_target", doc), len(choices)
    if task.multiple_input:
        if not _place(text, count) or not isinstance(target, str):
            raise Unsound(
                f"doc_to_text gives {_shown(text)}, which lm-eval takes for the place of a choice, as of the first document: "
                "put words around it"
            )
        return
    if isinstance(text, int):
        raise Unsound(
            f"doc_to_text gives the number {text} alone, which lm-eval takes for the place of a choice: put words around it"
        )
    if not isinstance(text, str):
        raise Unsound(f"doc_to_text gives {_shown(text)}, not text")
    if isinstance(target, list) != bool(task.multiple_target):
        first = "a list" if task.multiple_target else "a single answer"
        raise Unsound(
            f"doc_to_target gives {_shown(target)}, and {first} for the first document: give lists for all"
        )
    gives = f"doc_to_target ({_shown(task.config.doc_to_target)})" if _is_text(task) else "doc_to_target"
    for right in target if isinstance(target, list) else [target]:
        what = f"{gives} gives {_shown(right)}, which is none of its {count} choices"
        if isinstance(right, str) and not isinstance(target, list):
            if right not in choices:
                raise Unsound(f"{what}{_spelling(right, choices)}")
        elif isinstance(right, str):
            raise Unsound(
                f"{gives} gives a list of texts, {_shown(target)}: lm-eval wants their places, such as [0, 2]"
            )
        elif not _place(right, count):
            raise Unsound(f"{what}: it wants a place (an integer, from 0) or a choice's text")
    if target == []:
        raise Unsound(f"{gives} gives an empty list: no choice is right")


def _is_text(task: Any) -> bool:
    return isinstance(task.config.doc_to_target, str)


def _place(value: Any, count: int) -> bool:
    return isinstance(value, int) and 0 <= value < count


def _spelling(right: str, choices: Sequence[str]) -> str:
    alike = [choice for choice in choices if choice.strip().casefold() == right.strip().casefold()]
    return f": it is spelt {alike[0]!r} there" if alike else ""


def _shown(value: Any) -> str:
    text = "nothing (null)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
        except (Exception, SystemExit) as error:
            raise Unsound(f"it can't be scored ({cause(error)})") from error
        check_score(task.task_name, metric, scores)


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
