"""Scoring rules: how a multiple-choice question is put to the model, the same for every arm.

cloze               the stock prompt and the stock continuations
letters             the options are listed in the prompt; the continuations are " A", " B", ...
length_normalized   as cloze, but each log-likelihood is divided by the length of the choice's text
                    (lm-eval's `acc_norm`; 0.4.13 counts characters)

A rule is a set of config overrides, so `lm_eval.simple_evaluate` does the scoring. The stock prompts of MMLU
and CommonsenseQA are lettered already: there `cloze` (stock) and `letters` are the same.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from c3po_bench import errors
from c3po_bench.tasks.duplicates import normalize
from c3po_bench.tasks.fields import LETTERS, Fields, Unsound, render

RULES = ("cloze", "letters", "length_normalized")


@dataclass(frozen=True)
class Layout:
    """The prompt, choices and target of a document under a rule; its methods are the task's `doc_to_*`.

    Where the right choice always stands in one place (SciQ), letters would give it away: shuffled too.
    """

    fields: Fields
    rule: str
    permute: bool
    seed: int

    def order(self, doc: Mapping[str, Any]) -> list[int]:
        """Stock indices of the options in the order shown; drawn from seed and question, never the label."""
        order = list(range(len(self.fields.choices(doc))))
        shuffled = self.rule == "letters" and isinstance(self.fields.target, int)
        if self.permute or shuffled:
            question = normalize(self.fields.question(doc))  # nothing, where the options are all there is
            key = f"{self.seed}:{self.fields.task}:{question or sorted(self.fields.choices(doc))}"
            if self.permute and shuffled:  # another order than the one shown without `permute`
                key += ":permuted"
            random.Random(key).shuffle(order)
        return order

    @property
    def lettered(self) -> bool:
        """Whether this layout lists the options in the prompt."""
        return self.rule == "letters" or self.fields.lettered

    def options(self, doc: Mapping[str, Any]) -> list[str]:
        """Texts of the options in the order shown."""
        options = self.fields.options(doc)
        return [options[i] for i in self.order(doc)]

    def shown(self, doc: Mapping[str, Any]) -> list[str]:
        """The same for a reader.

        The stock letters where a document keeps its options elsewhere than in `choices`.
        """
        if self.fields.lettered and not self.permute and not self.fields.keeps_options(doc):
            return self.fields.choices(doc)
        return self.options(doc)

    def text(self, doc: Mapping[str, Any]) -> str | int:
        """`doc_to_text`: the prompt.

        For a task with one prompt for each choice, the index of the right one.
        """
        if self.fields.lettered and self.permute:
            return self._exchanged(doc)
        if self.lettered:
            return "\n".join([self.fields.body(doc), _listed(self.options(doc)), "Answer:"])
        if self.fields.several_inputs(doc):
            return self.golds(doc)[0]
        return render(self.fields.text, doc)

    def _exchanged(self, doc: Mapping[str, Any]) -> str:
        """The stock prompt with its list of options in the order shown, and nothing else changed."""
        stock, listed = str(render(self.fields.text, doc)), _listed(self.fields.options(doc))
        if stock.count(listed) != 1:
            raise errors.UserError(
                f"task {self.fields.task!r}: its prompt does not list the options as 'A. ...' lines, so they can't be permuted"
            )
        return stock.replace(listed, _listed(self.options(doc)))

    def choices(self, doc: Mapping[str, Any]) -> list[str]:
        """`doc_to_choice`."""
        stock = self.fields.choices(doc)
        if self.fields.lettered:  # as they are spelt there, spaces and all
            return stock
        order = self.order(doc)
        return list(_letters(len(order))) if self.lettered else [stock[i] for i in order]

    def golds(self, doc: Mapping[str, Any]) -> list[int]:
        """Places of the right choices in the order shown."""
        order = self.order(doc)
        return [order.index(gold) for gold in self.fields.golds(doc)]

    def target(self, doc: Mapping[str, Any]) -> int | str | list[int]:
        """`doc_to_target`: where the right choice stands.

        For a task with several prompts, the continuation.
        """
        if not self.lettered and self.fields.several_inputs(doc):
            return str(render(self.fields.target, doc))
        golds, stock = self.golds(doc), self.fields.gold(doc)
        return golds if isinstance(stock, list) else golds[0]

    def scored(self, process: Callable[..., Any], doc: Mapping[str, Any], results: Sequence[Any]) -> Any:
        """`process_results` of a task that has its own.

        It reads the labels, and so the results, in stock order.
        """
        order = self.order(doc)
        return process(doc, [results[order.index(i)] for i in range(len(order))])


def _letters(count: int) -> str:
    if count > len(LETTERS):
        raise Unsound(f"scoring.rule=letters: there are {len(LETTERS)} letters, and it has {count} choices")
    return LETTERS[:count]


def _listed(options: Sequence[str]) -> str:
    pairs = zip(_letters(len(options)), options, strict=True)
    return "\n".join(f"{letter}. {option}" for letter, option in pairs)


def check(rule: str, num_fewshot: int) -> None:
    """`UserError` unless the rule exists and the number of examples is not negative."""
    if rule not in RULES:
        raise errors.unknown("scoring.rule", rule, RULES)
    if num_fewshot < 0:
        raise errors.UserError(f"scoring.num_fewshot={num_fewshot}: must be 0 or more")


def overrides(
    task: str, config: dict[str, Any], *, rule: str, num_fewshot: int, permute: bool, seed: int
) -> dict[str, Any]:
    """What to change in a stock config so that lm-eval renders and scores `task` under `rule`.

    Tasks that are not multiple-choice only get their few-shot settings.
    """
    changed: dict[str, Any] = {"num_fewshot": num_fewshot}
    fewshot = config.get("fewshot_config")
    fewshot = dict(fewshot) if isinstance(fewshot, dict) else {}
    if num_fewshot and (sampler := fewshot.get("sampler", "default")) in ("default", "first_n"):
        from c3po_bench.tasks.fewshot import fixed_shots

        fewshot["sampler"] = fixed_shots(seed if sampler == "default" else None)
    if config.get("output_type") == "multiple_choice":
        fields = Fields.of(task, config)
        if permute or (rule == "letters" and not fields.lettered):
            layout = Layout(fields, rule, permute, seed)
            changed |= {
                "doc_to_text": layout.text,
                "doc_to_choice": layout.choices,
                "doc_to_target": layout.target,
            }
            fewshot = {k: v for k, v in fewshot.items() if not k.startswith("doc_to_")}
            if callable(own := config.get("process_results")):
                changed["process_results"] = partial(layout.scored, own)
        if rule == "letters" and not fields.lettered:
            changed["target_delimiter"] = " "
        if rule != "cloze" and not config.get("process_results"):  # a task's own function gives what it gives
            names = ["acc"] if rule == "letters" else ["acc", "acc_norm"]
            changed["metric_list"] = [_metric(name) for name in names]
    if fewshot:
        changed["fewshot_config"] = fewshot
    return changed


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def layout_of(task: Any) -> Layout:
    """The layout behind an lm-eval task: the one that a rule put there, or the stock one."""
    owner = getattr(task.config.doc_to_choice, "__self__", None)
    if isinstance(owner, Layout):
        return owner
    return Layout(Fields.of(task.task_name, task.config), "cloze", False, 0)


def headline(task: Any, rule: str) -> str:
    """The metric that counts for `task` under `rule`, by lm-eval's name (without the filter)."""
    metrics = [metric["metric"] for metric in task.config.metric_list or [{"metric": "acc"}]]
    names = [metric if isinstance(metric, str) else metric.__name__ for metric in metrics]
    if rule == "length_normalized" and "acc_norm" in names and not task.multiple_input:
        return "acc_norm"
    return "acc" if "acc" in names else names[0]
