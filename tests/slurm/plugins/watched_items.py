"""Plugin for tests: notes every item scored and every part of a bank that is read; slow if told to be."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from c3po_bench.rewiring import bank
from c3po_bench.store.files import Journal

LOG = Path(os.environ["WATCHED_LOG"])
SECONDS = float(os.environ.get("WATCHED_SECONDS", "0"))


def note(line: str) -> None:
    with open(LOG, "a", encoding="utf-8") as file:
        file.write(line + "\n")


append, build = Journal.append, bank._build


def slow_append(self: Journal, rows: list) -> None:
    append(self, rows)
    if not self.path.name.startswith("journal"):  # the index of the states is a journal, too
        return
    for row in rows:
        note(f"item {self.path.parent.name} {row['key']}")
    time.sleep(SECONDS)


def noted_build(*args: Any) -> None:
    *others, progress = args

    def noted(what: str, done: int, total: int, share: float) -> None:
        note(f"bank read to {done} of {total}")
        progress(what, done, total, share)

    time.sleep(SECONDS)
    build(*others, noted)


if append.__name__ == "append":  # once a process
    Journal.append = slow_append  # type: ignore[method-assign]
    bank._build = noted_build
