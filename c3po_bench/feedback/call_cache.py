"""Finished calls to models, remembered by their content: what was answered once is never paid for again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from c3po_bench.store.files import Journal


def call_key(**parts: Any) -> str:
    """The hash of a call's parts (JSON values): stage, model, prompt and parameters."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Reply(NamedTuple):
    """What a chat model wrote; `finished` is false where it was cut at the token limit."""

    text: str
    finished: bool = True


def is_reply(value: Any) -> bool:
    """Whether a cached value is the record of a reply."""
    kinds = {"text": str, "finished": bool}
    return isinstance(value, dict) and {key: type(part) for key, part in value.items()} == kinds


class CallCache(Journal):
    """A file of ``{"key", "value"}`` rows, one a finished call.

    It survives SIGKILL and several processes at once. A row that is damaged, or whose value is not `valid`, is
    a call that was not made.
    """

    def __init__(self, path: Path, valid: Callable[[Any], bool] = is_reply) -> None:
        super().__init__(path, lambda row: isinstance(row["key"], str) and valid(row["value"]))

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> Any:
        return self.rows[key]["value"]

    def __len__(self) -> int:
        return len(self.rows)

    def reply(self, key: str) -> Reply | None:
        """The reply to a call, or None where it was not made."""
        return Reply(**self[key]) if key in self else None

    def put(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Record finished calls; they are on disk when this returns."""
        self.append({"key": key, "value": value} for key, value in dict(values).items())
