"""Writing that survives being killed.

Whole files appear atomically. What is appended to a journal counts once it is complete.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from c3po_bench.errors import DamagedFile, UserError, disk_failure, of_the_disk
from c3po_bench.masking import masked, without_secrets

HOST = socket.gethostname().replace(".", "_")[:60]
DAY = 24 * 3600.0
SEAL = b', "line_crc": "'
"""Before the checksum that ends each line of a journal: CRC-32 of the line without it, in 8 hexadecimal digits."""


@contextmanager
def writing(path: Path, key: str = "") -> Iterator[None]:
    """Within the block `path`, or a file in it, is written: a full or failing disk is said with the name.

    Args:
        path: a file, or a folder.
        key: what sets the folder, such as "results_dir".

    Raises:
        UserError: for a full or failing disk, where `key` says whose folder it is.
        OSError: the same with the file's name, where it does not.
    """
    try:
        yield
    except Exception as error:
        if (failure := disk_failure(error)) is None:
            raise
        failure.filename = failure.filename or str(path)
        if not key:
            raise failure from error
        raise UserError(of_the_disk(failure, f"{path} ({key})") or "") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a whole file or folder beside `path`, and move it there when it is complete.

    Yields the path to write to, whose suffix is that of `path`. Whatever happens, `path` is the old file or
    the new one, never a part; a folder takes the place of an old one, which goes away first. What processes
    that were killed left behind in the folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(path.parent, os.getpid())
    temporary = path.with_name(f".{path.stem[:150]}.{HOST}-{os.getpid()}.tmp{path.suffix}")
    try:
        with writing(path):
            yield temporary
            if temporary.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@cache
def sweep_temporaries(folder: Path, pid: int) -> None:
    """Remove what dead processes were writing in `folder`, once in each process (`pid`).

    Of another machine's processes nobody knows here whether they live: theirs go after a day.
    """
    with suppress(OSError):
        for path in folder.glob(".*.tmp*"):
            if owner := re.search(r"\.([^.]*)-(\d+)\.tmp", path.name):
                here = owner[1] == HOST
                alive = int(owner[2]) == pid or os.path.exists(f"/proc/{owner[2]}")
                if not alive if here and os.path.isdir("/proc/self") else _older(path, DAY):
                    remove(path)


def _older(path: Path, seconds: float) -> bool:
    """Whether a file was last written so long ago."""
    return path.exists() and time.time() - path.stat().st_mtime > seconds


def write_text(path: Path, text: str) -> None:
    """Write a whole file so that it either is there, complete, or is not.

    Secrets that are known are masked.
    """
    with replacing(path) as temporary:
        temporary.write_text(without_secrets(text), encoding="utf-8")


def write_settings(path: Path, text: str) -> None:
    """The same for a text of ours, such as a config or a command: what looks like a secret is masked, too."""
    write_text(path, masked(text))


def write_json(path: Path, data: Any) -> None:
    """Write JSON, indented, atomically."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> Iterator[Any]:
    """Rows of a JSON-lines file; a last line cut short by a kill, be it within a character, is left out.

    Raises:
        UserError: for a line within the file that is no JSON, or not what was written.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield parsed(line, f"{path}, line {number}")


def sealed(row: dict[str, Any]) -> bytes:
    """A line of a journal: the row as JSON, which ends with the checksum of what stands before."""
    text = without_secrets(json.dumps(row, ensure_ascii=False)).encode()
    return text[:-1] + SEAL + b'%08x"}\n' % zlib.crc32(text)


def unsealed(line: bytes) -> bytes:
    """The row's JSON in a line, without its checksum; a line that never had one is taken as it is.

    Raises:
        ValueError: for a line that is not what was written.
    """
    text, mark, checksum = line.rstrip(b"\n").rpartition(SEAL)
    if not mark:
        return line
    if checksum != b'%08x"}' % zlib.crc32(text + b"}"):
        raise ValueError("its checksum does not hold")
    return text + b"}"


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
        return json.loads(unsealed(text).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(where, str(error) or type(error).__name__) from error


def damaged(
    where: str, why: str, remedy: str = "put it back, or delete it to have it made again"
) -> DamagedFile:
    """The error for a file of a store that is not what was written."""
    return DamagedFile(f"{where} is damaged ({why}): {remedy}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def read_groups(path: Path) -> list[Any]:
    """Rows of a journal, without a last group that a kill has cut short.

    What was appended together counts together.
    """
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, dict) and isinstance(row.get("key"), str) and _is_count(row.get("of", 1))):
            raise damaged(f"{path}, line {number}", "it is no row of a journal")
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
        with writing(self.path), _exclusively(self.path, "ab") as file:
            if self.grouped:
                drop_torn_line(self.path)
            elif _is_torn(self.path):  # it may lack nothing but its end
                file.write(b"\n")
            before = os.fstat(file.fileno()).st_size
            try:
                write_all(file, b"".join(map(sealed, group)))
                os.fsync(file.fileno())
            except OSError:  # a part of a group, were it followed by others, would spoil them
                os.ftruncate(file.fileno(), before)
                raise
        self.rows |= {row["key"]: row for row in group}


def write_all(file: Any, data: bytes) -> None:
    """Write to an unbuffered file, which may take less at once: a buffered one would try again when it is closed."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _exclusively(path: Path, mode: str) -> Iterator[Any]:
    """The open file, which no other process has so meanwhile.

    Where there are no locks, one process runs at a time.
    """
    with open(path, mode, buffering=0) as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _valid_rows(path: Path, valid: Callable[[Any], bool]) -> list[Any]:
    """The rows that count of a file which may be damaged."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(ValueError, TypeError, KeyError):  # empty, cut short, or of another form
            row = json.loads(unsealed(line))
            if valid(row):
                rows.append(row)
    return rows
