"""What the item explorer shows.

Every item and answer, and the details of those that changed, in small chunks.

The page parses a chunk only when it is asked for, so that 10,000 items open as fast as ten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from c3po_bench.analysis.arms import BASE, arm_of, display_name
from c3po_bench.analysis.frames import records
from c3po_bench.analysis.gold import gold_probability
from c3po_bench.analysis.scores import score_of
from c3po_bench.store.files import read_jsonl
from c3po_bench.store.reader import Run

DETAIL_BYTES = 24 << 20  # of JSON, over all arms; flipped items come first
SAME = 1e-3  # probabilities that differ by less are the same
CHUNK_BYTES = 256 << 10
LONGEST = 6000  # characters of one text shown
HEAD = 1000  # of a longer prompt's beginning
DETAILS = (
    "neighbors",
    "losses",
    "pathway_before",
    "pathway_after",
    "pathway_layers",
    "pathway_change",
    "loglikelihoods",
    "prompt",
    "rendered",
    "probabilities",
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


def explore(runs: Sequence[Run], compared: pd.DataFrame, detail_bytes: int = DETAIL_BYTES) -> Explorer:
    """Collect the items of `runs` (those in `compared`) and their answers.

    Items are rows ``[task, doc_id, question, choices, gold]``, one for each document and order of its
    choices, since a prediction is a place among them. An arm's answers are two lists over the items, its
    predictions and its scores, None where it has no answer, or a judge could not score it. Details take at
    most `detail_bytes` of JSON, an equal part for each arm.
    """
    rows = {row["run_id"]: row for row in records(compared)}
    runs = sorted((run for run in runs if run.run_id in rows), key=lambda run: run.arm != BASE)
    numbers = {run.run_id: number for number, run in enumerate(runs)}
    tasks: dict[str, str | None] = {}  # with their scopes
    items: list[list[Any]] = []
    place: dict[tuple[Any, ...], int] = {}
    chunks: dict[str, dict[str, Any]] = {}
    arms: list[dict[str, Any]] = []
    answers: list[dict[int, tuple[Any, float]]] = []  # by arm and item: prediction and score
    for number, run in enumerate(runs):
        base = numbers.get(rows[run.run_id]["base_run_id"], number)
        own: dict[int, tuple[Any, float]] = {}
        flips, rest = _Details(detail_bytes // len(runs)), _Details(detail_bytes // len(runs))
        for row in read_jsonl(run.path / "samples.jsonl"):
            key = (row["task"], row["doc_id"], row.get("doc_hash"), *map(str, row.get("choices") or []))
            tasks.setdefault(row["task"], row.get("scope"))
            if key not in place:
                place[key] = len(items)
                items.append(_item(row, list(tasks).index(row["task"])))
            item = place[key]
            own[item] = (_answer(row.get("prediction")), score_of(row))
            before = answers[base].get(item) if base < number else None
            flipped = before is not None and abs(before[1] - own[item][1]) > 0  # not where one is unjudged
            (flips if flipped else rest).add(item, row)
        answers.append(own)
        facts = arm_of(run)
        arms.append(
            {
                "label": display_name(rows[run.run_id]),
                "run": run.run_id,
                "role": facts.role,
                "tries": facts.losses_over == "shares",
                "base": base,
                "chunks": _chunk(flips.filled_with(rest), f"details-{number}", chunks),
                "left_out": flips.left_out,
            }
        )
    return Explorer(
        {
            "arms": arms,
            "tasks": list(tasks),
            "scopes": list(tasks.values()),
            "texts": any(item[2] for item in items),  # a published study has none
        },
        {
            "items": items,
            "predictions": [[own.get(i, (None,))[0] for i in range(len(items))] for own in answers],
            "scores": [[own[i][1] if i in own else None for i in range(len(items))] for own in answers],
        },
        chunks,
        len({key[:3] for key in place}),
    )


class _Details:
    """Details of items in the store's order, up to a budget of bytes; what does not fit is counted."""

    def __init__(self, budget: int) -> None:
        self.room, self.left_out = budget, 0
        self.kept: dict[int, tuple[int, dict[str, Any]]] = {}  # by item: bytes and details

    def add(self, item: int, row: dict[str, Any]) -> None:
        """Keep the details of a sample row, where there are any and room for them."""
        row = row | {"probabilities": choice_probabilities(row)}
        if row.get("rendered"):
            row["rendered"] = [_middle_cut(prompt) for prompt in row["rendered"]]
        if details := {name: _tidy(row[name]) for name in DETAILS if row.get(name) is not None}:
            self._keep(item, len(json.dumps(details)), details)

    def _keep(self, item: int, size: int, details: dict[str, Any]) -> None:
        if size > self.room:
            self.left_out += 1
            return
        self.room -= size
        self.kept[item] = (size, details)

    def filled_with(self, rest: _Details) -> dict[int, tuple[int, dict[str, Any]]]:
        """These details and as many of `rest` as fit beside them, by item."""
        self.left_out += rest.left_out
        for item, (size, details) in rest.kept.items():
            self._keep(item, size, details)
        return dict(sorted(self.kept.items()))


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


def choice_probabilities(row: Mapping[str, Any]) -> list[float] | None:
    """The probability of each choice among the choices, under the rule that the row was scored by.

    The rule is not in the row: it is the log-likelihoods as they are, or divided by the choices' lengths in
    characters, whichever gives the right choice the recorded probability (or, in rows without, makes the
    prediction likeliest). None where neither does.
    """
    scores, choices, prediction = row.get("loglikelihoods"), row.get("choices"), row.get("prediction")
    if not scores or not isinstance(prediction, int) or not all(math.isfinite(score) for score in scores):
        return None
    texts = choices if choices and len(choices) == len(scores) and all(choices) else None
    for lengths in ([1] * len(scores), [len(text) for text in texts or []]):
        if not lengths:
            continue
        ranked = [score / length for score, length in zip(scores, lengths, strict=True)]
        shares = [gold_probability(ranked, [place]) for place in range(len(ranked))]
        gold, recorded = row.get("gold"), row.get("p_gold")
        if recorded is not None and isinstance(gold, int):
            right = abs(shares[gold] - recorded) < SAME
        else:
            right = shares[prediction] > max(shares) - SAME
        if right:
            return shares
    return None


def _item(row: dict[str, Any], task: int) -> list[Any]:
    choices = row.get("choices")
    question = _cut(row.get("question") or row.get("prompt") or "")
    return [task, row["doc_id"], question, [_cut(c) for c in choices] if choices else None, row.get("gold")]


def _answer(prediction: Any) -> Any:
    return prediction if isinstance(prediction, int | float | None) else str(prediction)[:200]


def _tidy(value: Any) -> Any:
    """Texts cut to what one can read, numbers rounded to what one can see."""
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [_tidy(v) for v in value]
    return {str(k): _tidy(v) for k, v in value.items()} if isinstance(value, dict) else value


def _middle_cut(prompt: str) -> str:
    """A long prompt without its middle: the question stands at its end, behind examples."""
    rest = LONGEST - HEAD - 20
    return prompt if len(prompt) <= LONGEST else f"{prompt[:HEAD]}\n[…]\n{prompt[-rest:]}"


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} […]"
