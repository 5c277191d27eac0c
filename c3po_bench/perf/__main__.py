"""`python -m c3po_bench.perf NAME [--json] [--rounds N] [--data DIR] [--device NAME] [--quick]`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from c3po_bench.errors import exit_status
from c3po_bench.perf import PERFS, Options
from c3po_bench.runtime.console import set_up_logging
from c3po_bench.runtime.resources import keep_freed_memory, sleep_where_shared


def line(record: dict[str, Any]) -> str:
    """A record in words."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in record.items()
    )


def main() -> int:
    """Print a line a setting; with --json, JSON objects."""
    parser = argparse.ArgumentParser(prog="python -m c3po_bench.perf", description=__doc__)
    beside = Path("../shared/data")
    add = parser.add_argument
    add("name", help=", ".join(PERFS))
    add("--json", action="store_true", help="one JSON object a setting")
    add("--rounds", type=int, default=5, help="rounds of which the median is taken")
    add("--data", type=Path, default=beside if beside.is_dir() else None, help="as data.root")
    add("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
    add("--model", default="smolmoe", choices=("smolmoe", "specialists"), help="of base and suffix")
    add("--quick", action="store_true", help="small settings only")
    given = parser.parse_args()
    set_up_logging("warning")
    keep_freed_memory()
    sleep_where_shared()

    def work() -> None:
        options = Options(given.rounds, given.data, given.quick, given.device, given.model)
        for record in PERFS[given.name](options):
            sys.stdout.write((json.dumps(record) if given.json else line(record)) + "\n")
            sys.stdout.flush()

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
