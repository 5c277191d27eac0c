"""`python -m c3po_bench.power --discordance D [--items N] [--gain G]`: what so many items can show."""

import argparse
import json
import math
import sys

from c3po_bench.analysis import power
from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.frames import known, records
from c3po_bench.analysis.verdict import summary_rows
from c3po_bench.errors import UserError, exit_status
from c3po_bench.store.reader import load_runs


def main(argv: list[str] | None = None) -> int:
    """Print power, the items that a gain needs, and the gain that items find; 2 for impossible numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.power",
        description="How many items a gain of accuracy needs, and what a number of items can show, by the "
        "exact power of the test in use (McNemar's mid-p at 5%%, one comparison, independent items).",
    )
    parser.add_argument("--discordance", type=float, help="share of items whose correctness changes, 0 to 1")
    parser.add_argument("--store", help="measure the discordance in this store's comparisons with base")
    parser.add_argument("--items", type=int, default=400, help="that both arms answer (default: 400)")
    parser.add_argument(
        "--gain", type=float, default=0.05, help="true difference of accuracies (default: 0.05)"
    )
    parser.add_argument("--power", type=float, default=power.POWER, help="wanted (default: 0.8)")
    parser.add_argument("--json", action="store_true", help="the last line is one object")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: _show(arguments))


def _show(arguments: argparse.Namespace) -> None:
    write = sys.stdout.write
    discordance, changes = arguments.discordance, measured(arguments.store) if arguments.store else {}
    for label, (changed, items) in changes.items():
        write(f"{label}: {changed:,} of {items:,} items change ({changed / items:.1%})\n")
    if discordance is None and not changes:
        raise UserError("give --discordance, or --store DIR to measure it")
    if discordance is None:
        discordance = sum(c for c, _ in changes.values()) / sum(n for _, n in changes.values())
    gain, items, wanted = arguments.gain, arguments.items, arguments.power
    if not 0 < discordance <= 1:
        raise UserError(f"discordance {discordance:g}: a share of items above 0, at most 1, is expected")
    if not 0 < gain <= discordance:
        raise UserError(f"--gain={gain:g}: must be above 0 and at most the discordance, {discordance:g}")
    if items < 1 or not 0.05 < wanted < 1:
        raise UserError(
            f"--items={items}, --power={wanted:g}: at least 1 item, and a power between 0.05 and 1"
        )
    found = {
        "discordance": discordance,
        "items": items,
        "gain": gain,
        "power": power.power_of(items, gain, discordance),
        "items_needed": power.items_needed(gain, discordance, wanted),
        "detectable_gain": power.detectable_gain(items, discordance, wanted),
    }
    least = found["detectable_gain"]
    shown = "no gain" if math.isnan(least) else f"gains from {least * 100:.1f} points on"
    write(
        f"Where {discordance:.1%} of items change, {items:,} items find a gain of {gain * 100:g} points with "
        f"a power of {found['power']:.2f}, and with {wanted:g} {shown}; {gain * 100:g} points need "
        f"{found['items_needed']:,} items for {wanted:g}.\nExact power of McNemar's mid-p test at 5%, for "
        "one comparison of independent items: correction for several tests and items that share a source need more.\n"
    )
    if arguments.json:
        write(json.dumps(found | {"detectable_gain": None if math.isnan(least) else least}) + "\n")


def measured(store: str) -> dict[str, tuple[int, int]]:
    """By label of a run other than base: how many of its items change, and how many there are.

    Raises UserError where the store compares nothing.
    """
    rows = summary_rows(records(compare(load_runs(store), refused={})))
    changes = {
        row["label"]: (int(row["fixed"] + row["broken"]), int(row["n"]))
        for row in rows
        if known(row["fixed"])
    }
    if not changes:
        raise UserError(f"{store}: nothing stands beside base, so no share of changed items can be measured")
    return changes


if __name__ == "__main__":
    sys.exit(main())
