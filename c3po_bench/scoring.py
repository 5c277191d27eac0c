"""The one place that calls lm-eval. Every arm is scored here, under one rule, item by item, resumably."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, SupportsFloat

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from c3po_bench.errors import UserError
from c3po_bench.store.files import Journal
from c3po_bench.store.identity import content_hash

if TYPE_CHECKING:
    from c3po_bench.backend import Arm
    from c3po_bench.chunks import Chunks
    from c3po_bench.tasks.taskset import TaskSet

Progress = Callable[[str, int, int], None]
PASSAGES = (
    "passage",
    "article",
    "paragraph",
)  # fields of a document that questions may share: BoolQ, RACE, MultiRC


class ResumableLM(LM):
    """Puts a journal, a progress bar and a wall in front of an arm's LM.

    Requests are grouped by item; finished items come from the journal. What the arm gets of an item is its
    requests and `doc = {"question", "key"}`: no document, and so no label (`gold` only if the arm declares to
    read it).
    """

    def __init__(
        self,
        arm: Arm,
        tasks: TaskSet,
        journal: Journal,
        progress: Progress,
        chunks: Chunks,
        doc_ids: dict[str, list[int]] | None,
    ):
        super().__init__()
        self.arm, self.tasks, self.journal = arm, tasks.load(), journal
        self.taskset, self.progress, self.chunk_of, self.doc_ids = tasks, progress, chunks.numbers(), doc_ids
        self._lm: LM | None = None
        self.keys: dict[tuple[str, int], list[str]] = {}

    @property
    def lm(self) -> LM:
        """The arm's own LM, built when the first unfinished item needs it."""
        if self._lm is None:
            self._lm = self.arm.lm()
        return self._lm

    @property
    def tokenizer_name(self) -> str:
        """Of the arm's LM."""
        return self.lm.tokenizer_name

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihoods, item by item."""
        return [(float(ll), bool(greedy)) for ll, greedy in self._run("loglikelihood", requests)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generated texts, item by item."""
        return self._run("generate_until", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihoods of whole texts, item by item."""
        return self._run("loglikelihood_rolling", requests)

    def _run(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        groups: dict[tuple[str, int], list[int]] = {}
        for position, request in enumerate(requests):
            groups.setdefault((str(request.task_name), int(request.doc_id or 0)), []).append(position)
        keyed = {}
        for item, positions in groups.items():
            content = [kind, item[0], [list(map(str, requests[p].args)) for p in positions]]
            keyed[item] = f"{content_hash(content, 24)}.{self._true_id(item)}"
            self.keys.setdefault(item, []).append(keyed[item])
        done = sum(keyed[item] in self.journal.rows for item in groups)
        what = f"{self.arm.name}: scoring"
        self.progress(what, done, len(groups))
        for chunk in self._in_chunks(groups):
            pending = [item for item in chunk if keyed[item] not in self.journal.rows]
            if pending:
                self._score_chunk(kind, pending, groups, requests, keyed)
                done += len(pending)
                self.progress(what, done, len(groups))
        answers: list[Any] = [None] * len(requests)
        for item, positions in groups.items():
            for position, answer in zip(positions, self.journal.rows[keyed[item]]["answers"], strict=True):
                answers[position] = answer
        return answers

    def _true_id(self, item: tuple[str, int]) -> int:
        """The doc_id of an item in its whole task; lm-eval numbers the items of a shard anew."""
        return self.doc_ids[item[0]][item[1]] if self.doc_ids else item[1]

    def _in_chunks(self, items: Iterable[tuple[str, int]]) -> list[list[tuple[str, int]]]:
        """Items in the chunks that they are scored in, whoever else is asked."""
        placed = {item: self.chunk_of[item[0], self._true_id(item)] for item in items}
        ordered = sorted(placed, key=placed.__getitem__)
        return [list(chunk) for _, chunk in groupby(ordered, key=lambda item: placed[item][0])]

    def _score_chunk(
        self,
        kind: str,
        chunk: list[tuple[str, int]],
        groups: dict[tuple[str, int], list[int]],
        requests: Sequence[Instance],
        keyed: dict[tuple[str, int], str],
    ) -> None:
        lm = self.lm
        before = self.arm.cost()
        start = time.perf_counter()
        asked = [
            self._stripped(requests[p], keyed[item], n) for n, item in enumerate(chunk) for p in groups[item]
        ]
        flat = iter(getattr(lm, kind)(asked))
        answers = [[next(flat) for _ in groups[item]] for item in chunk]
        if kind != "generate_until":
            self._check_numbers(chunk, answers)
        after = self.arm.cost()
        credited = after.get("credited_seconds", 0.0) - before.get("credited_seconds", 0.0)
        seconds = (time.perf_counter() - start + credited) / len(chunk)
        details = getattr(lm, "pop_details", dict)()
        rows = []
        for n, item in enumerate(chunk):
            row = {"key": keyed[item], "answers": answers[n], "seconds": round(seconds, 6)}
            if (item[0], n) in details:
                row["details"] = details[item[0], n]
            rows.append(row)
        rows[0]["phases"] = _difference(after["phases"], before["phases"])
        self.journal.append(rows)

    def _check_numbers(self, chunk: list[tuple[str, int]], answers: list[list[Any]]) -> None:
        """Refuse log-likelihoods that are not numbers.

        They would be ranked as if they were, and stay in the journal.
        """
        for item, found in zip(chunk, answers, strict=True):
            if any(math.isnan(answer[0] if isinstance(answer, tuple | list) else answer) for answer in found):
                raise UserError(
                    f"{self.arm.name}: item {self._true_id(item)} of task {item[0]} has a log-likelihood that is not a "
                    "number (NaN); try model.dtype=float32, or smaller steps if the arm takes any"
                )

    def _stripped(self, request: Instance, key: str, number: int) -> Instance:
        """The request without its document; items are numbered within the chunk."""
        task = self.tasks[str(request.task_name)]
        doc: dict[str, Any] = {
            "question": self.taskset.question_text(task, request.doc),
            "key": key.partition(".")[0],
        }
        if self.arm.reads_labels:
            doc["gold"] = self.taskset.gold(task, request.doc)
        return Instance(
            request_type=request.request_type,
            doc=doc,
            arguments=request.arguments,
            idx=request.idx,
            metadata=(request.task_name, number, request.repeats),
        )


def _difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, list[Any]]:
    """What a chunk added to each phase: {name: [seconds, flops]}; unknown flops are None."""
    out = {}
    for name, phase in after.items():
        old = before.get(name, {"seconds": 0.0, "flops": 0})
        if phase == old:  # a phase outside the scoring, such as training, is the arm's own to report
            continue
        known = phase["flops"] is not None and old["flops"] is not None
        flops = phase["flops"] - old["flops"] if known else None
        out[name] = [round(phase["seconds"] - old["seconds"], 6), flops]
    return out


def score(
    arm: Arm,
    tasks: TaskSet,
    journal: Journal,
    progress: Progress,
    *,
    chunks: Chunks,
    limit: int | None,
    doc_ids: dict[str, list[int]] | None,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Score one arm on all tasks.

    Args:
        arm: what answers.
        tasks: what is asked.
        journal: of the run; items in it are not asked again.
        progress: called as items finish.
        chunks: which items are handed to the arm at once.
        limit: first N items of each task.
        doc_ids: instead, the items of each task (for shards).
        seed: for lm-eval's few-shot sampler.

    Returns:
        Sample rows (`store.schema.Sample`), and totals: {"phases", "seconds"}.
    """
    import lm_eval

    lm = ResumableLM(arm, tasks, journal, progress, chunks, doc_ids)
    evaluate: Any = lm_eval.simple_evaluate
    # `pip list` and git for every arm, aloud where there is no repository; provenance.json has what matters
    lm_eval.evaluator.add_env_info = lm_eval.evaluator.get_git_commit_hash = _nothing
    results = evaluate(
        lm,
        tasks=[task for name, task in tasks.load().items() if doc_ids is None or name in doc_ids],
        task_manager=tasks.manager,
        limit=None if doc_ids else limit,
        samples=doc_ids,
        bootstrap_iters=0,
        log_samples=True,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    if results is None:  # on other ranks than the first lm-eval gives nothing, and nothing is asked for
        return [], {}
    rows = []
    for name, samples in results["samples"].items():
        local = {true: n for n, true in enumerate(doc_ids[name])} if doc_ids else None
        by_filter: dict[int, list[dict[str, Any]]] = {}
        for sample in samples:
            by_filter.setdefault(sample["doc_id"], []).append(sample)
        for doc_id, filtered in by_filter.items():
            asked = local[doc_id] if local else doc_id
            details = [journal.rows[key].get("details", {}) for key in lm.keys[name, asked]]
            rows.append(_row(arm.name, tasks, name, filtered, details))
    rows.sort(key=lambda row: (row["task"], row["doc_id"]))
    return rows, _totals(journal)


def _row(
    arm: str, tasks: TaskSet, name: str, filtered: list[dict[str, Any]], details: list[dict[str, Any]]
) -> dict[str, Any]:
    """One row of samples.jsonl, from an item's samples under each filter of its task.

    The first filter's counts.
    """
    task = tasks.load()[name]
    sample = filtered[0]
    doc, headline = sample["doc"], tasks.headline[name]
    row: dict[str, Any] = {
        "arm": arm,
        "task": name,
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"][:16],
        "prompt_hash": content_hash([list(map(str, a)) for a in sample["arguments"]], 16),
        "question": tasks.question_text(task, doc),
        "choices": tasks.choice_texts(task, doc),
        "correct": _value(name, headline, sample),
    }
    if len(filtered) > 1:
        row["filters"] = {other["filter"]: _value(name, headline, other) for other in filtered}
    if passage := next((doc[field] for field in PASSAGES if doc.get(field)), None):
        row["cluster"] = content_hash(passage, 16)
    if row["choices"] is not None:
        count = len(row["choices"])
        scores = [float(r[0]) for r in sample["filtered_resps"]][:count]
        lengths = tasks.choice_lengths(task, doc) if headline == "acc_norm" else [1.0] * count
        judged = [s / n for s, n in zip(scores, lengths, strict=True)]
        row |= {
            "gold": tasks.gold(task, doc),
            "prediction": max(range(count), key=judged.__getitem__),
            "loglikelihoods": [round(s, 6) for s in scores],
        }
    else:
        answer = sample["filtered_resps"][0]
        row |= {
            "gold": str(sample["target"]),
            "prediction": answer if isinstance(answer, str) else json.dumps(answer),
            "loglikelihoods": None,
        }
    for more in details:
        row |= more
    return row


def _value(task: str, metric: str, sample: dict[str, Any]) -> float:
    """The item's score; `UserError` where the metric scores whole corpora only (BLEU, perplexity)."""
    value = sample.get(metric)
    if not isinstance(value, SupportsFloat):
        raise UserError(
            f"task {task!r}: its headline metric {metric!r} gives no number for each item, and arms are compared item by "
            "item; name a task whose first metric does (acc, exact_match)"
        )
    return float(value)


def _nothing(*_: Any) -> None:
    """In place of lm-eval's environment report and commit."""


def _totals(journal: Journal) -> dict[str, Any]:
    """Seconds and FLOPs over all items, whichever process scored them."""
    phases: dict[str, dict[str, Any]] = {}
    for row in journal.rows.values():
        for name, (seconds, flops) in row.get("phases", {}).items():
            phase = phases.setdefault(name, {"seconds": 0.0, "flops": 0})
            phase["seconds"] += seconds
            phase["flops"] = None if flops is None or phase["flops"] is None else phase["flops"] + flops
    return {"phases": phases, "seconds": sum(row["seconds"] for row in journal.rows.values())}
