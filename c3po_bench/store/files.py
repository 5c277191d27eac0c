"""Writing that survives being killed.

Whole files appear atomically. What is appended to a journal counts once it is complete.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
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
    if path.exists() and _is_torn(path):
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        return file.read() not in (b"", b"\n")


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
    """An append-only file of JSON rows by their `key`; the last row of a key counts.

    Rows that are appended together count together or not at all: the first says how many they are (`of`).
    Several processes may append to one file, where the file system has locks.

    Args:
        path: of the file, which the first append makes.
        valid: for a file whose rows can be made again, whether a row counts. Damaged lines and rows that are
            not valid are then left out, and every row counts by itself. None: the file must be whole up to a
            last group that a kill has cut short, which is dropped.

    Raises:
        UserError: for a line that is damaged, where `valid` is None.
    """

    def __init__(self, path: Path, valid: Callable[[Any], bool] | None = None) -> None:
        self.path, self.grouped = path, valid is None
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exclusively(path, "rb") if path.exists() else nullcontext():  # nobody appends meanwhile
            rows = read_groups(path) if valid is None else _valid_rows(path, valid)
            if self.grouped and path.exists():
                with open(path, "rb") as file:
                    whole = sum(map(len, islice(file, len(rows))))
                if path.stat().st_size > whole:
                    os.truncate(path, whole)
        self.rows: dict[str, Any] = {row["key"]: row for row in rows}

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, each with its `key`; they are on disk when this returns."""
        group = list(rows)
        if self.grouped and len(group) > 1:
            group[0] = {**group[0], "of": len(group)}
        with _exclusively(self.path, "ab") as file:
            if self.grouped:
                drop_torn_line(self.path)
            elif _is_torn(self.path):  # it may lack nothing but its end
                file.write(b"\n")
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in group).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["key"]: row for row in group}


@contextmanager
def _exclusively(path: Path, mode: str) -> Iterator[Any]:
    """The open file, which no other process has so meanwhile; where there are no locks, one process runs at a time."""
    with open(path, mode) as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _valid_rows(path: Path, valid: Callable[[Any], bool]) -> list[Any]:
    """The rows that count of a file which may be damaged."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(ValueError, TypeError, KeyError):  # empty, cut short, or of another form
            row = json.loads(line)
            if valid(row):
                rows.append(row)
    return rows
