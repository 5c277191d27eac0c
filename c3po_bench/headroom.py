"""`python -m c3po_bench.headroom +experiment=NAME [key=value ...] [--json]`.

What re-routing could give at most, before any method is tried. The arms of the experiment are not run; its
model, tasks, items and optimizer are used. Interrupt at any time and run the same command again: it goes on.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from c3po_bench.analysis.headroom import DIFFERENCES, sentences
from c3po_bench.config import Config, check_ranges
from c3po_bench.errors import INTERRUPTED, UserError
from c3po_bench.explain import composed as compose_config
from c3po_bench.explain import status_of
from c3po_bench.runtime import signals
from c3po_bench.runtime.console import quiet_libraries, set_up_logging
from c3po_bench.runtime.resources import sleep_where_shared

SHOWN = {
    "base": "base",
    "h_true": "H true: the oracle's descent",
    "h_wrong": "H wrong: the same towards wrong options",
    "delta_h": "H true - H wrong",
    "h_true_when_wrong": "H true where base is wrong",
    "h_wrong_when_wrong": "H wrong there, towards options that base does not give",
    "delta_h_when_wrong": "their difference",
    "h_wrong_when_right": "H wrong where base is right",
    "p_true": "P true: best of the routes, picked by the true label",
    "p_wrong": "P wrong: picked by one wrong label",
    "p_any": "P any: by any wrong label",
    "s": "S: routing freedom favors the truth",
    "s_over_base": "S - base",
    "route_average": "average of the routes",
    "route_average_over_base": "average of the routes - base",
    "routes_right": "share of the routes that are right",
    "auc": "AUC of the true option's margin over routes",
    "known_ceiling": "known ceiling",
    "known_ceiling_over_base": "known ceiling - base",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show, and keep the record in the store; 2 where the user can mend what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.headroom",
        description="What re-routing could give at most: how often descent reaches the true option and wrong "
        "ones, and what the best of many routes of equal compute would have right.",
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="as for python -m c3po_bench")
    parser.add_argument("--routes", type=int, default=64, help="drawn for each item (default: 64)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the noise on router logits (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="the last line is one object")
    arguments = parser.parse_args(argv)
    quiet_libraries()
    signals.listen()
    try:
        if arguments.routes < 1 or not 0 < arguments.temperature <= 100:
            raise UserError(
                f"--routes={arguments.routes} --temperature={arguments.temperature:g}: at least 1 route, and "
                "a temperature above 0 and at most 100"
            )
        cfg = composed(arguments.words)
        record = measured(cfg, arguments.routes, arguments.temperature)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: run the same command again to go on where it stopped\n")
        return INTERRUPTED
    except Exception as error:
        return status_of(error)
    show(record, Console(width=None if sys.stdout.isatty() else 160))
    if arguments.json:
        sys.stdout.write(json.dumps(record["summary"]) + "\n")
    return 0


def composed(words: Sequence[str]) -> Config:
    """The config of an experiment, composed as `python -m c3po_bench` composes it."""
    config = compose_config(words)
    check_ranges(replace(config, analysis=replace(config.analysis, primary=None)))
    if config.budget:
        raise UserError(
            f"budget={config.budget} is for experiments: give headroom a number of items, as limit=60"
        )
    if config.backend.name != "rewiring":
        raise UserError(
            f"backend={config.backend.name}: headroom is about routing; leave it at backend=rewiring"
        )
    return replace(config, arms=["base"], shard=None)


def measured(cfg: Config, routes: int, temperature: float) -> dict[str, Any]:
    """The record of an experiment's headroom, from the store or measured now.

    See `store.reader.read_headroom`.
    """
    set_up_logging(cfg.log_level)  # first: libraries' progress bars are held back as they are imported
    sleep_where_shared(cfg.threads)
    from c3po_bench.evaluate.headroom import measure  # torch and lm-eval: a wrong key is answered at once

    return measure(cfg, routes, temperature)


def show(record: Mapping[str, Any], console: Console) -> None:
    """The table, the sentences, and where the record lies."""
    found = record["summary"]
    caption = (
        f"95% over items; routes: {record['routes']['count']} for each item at temperature "
        f"{record['routes']['temperature']:g}, and the model's own"
    )
    if len(found["rules"]) > 1:
        caption += (
            f"; model rule: drawn experts keep the router's weights, {found['mass']:.2f} of the own route's in "
            "total; mass kept: scaled to it"
        )
    table = Table(caption=Text(caption), caption_justify="left")
    table.add_column(record["name"])
    others = list(found["rules"])[1:]
    first = ["%"] if not others else [f"%, {name}" for name in found["rules"]]
    for name in first:
        table.add_column(name, justify="right", no_wrap=True)
    for name, words in SHOWN.items():
        if found[name] is not None:
            cells = [_cell(name, found), *(_cell(name, found["rules"][rule]) for rule in others)]
            table.add_row(*map(Text, [words, *cells]))
    console.print(table)
    console.print(Text(" ".join(sentences(found))), soft_wrap=True)
    console.print(Text(f"record: {record['path']}"), soft_wrap=True)


def _cell(name: str, found: Mapping[str, Any]) -> str:
    if found.get(name) is None:
        return ""
    bounds, sign = found[f"{name}_interval"], "+" if name in DIFFERENCES else ""
    interval = f" [{bounds[0] * 100:.1f}, {bounds[1] * 100:.1f}]" if bounds else ""
    return f"{found[name] * 100:{sign}.1f}{interval}"


if __name__ == "__main__":
    sys.exit(main())
