"""What of a task's file is refused before its data is read: lm-eval would fail at it later, or not at all."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lm_eval import filters as lm_eval_filters
from lm_eval.api import metrics, registry
from lm_eval.config.task import FewshotConfig, TaskConfig

from c3po_bench.errors import UserError, nearest, unknown
from c3po_bench.tasks.fields import shown

del lm_eval_filters  # imported to be registered
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
"""Settings that leave the likeliest answer as it is: None where any value does, else the one that does."""


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
    choice = ("doc_to_choice",) if kind == "multiple_choice" else ()
    for key in (
        () if config.get("use_prompt") or "class" in config else ("doc_to_text", *choice, "doc_to_target")
    ):
        if config.get(key) is None:
            raise UserError(
                f"task {task}: {f'a {kind} task'.replace('_', '-')} needs {key}, which its file lacks"
            )
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(f"task {task} asks about images or sounds, and arms here read text: leave it out")
    if config.get("unsafe_code"):
        raise UserError(f"task {task} runs code that the model writes, which is not done here: leave it out")
    for key in ("target_delimiter", "fewshot_delimiter"):
        if key in config and not isinstance(config[key], str):  # null would be asked as the word None
            raise UserError(f'task {task}: {key} is {shown(config[key])}, not text: write "" for none')
    _check_types(task, config)
    _check_choices(task, config.get("doc_to_choice"))
    _check_metrics(task, config)
    if kind == "generate_until" and not ours:
        _check_decoding(task, config)


def _check_types(task: str, config: Mapping[str, Any]) -> None:
    """Values of another type than lm-eval takes, which it fails at later without naming them."""
    for key in (*SPLITS, "description", "gen_prefix"):
        value = config.get(key)
        if value is not None and not isinstance(value, str) and (key in SPLITS or not callable(value)):
            raise UserError(f"task {task}: {key} is {shown(value)}, not text")
    text = config.get("doc_to_text")
    if isinstance(text, list | dict | float):
        raise UserError(f"task {task}: doc_to_text is {shown(text)}, not a template or the name of a field")
    repeats = config.get("repeats", 1)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise UserError(f"task {task}: repeats is {shown(repeats)}, and wants a number of at least 1")
    examples = config.get("fewshot_config")
    if examples is not None and not isinstance(examples, dict):
        raise UserError(f"task {task}: fewshot_config wants settings by name, and is {shown(examples)}")
    known = [field.name for field in fields(FewshotConfig)]
    for key in examples or {}:
        if key not in known:
            raise unknown(f"key of fewshot_config of task {task}", str(key), known)
    filters = config.get("filter_list")
    if filters is not None and not (filters and isinstance(filters, list) and all(map(_is_filter, filters))):
        raise UserError(
            f"task {task}: filter_list wants a list like [{{name: x, filter: [{{function: take_first}}]}}], "
            f"and is {shown(filters)}"
        )


def _is_filter(entry: Any) -> bool:
    steps = entry.get("filter") if isinstance(entry, dict) and isinstance(entry.get("name"), str) else None
    return (
        isinstance(steps, list)
        and bool(steps)
        and all(isinstance(step, dict) and "function" in step for step in steps)
    )


def _check_choices(task: str, choices: Any) -> None:
    """YAML reads yes, no, on and off as true and false."""
    listed = list(choices.values()) if isinstance(choices, dict) else choices
    for choice in listed if isinstance(listed, list) else []:
        if not isinstance(choice, str):
            hint = "; YAML reads yes and no as true and false" if isinstance(choice, bool) else ""
            raise UserError(
                f"task {task}: doc_to_choice holds {shown(choice)}, which is not text: write choices in quotes{hint}"
            )


def _check_metrics(task: str, config: Mapping[str, Any]) -> None:
    """A metric that lm-eval would look for on the hub without a word, and an aggregation that it has not."""
    listed = config.get("metric_list")
    if listed is not None and not (
        isinstance(listed, list) and listed and all(isinstance(m, dict) for m in listed)
    ):
        raise UserError(
            f"task {task}: metric_list wants a list like [{{metric: acc}}], and is {shown(listed)}"
        )
    for metric in listed or []:
        name, aggregation = metric.get("metric"), metric.get("aggregation")
        if name is None:
            raise UserError(f"task {task}: an entry of metric_list names no metric: {shown(metric)}")
        if isinstance(aggregation, str) and aggregation not in registry.AGGREGATION_REGISTRY:
            raise unknown(f"aggregation of task {task}", aggregation, list(registry.AGGREGATION_REGISTRY))
        plain = isinstance(name, str) and not metric.get("hf_evaluate") and not config.get("process_results")
        if plain and name not in registry.metric_registry:
            raise unknown(f"metric of task {task}", str(name), list(registry.metric_registry))
        if plain and name == "exact_match":
            options = list(inspect.signature(metrics.exact_match_hf_evaluate).parameters)[2:]
            for option in metric.keys() - {"metric", "aggregation", "higher_is_better", *options}:
                raise unknown(f"option of exact_match of task {task}", option, options)
    for filters in config.get("filter_list") or []:
        for step in filters.get("filter") or []:
            name = step.get("function")
            if isinstance(name, str) and name not in registry.filter_registry:
                raise unknown(f"filter of task {task}", name, list(registry.filter_registry))


def _check_decoding(task: str, config: Mapping[str, Any]) -> None:
    """Refuse what one arm would obey and another not: every arm writes the likeliest answer, token by token."""
    settings = config.get("generation_kwargs") or {}
    if not isinstance(settings, dict):
        raise UserError(f"task {task}: generation_kwargs wants settings by name, and is {shown(settings)}")
    until = settings.get("until", [])
    if not all(isinstance(stop, str) and stop for stop in (until if isinstance(until, list) else [until])):
        raise UserError(
            f"task {task}: generation_kwargs.until wants texts that end an answer, and has {shown(until)}"
        )
    for key in LENGTHS & settings.keys():
        if not isinstance(settings[key], int) or isinstance(settings[key], bool):
            raise UserError(
                f"task {task}: generation_kwargs.{key} wants a number of tokens, and is {shown(settings[key])}"
            )
    if not isinstance(settings.get("do_sample") or False, bool):
        raise UserError(
            f"task {task}: generation_kwargs.do_sample wants true or false, and is {shown(settings['do_sample'])}"
        )
    if not isinstance(settings.get("temperature") or 0, int | float):
        raise UserError(
            f"task {task}: generation_kwargs.temperature wants a number, and is {shown(settings['temperature'])}"
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
                f"task {task}: generation_kwargs.{key}={shown(value)} is not obeyed by every arm, which write the likeliest "
                "answer token by token: leave it out"
            )
        raise UserError(f"task {task}: unknown generation_kwargs.{key}: did you mean {close[0]!r}?")
