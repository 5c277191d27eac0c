"""A log of any harness as one kind of table: items by hashes of what they ask and expect, with their scores.

Contents are kept as hashes, so that 100,000 rows fit in little memory. The readers are in `harnesses`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from c3po_bench.errors import UserError

FRAME = re.compile(r"^(question|q) | (answer|a)$")


class Row(NamedTuple):
    """One item of a log; hashes are of normalized text, None where the log does not say."""

    item: str  # the log's own name of it
    content: str  # what identifies it within logs of its `Log.family`
    question: str | None  # hash of the question's text: across harnesses
    gold: str | None  # hash of the expected answer's text
    prompt: str | None  # hash of what the model was given
    cluster: str | None = None
    prediction: str = ""


@dataclass
class Log:
    """One model's scores on one task, item by item.

    Attributes: source: the file or folder. harness: which program wrote it. family: logs of one family name
        the same item by the same `Row.content`. model: as the log calls it. task: its name; with a filter
        where the harness has several. facts: what else must agree for two logs to be alike: shots, template,
        decoding, versions. None: not said. higher: by metric, whether more is better; None where the log does
        not say. rows: items. scores: by metric, one score an item; NaN where there is none.
    """

    source: str
    harness: str
    family: str
    model: str
    task: str
    facts: dict[str, Any] = field(default_factory=dict)
    higher: dict[str, bool | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row, metrics: dict[str, Any]) -> None:
        """Append an item with its scores; values that are no numbers are no scores."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self.scores.setdefault(name, {})[len(self.rows)] = float(value)
        self.rows.append(row)

    def finished(self) -> "Log":
        """The log with its scores as arrays ``[items]``."""
        columns = {}
        for name, own in self.scores.items():
            columns[name] = np.full(len(self.rows), np.nan)
            columns[name][list(own)] = list(own.values())
        self.scores = columns
        return self


def object_of(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object; UserError with the place where it is none."""
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError:
        try:  # NaN and Infinity, which Python writes, are no JSON
            value = json.loads(data)
        except ValueError as error:
            raise UserError(f"{where}: no JSON ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: an object is expected, not {type(value).__name__}")
    return value


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSON-lines file with their numbers.

    Raises UserError for an empty file or a row that is no object.
    """
    number = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, object_of(line, f"{path}, row {number}")
    if not number:
        raise UserError(f"{path} is empty")


def field_of(row: dict[str, Any], name: str, where: str, what: str) -> Any:
    """A field that a row must have; UserError naming the place, and `what` is read there."""
    if name not in row:
        raise UserError(f"{where}: no {name!r}; {what} is read")
    return row[name]


def normalized(text: Any) -> str:
    """Text as it is compared across harnesses: lower case, words alone, without "Question:" and "Answer:"."""
    return FRAME.sub("", " ".join(re.findall(r"\w+", str(text).casefold())))


def text_hash(text: Any) -> str | None:
    """A hash of `normalized` text; None of nothing."""
    words = normalized(text) if text is not None else ""
    return hashlib.sha256(words.encode()).hexdigest()[:16] if words else None


def gold_hash(target: Any, choices: Sequence[Any]) -> str | None:
    """The hash of the expected answer: of the option that a number or a letter names, else of the text."""
    if isinstance(target, list | tuple):
        parts = [gold_hash(one, choices) for one in target]
        return "+".join(sorted(filter(None, parts))) or None
    text = str(target).strip()
    place = int(text) if text.isdigit() else ord(text) - ord("A") if re.fullmatch("[A-Z]", text) else -1
    return text_hash(choices[place] if 0 <= place < len(choices) else target)
