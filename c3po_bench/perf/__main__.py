"""`python -m c3po_bench.perf NAME [--json] [--rounds N] [--data DIR] [--device NAME]`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c3po_bench.errors import exit_status, unknown
from c3po_bench.perf import PERFS
from c3po_bench.runtime.console import set_up_logging
from c3po_bench.runtime.resources import keep_freed_memory, sleep_where_shared


@dataclass(frozen=True)
class Options:
    """What the command line says.

    `data` is a folder with local copies of stock data; without one, questions are taken from our own `facts`.
    `quick` measures small settings only, for tests. `device` is as `model.device`: auto takes a GPU where
    there is one.
    """

    rounds: int = 5
    data: Path | None = None
    quick: bool = False
    device: str = "auto"


def measure(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """Records of the comparison called `name`."""
    if name not in PERFS:
        raise unknown("performance comparison", name, PERFS)
    module, attribute = PERFS[name].split(":")
    yield from getattr(importlib.import_module(module), attribute)(options)


def line(record: dict[str, Any]) -> str:
    """A record in words."""
    parts = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in record.items()
    ]
    return ", ".join(parts)


def main() -> int:
    """Print a line a setting; with --json, JSON objects."""
    parser = argparse.ArgumentParser(prog="python -m c3po_bench.perf", description=__doc__)
    parser.add_argument("name", help=", ".join(PERFS))
    parser.add_argument("--json", action="store_true", help="one JSON object a setting")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is taken")
    parser.add_argument("--data", type=Path, default=None, help="local copies of stock data (as data.root)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one"
    )
    parser.add_argument("--quick", action="store_true", help="small settings only")
    arguments = parser.parse_args()
    beside = Path("../shared/data")
    data = arguments.data or (beside if beside.is_dir() else None)
    set_up_logging("warning")
    keep_freed_memory()
    sleep_where_shared()

    def work() -> None:
        for record in measure(
            arguments.name, Options(arguments.rounds, data, arguments.quick, arguments.device)
        ):
            sys.stdout.write((json.dumps(record) if arguments.json else line(record)) + "\n")
            sys.stdout.flush()

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
