"""Append-only ledgers of finished calls, keyed by content.

What was answered once is never asked (or paid for) again.

A key is a hash of stage, model, prompt and parameters. A ledger survives SIGKILL (a line cut short is
dropped) and several processes at once (appending takes a file lock).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def call_key(**parts: Any) -> str:
    """The hash of a call's parts (JSON values)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Ledger:
    """One JSON-lines file of ``{"key", "value"}`` rows.

    The last row of a key counts, of those whose value is `valid`.
    """

    def __init__(self, path: Path, valid: Callable[[Any], bool] = lambda value: value is not None) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._values: dict[str, Any] = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                    key, value = row["key"], row["value"]
                    if valid(value):  # else it was damaged, or is another program's
                        self._values[key] = value
                except (ValueError, TypeError, KeyError):
                    continue  # empty, or cut short by a kill: its call is made again

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any | None:
        """The value, or None."""
        return self._values.get(key)

    def put(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Record finished calls; on disk when this returns."""
        new = dict(values)
        rows = [json.dumps({"key": k, "value": v}, ensure_ascii=False) + "\n" for k, v in new.items()]
        with self._lock, open(self.path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.tell() and not self._ends_whole():
                file.write(b"\n")
            file.write("".join(rows).encode())
            file.flush()
            os.fsync(file.fileno())
            self._values.update(new)

    def _ends_whole(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
