"""Which items are scored together: fixed by the items and the batch size alone.

A batch's make-up moves floating-point results in the sixth digit. So chunks do not depend on what is done
already, on
the shard or on the number of processes: a resumed, sharded or distributed run scores the very same batches,
and its samples are the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from c3po_bench.store.identity import content_hash
from c3po_bench.tasks.taskset import TaskSet


@dataclass(frozen=True)
class Chunks:
    """Items (task, doc_id) of each chunk, in order; long questions come first, like lengths together."""

    items: list[list[tuple[str, int]]]

    def numbers(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Chunk and place in it of each item."""
        return {item: (c, place) for c, chunk in enumerate(self.items) for place, item in enumerate(chunk)}

    def share(self, share: int, of: int, chosen: Sequence[int] | None = None) -> list[int]:
        """Numbers of the chunks (among `chosen`, else all) of the `share`-th of `of` shares, from 0."""
        return list(range(len(self.items)) if chosen is None else chosen)[share::of]

    def doc_ids(self, chosen: Sequence[int]) -> dict[str, list[int]]:
        """Items of the chosen chunks, {task: sorted doc_ids}."""
        found: dict[str, list[int]] = {}
        for number in chosen:
            for task, doc_id in self.items[number]:
                found.setdefault(task, []).append(doc_id)
        return {task: sorted(ids) for task, ids in found.items()}


def other_size(size: int) -> int:
    """Another size of batches, for an arm that asks whether batches matter."""
    return size // 3 or size + 1


def make_chunks(tasks: TaskSet, size: int, limit: int | None, *, by_length: bool = True) -> Chunks:
    """The chunks of `size` items of the first `limit` items of each task.

    `by_length`: like lengths together; else in an order that has nothing to do with length.
    """
    ranked = []
    for name, task in tasks.load().items():
        docs: list[Any] = list(task.eval_docs)[:limit]
        for doc_id, doc in enumerate(docs):
            length = -len(tasks.question_text(task, doc)) if by_length else 0
            ranked.append((length, content_hash(doc), name, doc_id))
    ranked.sort()
    items = [(name, doc_id) for _, _, name, doc_id in ranked]
    return Chunks([items[start : start + size] for start in range(0, len(items), size)])
