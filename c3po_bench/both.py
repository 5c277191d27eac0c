"""The backend `both`.

Feedback-tuned, rewired, and rewired after tuning, side by side on one model and one base.

An arm's name is one of the feedback backend's, one of the rewiring backend's, or two of them as
``RECIPE_then_METHOD`` (for example ``c3po_then_ngd``): the recipe's adapter is merged into the model and the
method then rewires that one. This module knows both backends; they do not know each other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.analysis.roles import THEN
from c3po_bench.backend import load_backend
from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.answering import prompt_ids, stop_ids
from c3po_bench.feedback.arms import PROMPT_VARIANTS
from c3po_bench.feedback.arms import arm_names as feedback_names
from c3po_bench.feedback.backend import FeedbackArm, FeedbackBackend
from c3po_bench.feedback.tasks import GROUP, SCOPE_OF
from c3po_bench.models.families import family_of
from c3po_bench.rewiring.arms import arm_names as all_rewiring_names
from c3po_bench.rewiring.arms import check_tasks
from c3po_bench.rewiring.pathway import critical_layers
from c3po_bench.runtime.locks import exclusive_lock

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from c3po_bench.config import Config, ModelConfig
    from c3po_bench.feedback.session import FeedbackSession
    from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger(__name__)


def rewiring_names() -> list[str]:
    """Arms of the rewiring backend but base, which is the feedback backend's here."""
    return [name for name in all_rewiring_names() if name != "base"]


def divide(names: list[str]) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Feedback arms, rewiring arms and (recipe, method) chains.

    `UserError` for a name that is none of them.
    """
    tuned, rewired, chains = [], [], []
    for name in names:
        first, then, second = name.partition(THEN)
        if name in feedback_names():
            tuned.append(name)
        elif name in rewiring_names():
            rewired.append(name)
        elif then and first in PROMPT_VARIANTS and second in rewiring_names():
            raise UserError(
                f"arm {name!r}: {first} tunes nothing to be rewired: start with a recipe, as c3po{THEN}ngd"
            )
        elif then and first in feedback_names() and second in rewiring_names():
            chains.append((first, second))
        else:
            raise unknown("arm", name, [*feedback_names(), *rewiring_names(), f"c3po{THEN}ngd"])
    return tuned, rewired, chains


def _rewires(name: str) -> bool:
    return name in rewiring_names() and name not in feedback_names()


class BothBackend:
    """Arms of both backends; all are compared with the untouched model."""

    def __init__(self, cfg: Config, tasks: TaskSet) -> None:
        self.cfg, self.tasks = cfg, tasks
        self.tuned, self.rewired, self.chains = divide(list(cfg.arms))
        self.feedback = FeedbackBackend(self._of_feedback(cfg), tasks)
        self.model_hash = self.feedback.model_hash
        if self.rewired or self.chains:  # what rewiring refuses it refuses before anything is tuned or scored
            check_tasks(self._of_rewiring(cfg), tasks)
            critical_layers(
                cfg.method.layers, list(family_of(self.feedback.session.context.subject.model).layers)
            )

    @staticmethod
    def _of_feedback(cfg: Config) -> Config:
        """The config with the feedback backend's arms, and all options but the rewiring backend's.

        It refuses unknown ones.
        """
        tuned, _, chains = divide(list(cfg.arms))
        kept = list(dict.fromkeys([*tuned, *(first for first, _ in chains)]))
        return replace(cfg, arms=kept, arm={n: o for n, o in cfg.arm.items() if n in kept or not _rewires(n)})

    @staticmethod
    def _of_rewiring(cfg: Config, method: str | None = None) -> Config:
        """The config with the rewiring backend's arms, or one, and the options of all.

        A control has those of its arm.
        """
        _, rewired, chains = divide(list(cfg.arms))
        kept = list(dict.fromkeys([*rewired, *(second for _, second in chains)]))
        options = {name: given for name, given in cfg.arm.items() if _rewires(name)}
        return replace(cfg, arms=[method] if method else kept, arm=options)

    @staticmethod
    def check(cfg: Config) -> None:
        """Whatever either backend refuses; and several pieces, which no single model can be tuned on."""
        _, rewired, chains = divide(list(cfg.arms))
        FeedbackBackend.check(BothBackend._of_feedback(cfg))
        load_backend("rewiring").check(BothBackend._of_rewiring(cfg))
        drawn, asked = (
            cfg.feedback.answers.temperature > 0,
            [name for name in cfg.tasks if name in (GROUP, *SCOPE_OF)],
        )
        if drawn and asked and (rewired or chains):
            arm = [*rewired, *(f"{first}{THEN}{second}" for first, second in chains)][0]
            raise UserError(
                f"arm {arm!r} samples no answers and would be scored against sampled ones: "
                f"set feedback.answers.temperature=0, or leave out task {asked[0]!r}"
            )
        if (
            chains
            and len(cfg.feedback.pieces) > 1
            and any(not f.endswith(("_joint", "_mix")) for f, _ in chains)
        ):
            raise UserError(
                f"a chain such as c3po{THEN}ngd needs one adapter: one piece, or a _joint or _mix arm"
            )

    @staticmethod
    def own_tasks(cfg: Config) -> dict[str, dict[str, dict[str, Any]]]:
        """The feedback backend's."""
        return FeedbackBackend.own_tasks(BothBackend._of_feedback(cfg))

    def arms(self) -> Iterator[Any]:
        """Base, tuned, rewired, rewired after tuning."""
        yield from self.feedback.arms(self.tuned)
        for name in self.rewired:
            yield RewiredArm(self, name, None)
        for first, second in self.chains:
            yield RewiredArm(self, second, first)


