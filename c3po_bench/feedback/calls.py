"""Calls to models, and the cache of finished calls: what was answered once is never paid for again."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from c3po_bench.store.files import Journal, writing

Conversation = list[dict[str, str]]  # [{"role": "user", "content": ...}, ...]


def ask(text: str) -> Conversation:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


EMPHASIS = "*_`"


def text_after(text: str, marker: str) -> str | None:
    """What follows the last `marker`, emphasized or not, or else the last one in other case.

    None without any. The time that it takes grows with the text, not with its square, whatever stands there.
    """
    words = r"(?<![^\W_])" + r"\s+".join(map(re.escape, marker.removesuffix(":").split()))
    end = r"([\s*_`]*):([*_`]+(?=\s|\Z))?"
    markers = [*re.finditer(words + end, text)]
    if not markers:
        markers = [*re.finditer(words + end, text, re.IGNORECASE)]
        if " " not in marker:  # one word in other case may be any: it must begin a sentence
            markers = [found for found in markers if _begins(text, found.start())]
    if not markers:
        return None
    inside, closed = markers[-1].groups()
    start = markers[-1].start()
    before = text[_run(text, start, EMPHASIS) : start]
    tail, close = text[markers[-1].end() :].strip(), before[::-1]
    if close and not inside.strip() and not closed:  # it ends right behind the marker, or with the answer
        tail = tail.removeprefix(close) if tail.startswith(close) else tail.removesuffix(close)
    return tail.strip()


def _run(text: str, end: int, signs: str, spaces: bool = False) -> int:
    """Where the run of these signs begins that ends before `end`."""
    while end and (text[end - 1] in signs or spaces and text[end - 1].isspace()):
        end -= 1
    return end


def _begins(text: str, start: int) -> bool:
    """Whether a sentence or a line begins there, but for emphasis, headings and quotes."""
    emphasis = _run(text, start, EMPHASIS)
    first = _run(text, emphasis, "#>", spaces=True)
    return not first or text[first - 1] in ".!?" or "\n" in text[first:emphasis]


def call_key(**parts: Any) -> str:
    """The hash of a call's parts (JSON values): stage, model, prompt and parameters."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Reply(NamedTuple):
    """What a chat model wrote; `finished` is false where it was cut at the token limit."""

    text: str
    finished: bool = True


class CallCache(Journal):
    """A file of ``{"key", "value"}`` rows, one a finished call.

    It survives SIGKILL and several processes at once. A row that is not what was written, or whose value has
    not the fields of `record`, is a call that was not made.
    """

    def __init__(self, path: Path, record: type = Reply) -> None:
        fields = get_type_hints(record)
        super().__init__(
            path,
            lambda row: (
                isinstance(row["key"], str)
                and isinstance(row["value"], dict)
                and {name: type(part) for name, part in row["value"].items()} == fields
            ),
        )

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> Any:
        return self.rows[key]["value"]

    def reply(self, key: str) -> Reply | None:
        """The reply to a call, or None where it was not made."""
        return Reply(**self[key]) if key in self else None

    def put(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Record finished calls; they are on disk when this returns."""
        with writing(self.path, "feedback.cache_dir"):
            self.append({"key": key, "value": value} for key, value in dict(values).items())
