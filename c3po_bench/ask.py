"""`python -m c3po_bench.ask +experiment=NAME "QUESTION" "option" "option" ...`: one question, answered step by step.

Its neighbors, what they ask of the routing, the pathway before and after, and the options' probabilities
under both.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3po_bench.config import Config, check_ranges
from c3po_bench.contract import CHOICES, Answer, Item
from c3po_bench.errors import INTERRUPTED, UserError, unknown
from c3po_bench.explain import composed, status_of
from c3po_bench.runtime.console import quiet_libraries, set_up_logging
from c3po_bench.runtime.resources import sleep_where_shared
from c3po_bench.store.identity import content_hash

ASKED = "asked here"
"""The task of a question that no task has."""
MOST = 4  # experts of a layer that are named


def main(argv: Sequence[str] | None = None) -> int:
    """Answer one question by base and one arm, and show what happened.

    Returns 2 where the user can mend what is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.ask",
        description="What a rewiring arm does with one question: give the question and its options, or the item of a task as "
        "TASK:NUMBER. The model, references and method are those of the experiment; nothing is written down.",
    )
    parser.add_argument(
        "words", nargs="+", metavar="key=value | QUESTION option ...", help="settings come first"
    )
    parser.add_argument("--arm", default="ngd", help="beside base (default: ngd)")
    arguments = parser.parse_args(argv)
    quiet_libraries()
    try:
        settings, asked = divided(arguments.words)
        cfg = config_of(settings, arguments.arm)
        show(
            *answered(cfg, asked, arguments.arm),
            arguments.arm,
            Console(width=None if sys.stdout.isatty() else 100),
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return status_of(error)
    return 0


def divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings, which stand first and hold a `=`, and the question with its options."""
    first = next(
        (n for n, word in enumerate(words) if "=" not in word or " " in word.partition("=")[0]), len(words)
    )
    asked = list(words[first:])
    if len(asked) == 2 or not asked:
        raise UserError(
            'give a question and two options or more, or an item as TASK:NUMBER: "QUESTION" "option" "option"'
        )
    return list(words[:first]), asked


def config_of(settings: Sequence[str], arm: str) -> Config:
    """The experiment's config with `arm` as its only one.

    Raises:
        UserError: where the backend does not rewire.
    """
    config = composed(settings)
    if config.backend.name != "rewiring":
        raise UserError(
            f"backend={config.backend.name}: a single question is shown for backend=rewiring alone"
        )
    config = replace(config, arms=[arm], shard=None, analysis=replace(config.analysis, primary=None))
    check_ranges(config)
    return config


def answered(cfg: Config, asked: Sequence[str], arm: str) -> tuple[Item, list[str], dict[str, Answer]]:
    """The item, its options in words, and the answers of `base` and of `arm`."""
    set_up_logging(cfg.log_level)
    sleep_where_shared(cfg.threads)
    from c3po_bench.evaluate.run import (
        open_backend,
        set_up,
    )  # torch and lm-eval: a wrong word is answered at once

    set_up(cfg)
    backend: Any = open_backend(cfg)
    item = made(asked) if len(asked) > 1 else found(backend.tasks, asked[0], cfg)
    answers = {}
    for each in backend.arms():
        each.prepare()
        unlabelled = item if each.row.reads_labels else replace(item, gold=None)
        answers[each.row.name] = each.answer([unlabelled])[0]
        each.close()
    return item, [option.strip() for _, option in item.options], answers


def made(asked: Sequence[str]) -> Item:
    """An item of a question and its options, put as stock ARC puts them."""
    question, *options = asked
    requests = tuple((f"Question: {question}\nAnswer:", f" {option.strip()}") for option in options)
    key = content_hash([question, options], 24)
    return Item((ASKED, 0), CHOICES, key, question, requests=requests, n_choices=len(options))


def found(tasks: Any, name: str, cfg: Config) -> Item:
    """The item TASK:NUMBER of the experiment's tasks, with its label.

    Raises:
        UserError: for a task or number that is not there, or an answer that is written.
    """
    task, _, number = name.rpartition(":")
    items = {item.id: item for item in tasks.items(None, labelled=True) if item.id[0] == task}
    if not items:
        raise unknown("task of the item", task or name, list(tasks.load()))
    if not number.isdigit() or (task, int(number)) not in items:
        raise UserError(f"item {name}: task {task} has the numbers 0 to {max(n for _, n in items)}")
    item = items[task, int(number)]
    if item.kind != CHOICES:
        raise UserError(f"item {name}: its answer is written; only choices are shown")
    return item


def probabilities(item: Item, answer: Answer) -> list[float]:
    """Each option's probability among the options under the task's rule: a softmax of (normalized) log-likelihoods."""
    logs = [score for score, _ in answer.scores[: item.n_choices]]
    if item.lengths:
        logs = [log / length for log, length in zip(logs, item.lengths, strict=False)]
    most = max(logs)
    parts = [math.exp(log - most) for log in logs]
    return [part / sum(parts) for part in parts]


def show(item: Item, options: Sequence[str], answers: dict[str, Answer], arm: str, console: Console) -> None:
    """Print question, neighbors, pathways, options and what changed."""
    write = console.print
    write(Text(f"{item.question}\n", style="bold"))
    answer, base = answers[arm], answers["base"]
    details = answer.details
    if neighbors := details.get("neighbors"):
        table = Table(title="its neighbors among the references", title_justify="left")
        table.add_column("similarity", justify="right")
        table.add_column("question", overflow="fold")
        table.add_column("answer", overflow="fold")
        for each in neighbors:
            table.add_row(f"{each['similarity']:.2f}", Text(each["question"]), Text(str(each["answer"])))
        write(table)
    if losses := details.get("losses"):
        write(
            f"their loss over {len(losses)} steps: from {losses[0]:.3f} to {losses[-1]:.3f}", highlight=False
        )
    if "pathway_after" in details:
        write(pathway_table(details))
    before, after = probabilities(item, base), probabilities(item, answer)
    table = Table(title="the options", title_justify="left")
    table.add_column("option", overflow="fold")
    for name in ("base", arm):
        table.add_column(name, justify="right", no_wrap=True)
    for number, option in enumerate(options):
        right = " (right)" if number == item.gold else ""
        table.add_row(Text(option + right), *(marked(shares, number) for shares in (before, after)))
    write(table)
    write(Text(conclusion(item, options, before, after, arm)))


def marked(shares: Sequence[float], number: int) -> Text:
    """A share in percent, bold where it is the largest."""
    return Text(f"{100 * shares[number]:.1f}%", style="bold" if shares[number] == max(shares) else "")


def pathway_table(details: dict[str, Any]) -> Table:
    """By layer: how much of the routing moved, and which experts weigh most before and after."""
    table = Table(
        title="the pathway",
        title_justify="left",
        caption="moved: half of the summed change of expert weights",
    )
    table.add_column("layer", justify="right")
    table.add_column("moved", justify="right")
    for name in ("experts before", "after"):
        table.add_column(name)
    rows = zip(details["pathway_layers"], details["pathway_before"], details["pathway_after"], strict=True)
    for layer, before, after in rows:
        moved = sum(abs(a - b) for a, b in zip(before, after, strict=True)) / 2
        table.add_row(str(layer), f"{moved:.3f}", *(heaviest(weights) for weights in (before, after)))
    return table


def heaviest(weights: Sequence[float]) -> str:
    """The experts of the largest weights, with these."""
    order = sorted(range(len(weights)), key=lambda expert: -weights[expert])[:MOST]
    return ", ".join(f"{expert} ({weights[expert]:.2f})" for expert in order)


def conclusion(
    item: Item, options: Sequence[str], before: Sequence[float], after: Sequence[float], arm: str
) -> str:
    """One sentence: whether the answer changed, and whether for the better where the right one is known."""
    first, second = before.index(max(before)), after.index(max(after))
    if first == second:
        text = f"{arm} answers as base does: {options[second]!r}"
    else:
        text = f"{arm} changes the answer from {options[first]!r} to {options[second]!r}"
    if item.gold is None:
        return text + "."
    verdict = {
        (True, True): "both right",
        (False, True): "fixed",
        (True, False): "broken",
        (False, False): "both wrong",
    }
    return f"{text} ({verdict[first == item.gold, second == item.gold]})."


if __name__ == "__main__":
    sys.exit(main())
