"""What the item explorer shows.

Every item and answer, and the details of those that changed, in small chunks.

The page parses a chunk only when it is asked for, so that 10,000 items open as fast as ten.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from c3po_bench.analysis.compare import records
from c3po_bench.analysis.roles import BASE, role, title
from c3po_bench.analysis.scores import score_of

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

DETAIL_BYTES = 24 << 20  # of JSON, over all arms; flipped items come first
CHUNK_BYTES = 256 << 10
LONGEST = 6000  # characters of one text shown
DETAILS = (
    "neighbors",
    "losses",
    "pathway_before",
    "pathway_after",
    "pathway_layers",
    "pathway_change",
    "loglikelihoods",
    "prompt",
    "response",
    "score",
    "drift",
    "degeneration",
    "feedback_id",
)


@dataclass
class Explorer:
    """`meta` and `index` describe all items; `chunks` hold details, by the id they are embedded under."""

    meta: dict[str, Any]
    index: dict[str, Any]
    chunks: dict[str, dict[str, Any]] = field(default_factory=dict)
    questions: int = 0  # items, counted once under whatever order of their choices


def explore(runs: Sequence[Run], compared: pd.DataFrame) -> Explorer:
    """Collect the items of `runs` (those in `compared`) and their answers.

    Items are rows ``[task, doc_id, question, choices, gold]``, one for each document and order of its
    choices, since a prediction is a place among them. An arm's answers are two lists over the items, its
    predictions and its scores, None where it has no answer, or a judge could not score it.
    """
    names = {row["run_id"]: (row["label"], row["base_run_id"]) for row in records(compared)}
    runs = sorted((run for run in runs if run.run_id in names), key=lambda run: run.arm != BASE)
    tasks: dict[str, int] = {}
    scopes: dict[str, str] = {}
    items: list[list[Any]] = []
    place: dict[tuple[Any, ...], int] = {}
    explorer = Explorer({}, {})
    arms: list[dict[str, Any]] = []
    answers: list[dict[int, tuple[Any, float]]] = []
    for number, run in enumerate(runs):
        label, base_id = names[run.run_id]
        base = next((i for i, other in enumerate(runs) if other.run_id == base_id), number)
        given: dict[int, tuple[Any, float]] = {}
        flips, rest = _Details(DETAIL_BYTES // len(runs)), _Details(DETAIL_BYTES // len(runs))
        for row in _rows(run):
            key = (row["task"], row["doc_id"], row.get("doc_hash"), *map(str, row.get("choices") or []))
            if key not in place:
                place[key] = len(items)
                tasks.setdefault(row["task"], len(tasks))
                items.append(_item(row, tasks))
            if row.get("scope"):
                scopes[row["task"]] = row["scope"]
            at = place[key]
            given[at] = (_answer(row.get("prediction")), score_of(row))
            before = answers[base].get(at) if base < number else None
            flipped = before is not None and abs(before[1] - given[at][1]) > 0  # not where one is unjudged
            (flips if flipped else rest).add(at, _details(row))
        answers.append(given)
        kept, left_out = _fill(flips, rest)
        starts = _chunk(kept, f"details-{number}", explorer.chunks)
        arms.append(
            {
                "label": title(run.arm) + label[len(run.arm) :],
                "run": run.run_id,
                "role": role(run.arm),
                "tries": run.arm.startswith(
                    "kernel_regression"
                ),  # its losses are of shares tried, not of steps
                "base": base,
                "chunks": starts,
                "left_out": left_out,
            }
        )
    explorer.meta = {"arms": arms, "tasks": list(tasks), "scopes": [scopes.get(task) for task in tasks]}
    explorer.index = {
        "items": items,
        "predictions": [[given.get(i, (None,))[0] for i in range(len(items))] for given in answers],
        "scores": [[given[i][1] if i in given else None for i in range(len(items))] for given in answers],
    }
    explorer.questions = len({key[:3] for key in place})
    return explorer


class _Details:
    """Details of items in the store's order, up to a budget of bytes; what does not fit is counted."""

    def __init__(self, budget: int) -> None:
        self.budget, self.size, self.left_out = budget, 0, 0
        self.found: dict[int, tuple[int, dict[str, Any]]] = {}

    def add(self, item: int, details: dict[str, Any]) -> None:
        if not details:
            return
        size = len(json.dumps(details))
        if self.size + size > self.budget:
            self.left_out += 1
            return
        self.size += size
        self.found[item] = (size, details)


def _fill(flips: _Details, rest: _Details) -> tuple[dict[int, tuple[int, dict[str, Any]]], int]:
    """Flipped items' details and as many others as fit beside them; how many were left out."""
    kept, room = dict(flips.found), flips.budget - flips.size
    left_out = flips.left_out + rest.left_out
    for item, (size, details) in rest.found.items():
        if size > room:
            left_out += 1
            continue
        kept[item], room = (size, details), room - size
    return dict(sorted(kept.items())), left_out


def _chunk(
    kept: dict[int, tuple[int, dict[str, Any]]], name: str, chunks: dict[str, dict[str, Any]]
) -> list[tuple[int, str]]:
    """Put the details into chunks of like size; returns each chunk's first item and id."""
    starts: list[tuple[int, str]] = []
    room = 0
    for item, (size, details) in kept.items():
        if room < size or not starts:
            starts.append((item, f"{name}-{len(starts)}"))
            room = CHUNK_BYTES
        room -= size
        chunks.setdefault(starts[-1][1], {})[str(item)] = details
    return starts


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    path = Path(run.path) / "samples.jsonl"
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _item(row: dict[str, Any], tasks: dict[str, int]) -> list[Any]:
    choices = row.get("choices")
    return [
        tasks[row["task"]],
        row["doc_id"],
        _cut(row.get("question") or row.get("prompt") or ""),
        [_cut(c) for c in choices] if choices else None,
        row.get("gold"),
    ]


def _answer(prediction: Any) -> Any:
    return (
        prediction
        if isinstance(prediction, int | float)
        else None
        if prediction is None
        else str(prediction)[:200]
    )


def _details(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _tidy(row[name]) for name in DETAILS if row.get(name) is not None}


def _tidy(value: Any) -> Any:
    """Texts cut to what one can read, numbers rounded to what one can see."""
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [_tidy(v) for v in value]
    return {str(k): _tidy(v) for k, v in value.items()} if isinstance(value, dict) else value


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} […]"
