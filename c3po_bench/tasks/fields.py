"""What a document asks, offers and answers, read through the task's stock templates."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval import utils as lm_eval_utils

from c3po_bench.errors import UserError

# Stock tasks, by name and data set, whose prompt is not the question: an index (WinoGrande), a long support text or
# fixed examples before it. A task of the user's own may have the name, but not the data set.
QUESTION_FIELDS = {
    ("winogrande", "allenai/winogrande"): "sentence",
    ("sciq", "allenai/sciq"): "question",
    ("truthfulqa_mc1", "truthfulqa/truthful_qa"): "question",
    ("truthfulqa_mc2", "truthfulqa/truthful_qa"): "question",
}
OPTION_FIELDS = {("winogrande", "allenai/winogrande"): ("option1", "option2")}
MMLU = ("cais/mmlu", "hails/mmlu_no_train")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_CUE_BEFORE = re.compile(r"^(Question|Q):\s*")
_CUE_AFTER = re.compile(r"\s*\b(Answer|A):\s*$")


class Unsound(ValueError):
    """What is wrong with a document, or with a part of a task's file; `refused` says of which."""


def without_cues(prompt: str) -> str:
    """A prompt without "Question:" before it and "Answer:" after it."""
    return _CUE_BEFORE.sub("", _CUE_AFTER.sub("", prompt.strip())).strip()


def render(template: Any, doc: Mapping[str, Any]) -> Any:
    """A task config's template applied to a document: a field's name, a function, a constant, Jinja."""
    if callable(template):
        return template(doc)
    if not isinstance(template, str):
        return template
    if template in doc:
        return doc[template]
    return lm_eval_utils.apply_template(template, dict(doc))


def missing_fields(doc: Mapping[str, Any]) -> list[str]:
    """Names of a document's fields that have no value: null in JSON, empty in CSV, or NaN."""
    return [name for name, value in doc.items() if is_missing(value)]


def is_missing(value: Any) -> bool:
    """Whether a value is null or NaN."""
    return value is None or (isinstance(value, float) and value != value)


def shown(value: Any) -> str:
    """A value in a message: cut where it is long."""
    text = "nothing (null)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_mmlu(task: str, config: Mapping[str, Any]) -> bool:
    """Whether a task is one of the stock MMLU's subjects, and not one that is only called so."""
    return task.startswith("mmlu_") and config.get("dataset_path") in MMLU


def _texts(doc: Mapping[str, Any]) -> Any:
    choices = doc.get("choices")
    return choices.get("text") if isinstance(choices, Mapping) else choices


@dataclass(frozen=True)
class Fields:
    """The stock templates of one multiple-choice task."""

    task: str
    text: Any
    choice: Any
    target: Any
    data: str | None = None

    @classmethod
    def of(cls, task: str, config: Any) -> Fields:
        """From a config that no rule has changed yet: a dict, or lm-eval's `TaskConfig`."""
        get = config.get if type(config) is dict else lambda key: getattr(config, key, None)
        return cls(task, get("doc_to_text"), get("doc_to_choice"), get("doc_to_target"), get("dataset_path"))

    @property
    def question_field(self) -> str | None:
        """The field of a stock task that is its question, where its prompt is something else."""
        return QUESTION_FIELDS.get((self.task, str(self.data)))

    @property
    def lettered(self) -> bool:
        """Whether the stock continuations are the letters A, B, ... of options that the prompt shows."""
        return isinstance(self.choice, list) and [str(c).strip() for c in self.choice] == list(
            LETTERS[: len(self.choice)]
        )

    def body(self, doc: Mapping[str, Any]) -> str:
        """The stock prompt without its final "Answer:"; for a lettered task without the options too."""
        if self.lettered:
            start = "Question: " if str(render(self.text, doc)).startswith("Question:") else ""
            return start + self.question(doc)
        text = render(self.text, doc)
        if self.question_field and not isinstance(text, str):
            return self.question(doc)
        return _CUE_AFTER.sub("", str(text))

    def question(self, doc: Mapping[str, Any]) -> str:
        """The question alone, as an embedder should see it; never holds the label."""
        if self.question_field:
            return str(doc[self.question_field]).strip()
        if self.lettered and isinstance(doc.get("question"), str):
            return doc["question"].strip()
        text = render(self.text, doc)
        if isinstance(text, int) or str(text).isdigit():  # one prompt for each choice: the text they share
            return str(render(self.target, doc)).strip()
        return without_cues(str(text))

    def choices(self, doc: Mapping[str, Any]) -> list[str]:
        """The stock choices, as lm-eval scores them."""
        choices = render(self.choice, doc)
        if isinstance(choices, Mapping):
            return list(choices.values())
        return list(ast.literal_eval(choices) if isinstance(choices, str) else choices)

    def options(self, doc: Mapping[str, Any]) -> list[str]:
        """The texts of the choices, without letters or surrounding blanks."""
        if fields := OPTION_FIELDS.get((self.task, str(self.data))):
            return [str(doc[field]) for field in fields]
        if not self.lettered:
            return [str(choice).strip() for choice in self.choices(doc)]
        if not self.keeps_options(doc):
            raise UserError(f"task {self.task!r}: no field `choices` to take the options' texts from")
        return [str(option) for option in _texts(doc)]

    def keeps_options(self, doc: Mapping[str, Any]) -> bool:
        """Whether a lettered task's document has the options' texts where `options` looks for them."""
        return isinstance(_texts(doc), list)

    def several_inputs(self, doc: Mapping[str, Any]) -> bool:
        """Whether the choices stand in the prompt and one continuation is scored after each (WinoGrande)."""
        text = render(self.text, doc)
        return isinstance(text, int) or (isinstance(text, str) and text.isdigit())

    def gold(self, doc: Mapping[str, Any]) -> Any:
        """What the task's file gives as right: a place, a choice's text, or a list of places."""
        template = self.text if self.several_inputs(doc) else self.target
        gold = render(template, doc)
        field = isinstance(template, str) and template in doc
        listed = isinstance(gold, str) and not field and gold.startswith("[") and gold.endswith("]")
        return ast.literal_eval(gold) if listed else gold

    def golds(self, doc: Mapping[str, Any]) -> list[int]:
        """Indices of the right choices in stock order; all but a few tasks have one."""
        template = self.text if self.several_inputs(doc) else self.target
        gold, field = self.gold(doc), isinstance(template, str) and template in doc
        several = gold if isinstance(gold, list) else [gold]
        choices = self.choices(doc)
        # as in lm-eval: digits that a template gives are a place, a field's text is a choice even if it is a number
        return [
            choices.index(g) if isinstance(g, str) and (field or not g.strip().isdigit()) else int(g)
            for g in several
        ]
