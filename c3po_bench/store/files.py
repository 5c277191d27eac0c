"""Writing that survives being killed.

Whole files appear atomically, journals lose at most their last line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from c3po_bench.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a whole file so that it either is there, complete, or is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON, indented, atomically."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> Iterator[Any]:
    """Rows of a JSON-lines file; a last line cut short by a kill, be it within a character, is left out.

    Raises:
        UserError: for a line within the file that is no JSON.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield parsed(line, f"{path}, line {number}")


def drop_torn_line(path: Path) -> None:
    """Take off a last line that a kill has cut short.

    What is appended to it would be lost, and the file unreadable.
    """
    if not path.exists():
        return
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def parsed(text: bytes, where: str) -> Any:
    """JSON read from a store.

    Raises:
        UserError: where it is damaged.
    """
    try:
        return json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise UserError(
            f"{where} is damaged ({error}): put it back, or delete it to have it made again"
        ) from error


def read_groups(path: Path) -> list[Any]:
    """Rows of a journal, without a last group that a kill has cut short.

    What was appended together counts together.
    """
    rows = list(read_jsonl(path))
    start = 0
    while start < len(rows):
        end = start + rows[start].get("of", 1)
        if end > len(rows):
            break
        start = end
    return rows[:start]


class Journal:
    """An append-only file of finished items, by key.

    Opening it drops lines that a kill cut short: what was appended together counts together or not at all.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_groups(path)
        self.rows: dict[str, Any] = {row["key"]: row for row in rows}
        whole = sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in rows)
        if path.exists() and path.stat().st_size > whole:
            with open(path, "r+b") as file:
                file.truncate(whole)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add finished items; each row has a `key`. The first says how many were appended together (`of`)."""
        group = list(rows)
        if len(group) > 1:
            group[0] = {**group[0], "of": len(group)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in group))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["key"]: row for row in group}