class RewiredArm:
    """An arm of the rewiring backend, on the model or on the model with a recipe's adapter merged in."""

    def __init__(self, backend: BothBackend, method: str, recipe: str | None) -> None:
        self.backend, self.method = backend, method
        self.name = f"{recipe}{THEN}{method}" if recipe else method
        self.tuned = FeedbackArm(backend.feedback, recipe) if recipe else None
        self._inner: Any = None

    @property
    def inner(self) -> Any:
        """The rewiring backend's arm, made (and the adapter trained and merged) when first needed."""
        if self._inner is None:
            cfg = self.backend._of_rewiring(self.backend.cfg, self.method)
            if self.tuned is not None:
                cfg = replace(cfg, model=merged_model(self.tuned, cfg.model))
            made = load_backend("rewiring")(cfg, self.backend.tasks)
            self._inner = next(arm for arm in made.arms() if arm.name == self.method)
        return self._inner

    @property
    def reads_labels(self) -> bool:
        """The rewiring arm's."""
        return self.inner.reads_labels

    def identity(self) -> dict[str, Any]:
        """Of tuning and of rewiring; and how it is asked, where that is not as lm-eval would ask."""
        tuned = self.tuned.identity() if self.tuned else FeedbackArm(self.backend.feedback, "base").identity()
        return {"tuned": tuned, "rewired": self.inner.identity(), **own_way(self.backend.feedback.session)}

    def settings(self) -> dict[str, Any]:
        """The method's columns, and the tuning's with a prefix."""
        tuned = self.tuned.settings() if self.tuned else {}
        return {**self.inner.settings(), **{f"tuned_{key}": value for key, value in tuned.items()}}

    def lm(self) -> LM:
        """The rewired model, which is asked feedback prompts by the same chat template as everybody."""
        from c3po_bench.feedback.echo import EchoLM

        self._inner = None  # where it had to wait since `identity`, other arms have been at work on its model
        return EchoLM(self.inner.lm(), self.backend.feedback.session)

    def cost(self) -> dict[str, Any]:
        """The rewiring's; training is the tuned arm's."""
        return self.inner.cost()

    def report(self) -> dict[str, Any]:
        """The rewiring's."""
        return self.inner.report()

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """The same feedback scores as every arm."""
        return FeedbackArm(self.backend.feedback, "base").finish(rows)


def own_way(session: FeedbackSession) -> dict[str, Any]:
    """An example of a prompt's ids, and those that end an answer.

    Nothing where text and the EOS token say the same.
    """
    subject = session.context.subject
    ids, stops = prompt_ids(subject.tokenizer, "?"), stop_ids(subject.tokenizer, subject.model)
    told = subject.tokenizer.decode(ids)
    same = stops == [subject.tokenizer.eos_token_id] and list(subject.tokenizer(told).input_ids) == ids
    return {} if same else {"asked": [ids, stops]}


def merged_model(arm: FeedbackArm, model: ModelConfig) -> ModelConfig:
    """The config of the model with the arm's adapter merged in, saved once in the cache as a Hugging Face folder."""
    from c3po_bench.store.files import write_text

    folder = arm.session.context.folder / "merged" / arm.adapter_name()
    done = folder / "merged.json"
    if not done.exists():
        peft_model, adapters = arm.tuned_model()  # before the lock: the ranks of a run train together
        with exclusive_lock(folder):
            if not done.exists():
                log.info("merging the adapter of %s into the model", arm.name)
                tuned = peft_model.merge_and_unload(adapter_names=sorted(set(adapters.values())))
                tuned.save_pretrained(folder)
                arm.session.context.subject.tokenizer.save_pretrained(folder)
                arm.session.context.subject.forget()
                write_text(done, json.dumps({"arm": arm.name, "model": arm.backend.model_hash}))
    return replace(model, name=f"{model.name}+{arm.name}", kind="hf", path=str(Path(folder)), revision=None)
