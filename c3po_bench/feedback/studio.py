"""What an experiment's feedback arms and tasks share: pieces, material, judges.

Made once a process, when first needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from c3po_bench.feedback.call_cache import call_key
from c3po_bench.feedback.judges import Case, Judge, judge_name, open_judge
from c3po_bench.feedback.library import find
from c3po_bench.feedback.records import Feedback
from c3po_bench.feedback.voices import VOICES
from c3po_bench.feedback.workshop import Subject, Workshop
from c3po_bench.runtime.locks import exclusive_lock

if TYPE_CHECKING:
    from c3po_bench.config import Config
    from c3po_bench.feedback.answering import Answer
    from c3po_bench.feedback.synthesis import Material

_open: dict[str, Studio] = {}


class Studio:
    """Pieces, workshop, material and judges of one config."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.pieces = find(cfg.feedback.pieces, cfg.feedback.library)
        self.by_id: dict[str, Feedback] = {piece.id: piece for piece in self.pieces}
        self.workshop = Workshop(cfg.feedback, Subject(cfg.model), cfg.seed)
        self.judged: Counter[str] = Counter()  # what went wrong with judgements, of all arms so far
        self._judges: dict[str, Judge] = {}

    @cached_property
    def material(self) -> list[Material]:
        """The synthesized data of every piece.

        Test prompts are answered and revised only where an arm shows revisions.
        """
        from c3po_bench.feedback.synthesis import synthesize

        with self._alone():
            return synthesize(self.pieces, self.workshop, tests=_shows_revisions(self.cfg))

    @cached_property
    def tests(self) -> list[Material]:
        """The test prompts of every piece, unanswered: what tasks and untrained arms need, made sooner."""
        from c3po_bench.feedback.synthesis import write_tests

        with self._alone():
            return write_tests(self.pieces, self.workshop)

    def baselines(self, prompts: Sequence[str]) -> dict[str, Answer]:
        """The base model's answers to test prompts, written (in batches of these prompts) when they are first asked for."""
        from c3po_bench.feedback.synthesis import answer_prompts, known_answers

        known = known_answers(prompts, self.workshop)
        if all(prompt in known for prompt in prompts):
            return known
        with self._alone():
            return answer_prompts(prompts, self.workshop)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Of several processes one makes the data, with the bare model.

        The others then find all calls made.
        """
        self.workshop.subject.release()
        name = call_key(pieces=[p.digest() for p in self.pieces], model=self.workshop.subject.hash)
        with exclusive_lock(self.workshop.folder, f".synthesis-{name}.lock"):
            self.workshop.reopen()
            yield

    def judge(self, piece: Feedback) -> Judge:
        """The judge of a piece, opened once."""
        name = judge_name(self.cfg.feedback.judge.kind, piece)
        if name not in self._judges:
            self._judges[name] = open_judge(name, self.workshop)
        return self._judges[name]

    def scores(self, rows: Sequence[dict[str, Any]]) -> list[float | None]:
        """Signed scores of rows with ``feedback_id``, ``prompt``, ``response`` and, where known, ``baseline_response``."""
        found: list[float | None] = [None] * len(rows)
        told = self.baselines([row["prompt"] for row in rows if "baseline_response" not in row])
        against = [
            row["baseline_response"] if "baseline_response" in row else told[row["prompt"]].text
            for row in rows
        ]
        before = Counter(self.workshop.counts)
        for piece in self.pieces:
            mine = [i for i, row in enumerate(rows) if row["feedback_id"] == piece.id]
            cases = [Case(piece, rows[i]["prompt"], rows[i]["response"], against[i]) for i in mine]
            for i, score in zip(mine, self.judge(piece).scores(cases) if cases else [], strict=True):
                found[i] = score
        self.judged += self.workshop.counts - before
        return found

    def judge_report(self) -> dict[str, float]:
        """What the judges have to say of themselves."""
        return {name: value for judge in self._judges.values() for name, value in judge.report().items()}


def studio_of(cfg: Config) -> Studio:
    """The studio of this config; the same object for the tasks and the arms of an experiment."""
    parts = [asdict(cfg.feedback), asdict(cfg.model), cfg.seed, _shows_revisions(cfg)]
    key = json.dumps(parts, sort_keys=True)
    if key not in _open:
        _open.clear()
        _open[key] = Studio(cfg)
    return _open[key]


def _shows_revisions(cfg: Config) -> bool:
    return any(VOICES[name].stored == "revised" for name in cfg.arms if name in VOICES)
