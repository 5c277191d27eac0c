"""The one place that calls lm-eval: it renders requests and computes metrics, and an arm answers in between.

`ArmAdapter` is the only subclass of lm-eval's `LM`. It makes items of lm-eval's requests once, takes the
finished ones from the journal, has the arm answer the rest in fixed chunks, and hands the numbers back.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from c3po_bench.analysis.arms import BASE
from c3po_bench.analysis.gold import gold_probability
from c3po_bench.contract import CHOICES, TEXT, Answer, Arm, Cost, Item
from c3po_bench.errors import UserError
from c3po_bench.evaluate.chunks import Chunks
from c3po_bench.runtime.resources import in_halves
from c3po_bench.store.files import Journal
from c3po_bench.store.identity import content_hash
from c3po_bench.tasks.soundness import check_score
from c3po_bench.tasks.taskset import TaskSet

Progress = Callable[[str, int, int], None]
PASSAGES = ("passage", "article", "paragraph")
"""Fields of a document that several questions may share: BoolQ, RACE, MultiRC."""


class ArmAdapter(LM):
    """An arm as lm-eval sees it.

    Args:
        arm: what answers. Of a test item it gets no label, unless its row declares that it reads labels.
        tasks: what is asked.
        journal: of the run; items in it are not asked again.
        progress: called with (what, done, total) as items finish.
        chunks: which items the arm answers at once.
        doc_ids: the items of each task that are asked, where these are not all: lm-eval numbers those anew.
        prepare: makes the arm ready; called before anything is asked of it, and without effect from the
            second time on.
    """

    def __init__(
        self,
        arm: Arm,
        tasks: TaskSet,
        journal: Journal,
        progress: Progress,
        chunks: Chunks,
        doc_ids: dict[str, list[int]] | None,
        prepare: Callable[[], None],
    ):
        super().__init__()
        self.arm, self.tasks, self.journal, self.progress = arm, tasks, journal, progress
        self.places, self.doc_ids = chunks.numbers(), doc_ids
        self.keys: dict[tuple[str, int], list[str]] = {}
        self.prepare = prepare

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is what greedy decoding writes."""
        return [(float(score), bool(greedy)) for score, greedy in self._answers(CHOICES, requests)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The written answers."""
        return self._answers(TEXT, requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refused: `TaskSet` lets no task through that asks for it."""
        raise UserError(f"task {requests[0].task_name} asks for the log-likelihood of whole texts")

    def _answers(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        """What each request is answered, in the requests' order."""
        # of each item its requests, and of each request where it stands: in several places if the task repeats it
        positions: dict[tuple[str, int], dict[int, list[int]]] = {}
        for position, request in enumerate(requests):
            number = request.idx if (request.repeats or 1) > 1 else position
            positions.setdefault(self._id(request), {}).setdefault(number, []).append(position)
        items = [
            self._item(kind, id, [requests[places[0]] for places in each.values()])
            for id, each in positions.items()
        ]
        keys = {item.id: f"{item.key}.{item.id[1]}" for item in items}
        for item in items:
            self.keys.setdefault(item.id, []).append(keys[item.id])
        done = sum(key in self.journal.rows for key in keys.values())
        what = f"{self.arm.row.name}: scoring"
        self.progress(what, done, len(items))
        for chunk in self._in_chunks(items):
            if pending := [item for item in chunk if keys[item.id] not in self.journal.rows]:
                self._answer_chunk(kind, pending, keys)
                done += len(pending)
                self.progress(what, done, len(items))
        answers: list[Any] = [None] * len(requests)
        for id, each in positions.items():
            for places, answer in zip(each.values(), self.journal.rows[keys[id]]["answers"], strict=True):
                for position in places:
                    answers[position] = answer
        return answers

    def _id(self, request: Instance) -> tuple[str, int]:
        """The task of a request and the number of its document in the whole task."""
        name, number = str(request.task_name), int(request.doc_id or 0)
        return name, self.doc_ids[name][number] if self.doc_ids else number

    def _item(self, kind: str, id: tuple[str, int], requests: Sequence[Instance]) -> Item:
        doc: Any = requests[0].doc
        return self.arm.row.visible(self.tasks.item(id, doc, kind, [request.args for request in requests]))

    def _in_chunks(self, items: Iterable[Item]) -> list[list[Item]]:
        """The items in the chunks that they are answered in, whatever else is asked or done before."""
        ordered = sorted(items, key=lambda item: self.places[item.id])
        return [list(chunk) for _, chunk in groupby(ordered, key=lambda item: self.places[item.id][0])]

    def _answer_chunk(self, kind: str, items: list[Item], keys: dict[tuple[str, int], str]) -> None:
        """Have the arm answer, and write the answers down together."""
        self.prepare()
        before, start = self.arm.cost(), time.perf_counter()
        parts: list[int] = []  # sizes of what was answered at once

        def answer_part(part: Sequence[Item]) -> list[Answer]:
            found = self.arm.answer(part)
            parts.append(len(part))
            return found

        answers = in_halves(answer_part, items, "items", _size)
        after = self.arm.cost()
        self._check_numbers(items, answers)
        cached = after.cached_seconds - before.cached_seconds
        seconds = (time.perf_counter() - start + cached) / len(items)
        rows = []
        for item, answer in zip(items, answers, strict=True):
            kept = [list(score) for score in answer.scores] if kind == CHOICES else [answer.text]
            row = {"key": keys[item.id], "answers": kept, "seconds": round(seconds, 6)}
            rows.append(row | ({"details": answer.details} if answer.details else {}))
        rows[0]["phases"] = _difference(after, before)
        if len(parts) > 1:
            rows[0]["halved"] = max(parts)
        self.journal.append(rows)

    def _check_numbers(self, items: list[Item], answers: list[Answer]) -> None:
        """Refuse what is no number, in log-likelihoods and details: it would be ranked, and stay in the journal."""
        for item, answer in zip(items, answers, strict=True):
            place = f"{self.arm.row.name}: item {item.id[1]} of task {item.id[0]}"
            if any(not math.isfinite(score) for score, _ in answer.scores):
                raise UserError(
                    f"{place} has a log-likelihood that is not a number (NaN or infinity); try model.dtype=float32, or "
                    "smaller steps if the arm takes any"
                )
            if bad := _not_finite(answer.details):
                raise UserError(
                    f"{place}: {bad} is not a number (NaN or infinity); try model.dtype=float32, or smaller steps if the arm "
                    "takes any"
                )


def _size(item: Item) -> str:
    longest = max((len(before) + len(after) for before, after in item.requests), default=len(item.prompt))
    return f"{item.id[0]}/{item.id[1]}: {len(item.requests) or 1} requests of up to {longest} characters"


def _not_finite(details: Any, name: str = "") -> str:
    """The place of the first number in `details` that is NaN or infinite, such as "losses at step 3".

    Else nothing.
    """
    if isinstance(details, float) and not math.isfinite(details):
        return name
    if isinstance(details, dict):
        return next((bad for key, value in details.items() if (bad := _not_finite(value, str(key)))), "")
    if isinstance(details, list | tuple):
        named = (
            (f"{name} at step {i}" if name == "losses" else name, value) for i, value in enumerate(details)
        )
        return next((bad for label, value in named if (bad := _not_finite(value, label))), "")
    return ""


def _difference(after: Cost, before: Cost) -> dict[str, list[float | None]]:
    """What a chunk added to each phase: {name: [seconds, FLOPs]}.

    FLOPs are None where no formula covers them.
    """
    added: dict[str, list[float | None]] = {}
    for name, phase in after.phases.items():
        old = before.phases.get(name)
        if phase == old:  # a phase outside the scoring, such as training, is the arm's own to report
            continue
        seconds = phase.seconds - (old.seconds if old else 0.0)
        flops = None if phase.flops is None else phase.flops - ((old.flops if old else 0) or 0)
        added[name] = [round(seconds, 6), flops]
    return added


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
    prepare: Callable[[], None],
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
        prepare: see `ArmAdapter`.

    Returns:
        Sample rows (`store.schema.Sample`), and totals: {"phases", "seconds"}.
    """
    adapter = ArmAdapter(arm, tasks, journal, progress, chunks, doc_ids, prepare)
    if doc_ids == {}:  # a rank without a share
        return [], {}
    evaluate: Any = lm_eval.simple_evaluate
    # lm-eval would run `pip list` and git for every arm, aloud where there is no repository
    lm_eval.evaluator.add_env_info = lm_eval.evaluator.get_git_commit_hash = _nothing
    results = evaluate(
        adapter,
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
        by_document: dict[int, list[dict[str, Any]]] = {}
        for sample in samples:
            by_document.setdefault(sample["doc_id"], []).append(sample)
        for doc_id, filtered in by_document.items():
            details = [journal.rows[key].get("details", {}) for key in adapter.keys[name, doc_id]]
            rows.append(_row(arm.row.name, tasks, name, filtered, details))
    rows.sort(key=lambda row: (row["task"], row["doc_id"]))
    return rows, _totals(journal)


def _row(
    arm: str, tasks: TaskSet, name: str, filtered: list[dict[str, Any]], details: list[dict[str, Any]]
) -> dict[str, Any]:
    """One row of samples.jsonl, from an item's samples under each filter of its task: the first filter's counts."""
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
        "correct": check_score(name, headline, sample),
    }
    if arm == BASE:  # the others are asked the same; one that is not says so in its details
        row["rendered"] = list(dict.fromkeys(str(arguments[0]) for arguments in sample["arguments"]))
    if len(filtered) > 1:
        row["filters"] = {other["filter"]: check_score(name, headline, other) for other in filtered}
    if passage := next((doc[field] for field in PASSAGES if doc.get(field)), None):
        row["cluster"] = content_hash(passage, 16)
    if row["choices"] is not None:
        count = len(row["choices"])
        scores = [float(r[0]) for r in sample["filtered_resps"]][:count]
        lengths = tasks.choice_lengths(task, doc) if headline == "acc_norm" else [1.0] * count
        ranked = [s / n for s, n in zip(scores, lengths, strict=True)]
        ruled = ranked
        if headline == "acc_mutual_info":  # less that of the option without its context
            without = [float(r[0]) for r in sample["filtered_resps"]][count : 2 * count]
            ruled = [s - w for s, w in zip(scores, without, strict=True)]
        row |= {
            "p_gold": round(gold_probability(ruled, tasks.golds(task, doc)), 8),
            "gold": tasks.gold(task, doc),
            "prediction": max(range(count), key=ranked.__getitem__),
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


def _nothing(*_: Any) -> None:
    """In place of lm-eval's environment report and commit."""


def _totals(journal: Journal) -> dict[str, Any]:
    """Seconds and FLOPs over all items, whichever process scored them."""
    phases: dict[str, dict[str, Any]] = {}
    for row in journal.rows.values():
        for name, (seconds, flops) in row.get("phases", {}).items():
            phase = phases.setdefault(name, {"seconds": 0.0, "flops": 0})
            phase["seconds"] += seconds
            phase["flops"] = None if None in (flops, phase["flops"]) else phase["flops"] + flops
    halved = [row["halved"] for row in journal.rows.values() if "halved" in row]
    notes = []
    if halved:
        notes.append(
            f"memory did not suffice for whole batches: {len(halved)} of them were answered in parts of at most "
            f"{max(halved)} items; their numbers may differ in the last digits"
        )
    return {"phases": phases, "notes": notes, "seconds": sum(row["seconds"] for row in journal.rows.values())}
