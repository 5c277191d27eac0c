"""The feedback backend: from pieces to arms, each an adapter or a way of asking, all scored by lm-eval."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback import instructions
from c3po_bench.feedback import tasks as feedback_tasks
from c3po_bench.feedback.answering import settings
from c3po_bench.feedback.call_cache import call_key
from c3po_bench.feedback.generators import GENERATORS
from c3po_bench.feedback.judges import JUDGES, judge_name
from c3po_bench.feedback.library import find
from c3po_bench.feedback.revisers import REVISERS, open_reviser
from c3po_bench.feedback.scores import extra_metrics
from c3po_bench.feedback.studio import studio_of
from c3po_bench.feedback.training.together import share_of
from c3po_bench.feedback.training.values import check_values
from c3po_bench.feedback.voices import (
    JOINT,
    MIX,
    UNPARSED,
    VOICES,
    Voice,
    check_arms,
    plan_of,
    split_name,
    unworded,
)
from c3po_bench.runtime.resources import peak_resident
from c3po_bench.store.identity import content_hash

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from c3po_bench.config import Config
    from c3po_bench.feedback.training.recipes import Plan
    from c3po_bench.tasks.taskset import TaskSet


class FeedbackBackend:
    """Builds the arms of a feedback experiment; data and adapters are made when an arm is first asked."""

    def __init__(self, cfg: Config, tasks: TaskSet) -> None:
        self.cfg, self.tasks = cfg, tasks
        self.studio = studio_of(cfg)
        check_targets(cfg)
        self.model_hash: str = self.studio.workshop.subject.hash

    @staticmethod
    def check(cfg: Config) -> None:
        """Unknown arms, options, pieces, generators, judges."""
        feedback = cfg.feedback
        for library in ("trl", "peft", "openai"):
            if importlib.util.find_spec(library) is None:
                raise UserError(f"the feedback backend needs {library}: pip install 'c3po-bench[feedback]'")
        check_values(feedback)
        pieces = find(feedback.pieces, feedback.library)
        check_arms(list(cfg.arms), feedback, cfg.arm, len(pieces))
        if any(plan_of(name, feedback, cfg.arm) for name in cfg.arms):
            share_of(feedback.train.batch, "feedback.train.batch")
        for what, name, choices in (
            ("feedback.generator.kind", feedback.generator.kind, GENERATORS),
            ("feedback.reviser.kind", feedback.reviser.kind, ["auto", *REVISERS]),
            ("feedback.judge.kind", feedback.judge.kind, ["auto", *JUDGES]),
        ):
            if name not in choices:
                raise unknown(what, name, choices)

    @staticmethod
    def own_tasks(cfg: Config) -> dict[str, dict[str, dict[str, Any]]]:
        """lm-eval configs of the group `feedback` and of its three tasks, by the names that ``tasks=`` may use."""

        def load() -> Any:
            check_targets(cfg)
            check_speakers(cfg)
            return studio_of(cfg).tests

        def scorer(rows: Sequence[dict[str, Any]]) -> list[float | None]:
            return studio_of(cfg).scores(rows)

        made = feedback_tasks.task_configs(load, scorer, cfg.feedback, list(feedback_tasks.SCOPE_OF))
        return {feedback_tasks.GROUP: made, **{name: {name: config} for name, config in made.items()}}

    def arms(self, names: Sequence[str] | None = None) -> Iterator[FeedbackArm]:
        """Base first, then the others in the order given."""
        for name in ["base", *[arm for arm in (self.cfg.arms if names is None else names) if arm != "base"]]:
            yield FeedbackArm(self, name)


def check_targets(cfg: Config) -> None:
    """What tuned arms adapt, by the model itself, before anything is written by it.

    `UserError` for what it has not.
    """
    from c3po_bench.models.targets import find_targets

    for name in cfg.arms:
        if plan := plan_of(name, cfg.feedback, cfg.arm):
            adapted = find_targets(studio_of(cfg).workshop.subject.model, plan.cfg.lora)
            if adapted.parameters and split_name(name)[1] == MIX:
                raise UserError(
                    f"arm {name!r}: PEFT can't mix what adapts {adapted.parameters[0]}: leave it out"
                )


def check_speakers(cfg: Config) -> None:
    """Revisers and judges that can't be opened (no endpoint, no rewriter), before prompts are paid for and answered."""
    studio = studio_of(cfg)
    revised = any(
        plan_of(name, cfg.feedback, cfg.arm) or VOICES[name].stored == "revised" for name in cfg.arms
    )
    for piece in studio.pieces:
        studio.judge(piece)
        if revised:
            open_reviser(piece, studio.workshop)


