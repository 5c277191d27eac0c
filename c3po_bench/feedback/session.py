"""What an experiment's feedback arms and tasks share: pieces, data, judges.

Each is made when it is first needed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from c3po_bench.config import Config
from c3po_bench.errors import UserError
from c3po_bench.feedback import synthesis, tasks
from c3po_bench.feedback.answering import Answer, check_chat
from c3po_bench.feedback.arms import MIX, PROMPT_VARIANTS, plan_of, split_name
from c3po_bench.feedback.calls import call_key
from c3po_bench.feedback.context import Subject, SynthesisContext
from c3po_bench.feedback.judges import Case, Judge, RuleJudge, judge_name, open_judge
from c3po_bench.feedback.revisers import open_reviser
from c3po_bench.feedback.sentences import Feedback, find_feedback
from c3po_bench.feedback.training.recipes import Plan
from c3po_bench.models.targets import find_targets
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.store.files import writing


class FeedbackSession:
    """Pieces, synthesis context, data and judges of one config."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.feedbacks = find_feedback(cfg.feedback.pieces, cfg.feedback.library)
        self.context = SynthesisContext(cfg.feedback, Subject(cfg.model), cfg.seed)
        self.judged: Counter[str] = Counter()  # what went wrong with judgements, of all arms so far
        self._judges: dict[str, Judge] = {}

    @cached_property
    def datasets(self) -> list[synthesis.FeedbackDataset]:
        """The synthesized data of every piece.

        Test prompts are answered and revised only where an arm shows revisions.
        """
        with self._exclusive():
            return synthesis.synthesize(self.feedbacks, self.context, tests=_shows_revisions(self.cfg))

    @cached_property
    def tests(self) -> list[synthesis.FeedbackDataset]:
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
        """Of several processes one makes the data, with the model as it was before any tuning.

        The others then find all calls made. Adapters that are on the model stay there, as an arm may be
        answering with them: they are switched off meanwhile.
        """
        context, subject = self.context, self.context.subject
        name = call_key(pieces=[f.digest() for f in self.feedbacks], model=subject.hash)
        lock = exclusive_lock(context.folder, f".synthesis-{name}.lock")
        with writing(context.folder, "feedback.cache_dir"), lock, subject.unadapted():
            context.reopen()
            yield

    def task_configs(self) -> dict[str, dict[str, dict[str, Any]]]:
        """lm-eval configs of the group `feedback` and of its three tasks, by the names that ``tasks=`` may use."""

        def load() -> list[synthesis.FeedbackDataset]:
            self.check_targets()
            self.check_chats()
            return self.tests

        group = {name: tasks.task_config(name, load, self.cfg.feedback) for name in tasks.SCOPE_OF}
        return {tasks.GROUP: group, **{name: {name: config} for name, config in group.items()}}

    def _plans(self) -> dict[str, Plan]:
        """How the tuned arms are trained."""
        plans = {name: plan_of(name, self.cfg.feedback, self.cfg.arm_options) for name in self.cfg.arms}
        return {name: plan for name, plan in plans.items() if plan is not None}

    def check_targets(self) -> None:
        """Refuse an arm that adapts what the model has not, before anything is written by it."""
        for name, plan in self._plans().items():
            adapted = find_targets(self.context.subject.model, plan.cfg.lora)
            if adapted.parameters and split_name(name)[1] == MIX:
                raise UserError(
                    f"arm {name!r}: PEFT can't mix what adapts {adapted.parameters[0]}: leave it out"
                )

    def check_chats(self) -> None:
        """Refuse, before prompts are paid for, what would fail later.

        That is a chat template, or a reviser or judge that can't be opened (no endpoint, no rewriter).
        """
        check_chat(self.context.subject.tokenizer)
        revised = self._plans() or _shows_revisions(self.cfg)
        for feedback in self.feedbacks:
            self.judge(feedback)
            if revised:
                open_reviser(feedback, self.context)

    def judge(self, feedback: Feedback) -> Judge:
        """The judge of a piece, opened once."""
        name = judge_name(self.cfg.feedback.judge.kind, feedback)
        if name not in self._judges:
            self._judges[name] = open_judge(name, self.context)
        return self._judges[name]

    def scores(self, rows: Sequence[dict[str, Any]]) -> list[float | None]:
        """Signed scores of rows with ``feedback_id``, ``prompt``, ``response`` and ``baseline_response``.

        None where a judgement could not be had.
        """
        scores: list[float | None] = [None] * len(rows)
        before = Counter(self.context.counts)
        for feedback in self.feedbacks:
            own = [i for i, row in enumerate(rows) if row["feedback_id"] == feedback.id]
            cases = [
                Case(feedback, *(rows[i][k] for k in ("prompt", "response", "baseline_response")))
                for i in own
            ]
            for i, score in zip(own, self.judge(feedback).scores(cases) if cases else [], strict=True):
                scores[i] = score
        self.judged += self.context.counts - before
        return scores

    def rule_scores(self, rows: Sequence[dict[str, Any]]) -> list[float | None]:
        """What rules say of rows that another judge scored; None where there are no rules."""
        named = {feedback.id: feedback for feedback in self.feedbacks}
        scores: list[float | None] = []
        for row in rows:
            feedback = named[row["feedback_id"]]
            known = feedback.checkable and judge_name(self.cfg.feedback.judge.kind, feedback) != "rule"
            case = Case(feedback, row["prompt"], row["response"], row["baseline_response"])
            scores += RuleJudge(self.context).scores([case]) if known else [None]
        return scores

    def judge_report(self) -> dict[str, float]:
        """What should be known of the judges themselves."""
        return {name: value for judge in self._judges.values() for name, value in judge.report().items()}


def _shows_revisions(cfg: Config) -> bool:
    return any(PROMPT_VARIANTS[name].stored == "revised" for name in cfg.arms if name in PROMPT_VARIANTS)
