"""The feedback backend: from pieces to arms, each an adapter or a variant of the prompt."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import nan
from typing import Any

from c3po_bench.config import Config
from c3po_bench.contract import Answer, Cost, Item, MakeTasks, Report, TimedParts
from c3po_bench.errors import UserError
from c3po_bench.feedback.answering import settings
from c3po_bench.feedback.arms import (
    ARMS,
    JOINT,
    MIX,
    PROMPT_VARIANTS,
    UNPARSED,
    PromptVariant,
    check_arms,
    plan_of,
    split_name,
)
from c3po_bench.feedback.calls import call_key
from c3po_bench.feedback.generators import GENERATORS
from c3po_bench.feedback.judges import JUDGES, ask_judge, judge_name
from c3po_bench.feedback.measures import extra_metrics
from c3po_bench.feedback.responder import Responder
from c3po_bench.feedback.revisers import REVISERS
from c3po_bench.feedback.sentences import find_feedback
from c3po_bench.feedback.session import FeedbackSession
from c3po_bench.feedback.tasks import SCOPE_OF
from c3po_bench.feedback.training.adapters import adapter_folder, resolved, train_adapter, training_record
from c3po_bench.feedback.training.distributed import share_of
from c3po_bench.feedback.training.recipes import Plan, check_values
from c3po_bench.models.ties import ties_note
from c3po_bench.runtime.meter import Meter
from c3po_bench.store.identity import content_hash
from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger(__name__)


class FeedbackBackend:
    """Builds the arms of a feedback experiment; data and adapters are made when an arm is first asked."""

    def __init__(self, cfg: Config, tasks: TaskSet, session: FeedbackSession) -> None:
        self.cfg, self.tasks, self.session = cfg, tasks, session
        session.check_targets()
        self.model_hash: str = session.context.subject.hash

    @classmethod
    def open(cls, cfg: Config, make_tasks: MakeTasks) -> FeedbackBackend:
        """With the tasks about feedback, whose prompts are written when they are loaded."""
        session = FeedbackSession(cfg)
        return cls(cfg, make_tasks(session.task_configs()), session)

    @staticmethod
    def check(cfg: Config) -> None:
        """Unknown arms, options, pieces, generators, judges."""
        section = cfg.feedback
        for library in ("trl", "peft", "openai"):
            if importlib.util.find_spec(library) is None:
                raise UserError(f"the feedback backend needs {library}: pip install 'c3po-bench[feedback]'")
        check_values(section)
        feedbacks = find_feedback(section.pieces, section.library)
        check_arms(list(cfg.arms), section, cfg.arm_options, len(feedbacks))
        if any(plan_of(name, section, cfg.arm_options) for name in cfg.arms):
            share_of(section.train.batch_size, "feedback.train.batch_size")
        GENERATORS.check(section.generator.kind)
        REVISERS.check(section.reviser.kind)
        JUDGES.check(section.judge.kind)

    def check_items(self, items: Iterable[Item]) -> dict[str, tuple[int, int]]:
        """Those of stock tasks: prompts about feedback are chats, which the backend renders itself."""
        from c3po_bench.models.encoding import Encoder  # slow to import, and needed by stock tasks alone

        if not (stock := [item for item in items if not item.metadata]):
            return {}
        subject = self.session.context.subject
        return Encoder(subject.model, subject.tokenizer).check(stock)

    def timed_parts(self) -> TimedParts:
        """Model and tokenizer; nothing is embedded."""
        return TimedParts(self.session.context.subject.model, self.session.context.subject.tokenizer)

    def arms(self, names: Sequence[str] | None = None) -> Iterator[FeedbackArm]:
        """Base first, then the others in the order given."""
        for name in ["base", *[arm for arm in (self.cfg.arms if names is None else names) if arm != "base"]]:
            for seed in (self.cfg.seeds if ARMS[name].trains else ()) or [self.cfg.seed]:
                yield FeedbackArm(self, name, seed)

    def close(self) -> None:
        """Take every adapter off the model."""
        self.session.context.subject.release()


class FeedbackArm:
    """One way of answering."""

    def __init__(self, backend: FeedbackBackend, name: str, seed: int | None = None) -> None:
        self.backend, self.row = backend, ARMS[name]
        self.seed = backend.cfg.seed if seed is None else seed
        self.cfg, self.session = backend.cfg, backend.session
        self.variant = PROMPT_VARIANTS.get(name, PromptVariant())
        self.plan: Plan | None = plan_of(name, self.cfg.feedback, self.cfg.arm_options)
        if self.plan is not None and self.seed != self.cfg.seed:
            self.plan = replace(self.plan, seed=self.seed)
        self.records: list[dict[str, Any]] = []
        self.meter = Meter()
        self._judged_before: Counter[str] = Counter()
        self._unparsed, self._tied = 0, (0, 0)
        self._unjudged = False
        self._responder: Responder | None = None

    @property
    def asks_feedback(self) -> bool:
        """Whether one of the tasks is about feedback."""
        return any(task in SCOPE_OF for task in self.backend.tasks.configs)

    def identity(self) -> dict[str, Any]:
        """Everything that can change this arm's numbers beside model, data and tasks."""
        feedbacks, datasets = self.session.feedbacks, []
        if self.plan or self.variant.stored == "revised":
            datasets = self.session.datasets
        shared: dict[str, Any] = {"pieces": [f.digest() for f in feedbacks], "seed": self.cfg.seed}
        if self.asks_feedback:
            names = [judge_name(self.cfg.feedback.judge.kind, f) for f in feedbacks]
            shared |= {"answers": settings(self.cfg.feedback.answers), "judges": names}
            if "openai" in names:
                shared["judge"] = self._judge_identity()
        if self.variant.stored == "revised":
            tests = [[e.revised, e.revised_finished] for d in datasets for e in d.select("in", "test")]
            shared["revisions"] = call_key(revisions=tests)
        if self.plan is None:
            return shared if self.asks_feedback or self.row.name != "base" else {}
        if self.plan.seed is not None:
            shared["training"] = {"seed": self.plan.seed}
        return shared | {
            "plan": resolved(self.plan, self.session.context),
            "train_data": [d.digest() for d in datasets],
        }

    def _judge_identity(self) -> dict[str, Any]:
        """What decides a judge model's judgements: who it is, how it draws, and what it is asked."""
        chat = self.cfg.feedback.judge.chat
        fields = ("kind", "model", "base_url", "temperature", "top_p", "max_tokens")
        instructions = [ask_judge(f, "prompt", "first", "second") for f in self.session.feedbacks]
        return {name: getattr(chat, name) for name in fields} | {"asked": call_key(asked=instructions)}

    def settings(self) -> dict[str, Any]:
        """Flat columns for the ablation table."""
        section = self.cfg.feedback
        shared = {
            "pieces": ",".join(f.id for f in self.session.feedbacks),
            "generator": section.generator.kind,
            "prompts_in": section.n_in,
            "prompts_near": section.n_near,
            "prompts_out": section.n_out,
            "max_new_tokens": section.answers.max_new_tokens,
            "prompt_differs": self.variant.wrap is not None,
        }
        plan = resolved(self.plan, self.session.context) if self.plan else {}
        return shared | {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in plan.items()}

    def prepare(self) -> None:
        """Train the adapters that are not in the cache, and put them on the model."""
        self._judged_before = Counter(self.session.judged)
        if self.plan is not None or self.variant.stored == "revised":
            datasets = self.session.datasets
        else:
            datasets = self.session.tests if self.asks_feedback else []
        if self.plan is not None:
            model, adapters = self.tuned_model()
        else:
            self.session.context.subject.release()
            model, adapters = self.session.context.subject.model, {}
        self._responder = Responder(
            *(self.variant, datasets, self.session, model, adapters, self.meter, self.cfg.batch_size),
            counts_ties=self.row.other_batches,
        )

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """With the adapter of each prompt's feedback, or in the words of this arm's prompt."""
        assert self._responder is not None, "prepare comes first"
        return self._responder.answer(items)

    def adapter_name(self) -> str:
        """A folder name for this arm's adapters on this model and data."""
        assert self.plan is not None
        folders = [adapter_folder(self.plan, [d], self.session.context).name for d in self.session.datasets]
        return f"{self.row.name}-{call_key(folders=folders)[:12]}"

    def tuned_model(self) -> tuple[Any, dict[str, str]]:
        """The model with its adapters (trained where missing), and which of them answers for which piece."""
        plan, datasets, context = self.plan, self.session.datasets, self.session.context
        assert plan is not None
        suffix = split_name(self.row.name)[1]
        groups = {f"on_{d.feedback.id}": [d] for d in datasets} if suffix != JOINT else {"on_joint": datasets}
        folders = {adapter: train_adapter(plan, group, context) for adapter, group in groups.items()}
        records = [record for folder in folders.values() if (record := training_record(folder))]
        self.records += records
        for record in records:
            flops = record.get("flops")
            self.meter.add("train", record["seconds"], nan if flops is None else flops)
        model = context.subject.adapted(folders)
        if suffix == MIX:
            model.add_weighted_adapter(list(folders), [1.0] * len(folders), "on_mix", combination_type="cat")
        shared = {JOINT: "on_joint", MIX: "on_mix"}.get(suffix)
        return model, {d.feedback.id: shared or f"on_{d.feedback.id}" for d in datasets}

    def cost(self) -> Cost:
        """Training counts in full also where the adapter came from the cache, the shared data for no arm."""
        return self.meter.cost()

    def report(self) -> Report:
        """Counts of data and gaps, training and validation curves (means over adapters), notes.

        Gaps are those of the data, which all arms share, of this arm's adapters and of the judgements on this
        arm.
        """
        gaps = self.session.context.counts - self.session.judged + (self.session.judged - self._judged_before)
        counts = Counter[str]()
        for record in self.records:
            gaps.update(record["left_out"])
            counts.update(record["counts"])
        gaps.update({UNPARSED: self._unparsed} if self._unparsed else {})
        counts.update(gaps)
        series = {"train_loss": [r["loss"] for r in self.records]}
        for kind, field in (("train", "terms"), ("validation", "validation")):
            for term in sorted({t for r in self.records for t in r[field]}):
                series[f"{kind}_{term.replace('/', '_')}"] = [r[field].get(term, []) for r in self.records]
        curves = {}
        for name, lines in series.items():
            if lines and all(lines):
                curves[name] = [sum(step) / len(step) for step in zip(*lines, strict=False)]
        notes = [f"{name}: {value:+.3f}" for name, value in self.session.judge_report().items()]
        notes += [f"{name}: {n}" for name, n in sorted(gaps.items())]
        if self._unjudged:
            notes.append(f"{self.row.name}: none of its answers was judged, so nothing is said of it")
        unprompted = [task for task in self.backend.tasks.configs if task not in SCOPE_OF]
        if unprompted and self.variant.wrap is not None:  # stock tasks are no chats
            notes.append(
                f"{self.row.name} answers {', '.join(unprompted)} without the feedback in the prompt: these scores are the "
                "base model's"
            )
        if tied := self._tied[0]:
            counts["routing_ties"] = tied
            notes.append(ties_note(*self._tied))
        return Report(dict(counts), curves, notes)

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """Judge all answers: signed scores into the rows, and the S metrics, drift and degeneration into the result.

        A row's `doc_hash` then covers the baseline answer too: rows that were scored against others are not
        comparable.
        """
        answers = [row for row in rows if "feedback_id" in row]
        with self.meter.phase("judge"):
            scores = self.session.scores(answers)
        for row, score in zip(answers, scores, strict=True):
            signed = score or 0.0
            row["score"], row["correct"] = score, signed if row["scope"] == "in" else abs(signed)
            row["doc_hash"] = content_hash([row["doc_hash"], row["baseline_response"]], 16)
        for row, score in zip(answers, self.session.rule_scores(answers), strict=True):
            row |= {} if score is None else {"rule_score": score}
        self._unparsed = sum(bool(row.get(UNPARSED)) for row in answers)
        self._tied = sum("routing_ties" in row for row in answers), len(answers)
        self._unjudged = bool(answers) and all(score is None for score in scores)
        if self._unjudged:
            log.warning("%s: none of its %d answers was judged", self.row.name, len(answers))
        return rows, extra_metrics(rows)

    def close(self) -> None:
        """Take every adapter off the model."""
        self._responder = None
        self.session.context.subject.release()