class FeedbackArm:
    """One way of answering."""

    reads_labels = False

    def __init__(self, backend: FeedbackBackend, name: str) -> None:
        self.backend, self.name = backend, name
        self.cfg, self.studio = backend.cfg, backend.studio
        self.voice = VOICES.get(name, Voice())
        self.plan: Plan | None = plan_of(name, self.cfg.feedback, self.cfg.arm)
        self.records: list[dict[str, Any]] = []
        self._seconds: dict[str, float] = {}
        self._judged_before: Counter[str] = Counter()
        self._unparsed = 0

    @property
    def asks_feedback(self) -> bool:
        """Whether one of the tasks is about feedback."""
        return any(task in feedback_tasks.SCOPE_OF for task in self.backend.tasks.configs)

    def identity(self) -> dict[str, Any]:
        """Everything that can change this arm's numbers beside model, data and tasks."""
        feedback = self.cfg.feedback
        shared: dict[str, Any] = {"pieces": [p.digest() for p in self.studio.pieces], "seed": self.cfg.seed}
        if self.asks_feedback:
            judges = [judge_name(feedback.judge.kind, p) for p in self.studio.pieces]
            shared |= {"answers": settings(feedback.answers), "judges": judges}
            if "openai" in shared["judges"]:
                shared["judge"] = self._judge_identity()
        if self.voice.stored == "revised":
            tests = [
                [e.revised, e.revised_finished] for m in self.studio.material for e in m.select("in", "test")
            ]
            shared["revisions"] = call_key(revisions=tests)
        if self.plan is None:
            return shared if self.asks_feedback or self.name != "base" else {}
        return shared | {
            "plan": self._resolved(self.plan),
            "train_data": [m.digest() for m in self.studio.material],
        }

    def _resolved(self, plan: Plan) -> dict[str, Any]:
        """What its adapters are known by."""
        from c3po_bench.feedback.training.adapters import resolved

        return resolved(plan, self.studio.workshop)

    def _judge_identity(self) -> dict[str, Any]:
        """What decides a judge model's judgements: who it is, how it draws, and what it is asked."""
        chat = self.cfg.feedback.judge.chat
        fields = ("kind", "model", "base_url", "temperature", "top_p", "max_tokens")
        asked = [instructions.judge(piece, "prompt", "first", "second") for piece in self.studio.pieces]
        return {name: getattr(chat, name) for name in fields} | {"asked": call_key(asked=asked)}

    def settings(self) -> dict[str, Any]:
        """Flat columns for the ablation table."""
        feedback = self.cfg.feedback
        shared = {
            "pieces": ",".join(p.id for p in self.studio.pieces),
            "generator": feedback.generator.kind,
            "prompts_in": feedback.n_in,
            "prompts_near": feedback.n_near,
            "prompts_out": feedback.n_out,
            "max_new_tokens": feedback.answers.max_new_tokens,
            "prompt_differs": self.voice.wrap is not None,
        }
        plan = self._resolved(self.plan) if self.plan else {}
        return shared | {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in plan.items()}

    def lm(self) -> LM:
        """The arm's LM; trains its adapters if they are not in the cache."""
        from c3po_bench.feedback.lm import FeedbackLM

        subject = self.studio.workshop.subject
        self._judged_before = Counter(self.studio.judged)
        model, adapters = subject.model, {}
        if self.plan is not None or self.voice.stored == "revised":
            material = self.studio.material
        else:
            material = self.studio.tests if self.asks_feedback else []
        if self.plan is not None:
            model, adapters = self.tuned_model()
        else:
            subject.release()
        return FeedbackLM(
            self.voice, material, self.studio, model, adapters, self._spend, self.cfg.batch_size
        )

    def adapter_name(self) -> str:
        """A folder name for this arm's adapters on this model and data."""
        from c3po_bench.feedback.training.adapters import adapter_folder

        assert self.plan is not None
        folders = [adapter_folder(self.plan, [m], self.studio.workshop).name for m in self.studio.material]
        return f"{self.name}-{call_key(folders=folders)[:12]}"

    def tuned_model(self) -> tuple[Any, dict[str, str]]:
        """The model with its adapters (trained where missing), and which of them speaks for which piece."""
        from c3po_bench.feedback.training.adapters import train_adapter, training_record

        plan, material, workshop = self.plan, self.studio.material, self.studio.workshop
        assert plan is not None
        way = split_name(self.name)[1]
        groups = [material] if way == JOINT else [[m] for m in material]
        folders: dict[str, Path] = {}
        for group in groups:
            folder = train_adapter(plan, group, workshop)
            self.records.append(training_record(folder))
            folders["on_joint" if way == JOINT else f"on_{group[0].piece.id}"] = folder
        model = workshop.subject.adapted(folders)
        pieces = [m.piece.id for m in material]
        if way == JOINT:
            return model, dict.fromkeys(pieces, "on_joint")
        if way == MIX:
            model.add_weighted_adapter(list(folders), [1.0] * len(folders), "on_mix", combination_type="cat")
            return model, dict.fromkeys(pieces, "on_mix")
        return model, {piece: f"on_{piece}" for piece in pieces}

    def _spend(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def cost(self) -> dict[str, Any]:
        """Seconds by phase; training counts in full also where the adapter came from the cache, the shared data for no arm."""
        from c3po_bench.feedback.lm import BASELINES

        phases = {
            name: {"seconds": seconds, "flops": 0}
            for name, seconds in self._seconds.items()
            if name != BASELINES
        }
        if self.records:
            phases["train"] = {"seconds": sum(r["seconds"] for r in self.records), "flops": 0}
        shared = self._seconds.get(BASELINES, 0.0)
        return {"phases": phases, "peak_memory_bytes": peak_resident(), "credited_seconds": -shared}

    def report(self) -> dict[str, Any]:
        """Counts of data and gaps, training and validation curves (means over adapters), notes.

        Gaps are those of the data, which all arms share, of this arm's adapters and of the judgements on this
        arm.
        """
        gaps = self.studio.workshop.counts - self.studio.judged + (self.studio.judged - self._judged_before)
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
        notes = [f"{name}: {value:+.3f}" for name, value in self.studio.judge_report().items()]
        notes += [f"{name}: {n}" for name, n in sorted(gaps.items())]
        notes += unworded(self.name, self.backend.tasks.configs)
        return {"counts": dict(counts), "curves": curves, "notes": notes}

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """Signed scores into the rows, and the S metrics, drift and degeneration into the result.

        A row's `doc_hash` then covers the baseline answer too: rows that were scored against others are not
        comparable.
        """
        started = time.perf_counter()
        tuned = [row for row in rows if "feedback_id" in row]
        for row, score in zip(tuned, self.studio.scores(tuned), strict=True):
            row["score"] = score
            row["doc_hash"] = content_hash([row["doc_hash"], row["baseline_response"]], 16)
        self._unparsed = sum(bool(row.get(UNPARSED)) for row in tuned)
        self._spend("judge", time.perf_counter() - started)
        return rows, extra_metrics(rows)
