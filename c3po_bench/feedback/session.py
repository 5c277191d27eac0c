"""What an experiment's feedback arms and tasks share: pieces, data, judges.

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

from c3po_bench.feedback import synthesis
from c3po_bench.feedback.answering import Answer
from c3po_bench.feedback.arms import PROMPT_VARIANTS
from c3po_bench.feedback.calls import call_key
from c3po_bench.feedback.context import Subject, SynthesisContext
from c3po_bench.feedback.judges import Case, Judge, judge_name, open_judge
from c3po_bench.feedback.sentences import Feedback, find_feedback
from c3po_bench.feedback.synthesis import FeedbackDataset
from c3po_bench.runtime.locks import exclusive_lock

if TYPE_CHECKING:
    from c3po_bench.config import Config

_open: dict[str, FeedbackSession] = {}


class FeedbackSession:
    """Pieces, synthesis context, data and judges of one config."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.feedbacks = find_feedback(cfg.feedback.pieces, cfg.feedback.library)
        self.context = SynthesisContext(cfg.feedback, Subject(cfg.model), cfg.seed)
        self.judged: Counter[str] = Counter()  # what went wrong with judgements, of all arms so far
        self._judges: dict[str, Judge] = {}

    @cached_property
    def datasets(self) -> list[FeedbackDataset]:
        """The synthesized data of every piece.

        Test prompts are answered and revised only where an arm shows revisions.
        """
        with self._exclusive():
            return synthesis.synthesize(self.feedbacks, self.context, tests=_shows_revisions(self.cfg))

    @cached_property
    def tests(self) -> list[FeedbackDataset]:
        """The test prompts of every piece, unanswered: what tasks and untrained arms need, made sooner."""
        with self._exclusive():
            return synthesis.write_tests(self.feedbacks, self.context)

    def baselines(self, prompts: Sequence[str]) -> dict[str, Answer]:
        """The base model's answers to test prompts, written in batches of these when first needed."""
        known = synthesis.known_answers(prompts, self.context)
        if all(prompt in known for prompt in prompts):
            return known
        with self._exclusive():
            return synthesis.answer_prompts(prompts, self.context)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Of several processes one makes the data, with the bare model.

        The others then find all calls made.
        """
        self.context.subject.release()
        name = call_key(pieces=[f.digest() for f in self.feedbacks], model=self.context.subject.hash)
        with exclusive_lock(self.context.folder, f".synthesis-{name}.lock"):
            self.context.reopen()
            yield

    def judge(self, feedback: Feedback) -> Judge:
        """The judge of a piece, opened once."""
        name = judge_name(self.cfg.feedback.judge.kind, feedback)
        if name not in self._judges:
            self._judges[name] = open_judge(name, self.context)
        return self._judges[name]

    def scores(self, rows: Sequence[dict[str, Any]]) -> list[float | None]:
        """Signed scores of rows.

        A row has ``feedback_id``, ``prompt``, ``response`` and, where it is known, ``baseline_response``.
        """
        scores: list[float | None] = [None] * len(rows)
        answers = self.baselines([row["prompt"] for row in rows if "baseline_response" not in row])
        baselines = [
            row["baseline_response"] if "baseline_response" in row else answers[row["prompt"]].text
            for row in rows
        ]
        before = Counter(self.context.counts)
        for feedback in self.feedbacks:
            own = [i for i, row in enumerate(rows) if row["feedback_id"] == feedback.id]
            cases = [Case(feedback, rows[i]["prompt"], rows[i]["response"], baselines[i]) for i in own]
            for i, score in zip(own, self.judge(feedback).scores(cases) if cases else [], strict=True):
                scores[i] = score
        self.judged += self.context.counts - before
        return scores

    def judge_report(self) -> dict[str, float]:
        """What should be known of the judges themselves."""
        return {name: value for judge in self._judges.values() for name, value in judge.report().items()}


def session_of(cfg: Config) -> FeedbackSession:
    """The session of this config; the same object for the tasks and the arms of an experiment."""
    parts = [asdict(cfg.feedback), asdict(cfg.model), cfg.seed, _shows_revisions(cfg)]
    key = json.dumps(parts, sort_keys=True)
    if key not in _open:
        _open.clear()
        _open[key] = FeedbackSession(cfg)
    return _open[key]


def _shows_revisions(cfg: Config) -> bool:
    return any(PROMPT_VARIANTS[name].stored == "revised" for name in cfg.arms if name in PROMPT_VARIANTS)
