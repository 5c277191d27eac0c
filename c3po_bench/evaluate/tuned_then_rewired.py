"""The backend `both`.

Feedback-tuned, rewired, and rewired after tuning, side by side on one model and one base.

An arm's name is one of the feedback backend's, one of the rewiring backend's, or two of them as
``RECIPE_then_METHOD`` (for example ``c3po_then_ngd``): the recipe's adapter is merged into the model and the
method then rewires that one. This module knows both backends; they do not know each other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from c3po_bench.config import Config, ModelConfig
from c3po_bench.contract import Answer, Cost, Item, MakeTasks, Report, TimedParts
from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.answering import prompt_ids, stop_ids
from c3po_bench.feedback.arms import ARMS as FEEDBACK_ARMS
from c3po_bench.feedback.arms import PROMPT_VARIANTS
from c3po_bench.feedback.backend import FeedbackArm, FeedbackBackend
from c3po_bench.feedback.measures import compared
from c3po_bench.feedback.session import FeedbackSession
from c3po_bench.feedback.tasks import GROUP, SCOPE_OF
from c3po_bench.models.routing import family_of
from c3po_bench.rewiring.arms import ARMS, check_tasks
from c3po_bench.rewiring.backend import RewiringBackend
from c3po_bench.rewiring.pathway import critical_layers
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.store.files import writing
from c3po_bench.store.records import file_checksums, lost_file, read_sealed, write_sealed

log = logging.getLogger(__name__)
THEN = "_then_"  # RECIPE_then_METHOD rewires a tuned model


def rewiring_names() -> list[str]:
    """Arms of the rewiring backend but base and base_again, which are the feedback backend's here."""
    return [name for name in ARMS if ARMS[name].role not in ("base", "repeat")]


def divide(names: list[str]) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Feedback arms, rewiring arms and (recipe, method) chains.

    `UserError` for a name that is none of them.
    """
    tuned, rewired, chains = [], [], []
    for name in names:
        first, then, second = name.partition(THEN)
        if name in FEEDBACK_ARMS:
            tuned.append(name)
        elif name in rewiring_names():
            rewired.append(name)
        elif then and first in PROMPT_VARIANTS and second in rewiring_names():
            raise UserError(
                f"arm {name!r}: {first} tunes nothing to be rewired: start with a recipe, as c3po{THEN}ngd"
            )
        elif then and first in FEEDBACK_ARMS and second in rewiring_names():
            chains.append((first, second))
        else:
            raise unknown("arm", name, [*FEEDBACK_ARMS, *rewiring_names(), f"c3po{THEN}ngd"])
    return tuned, rewired, chains


def _rewires(name: str) -> bool:
    return name in rewiring_names() and name not in FEEDBACK_ARMS


class BothBackend:
    """Arms of both backends; all are compared with the untouched model."""

    def __init__(self, cfg: Config, feedback: FeedbackBackend) -> None:
        self.cfg, self.feedback, self.tasks = cfg, feedback, feedback.tasks
        self.tuned, self.rewired, self.chains = divide(list(cfg.arms))
        self.model_hash = feedback.model_hash
        self._plain: RewiringBackend | None = None  # over the untuned model, to look at the references before
        if self.rewired or self.chains:  # what rewiring refuses it refuses before anything is tuned or scored
            check_tasks(self._of_rewiring(cfg), self.tasks)
            critical_layers(
                cfg.method.layers, list(family_of(self.feedback.session.context.subject.model).layers)
            )
            self._plain = RewiringBackend(self._of_rewiring(cfg), self.tasks)

    @staticmethod
    def _of_feedback(cfg: Config) -> Config:
        """The config with the feedback backend's arms, and all options but the rewiring backend's.

        It refuses unknown ones.
        """
        tuned, _, chains = divide(list(cfg.arms))
        kept = list(dict.fromkeys([*tuned, *(first for first, _ in chains)]))
        return replace(
            cfg,
            arms=kept,
            arm_options={n: o for n, o in cfg.arm_options.items() if n in kept or not _rewires(n)},
        )

    @staticmethod
    def _of_rewiring(cfg: Config, method: str | None = None) -> Config:
        """The config with the rewiring backend's arms, or one, and the options of all.

        A control has those of its arm.
        """
        _, rewired, chains = divide(list(cfg.arms))
        kept = list(dict.fromkeys([*rewired, *(second for _, second in chains)]))
        options = {name: given for name, given in cfg.arm_options.items() if _rewires(name)}
        return replace(cfg, arms=[method] if method else kept, arm_options=options)

    @staticmethod
    def check(cfg: Config) -> None:
        """Whatever either backend refuses; and several pieces, which no single model can be tuned on."""
        _, rewired, chains = divide(list(cfg.arms))
        if cfg.seeds and (
            single := [f"{a}{THEN}{b}" for a, b in chains] + [r for r in rewired if ARMS[r].trains]
        ):
            raise UserError(
                f"seeds={cfg.seeds}: arm {single[0]!r} of backend=both is trained with `seed` alone: leave one out"
            )
        FeedbackBackend.check(BothBackend._of_feedback(cfg))
        RewiringBackend.check(BothBackend._of_rewiring(cfg))
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

    @classmethod
    def open(cls, cfg: Config, make_tasks: MakeTasks) -> BothBackend:
        """With the feedback backend's tasks."""
        return cls(cfg, FeedbackBackend.open(cls._of_feedback(cfg), make_tasks))

    def check_items(self, items: Iterable[Item]) -> dict[str, tuple[int, int]]:
        """As the feedback backend does; and the references, as the rewiring backend does."""
        if self._plain is not None:
            self._plain.check_items(())
        return self.feedback.check_items(items)

    def timed_parts(self) -> TimedParts:
        """The untuned model, its tokenizer, and what the rewired arms need."""
        return self._plain.timed_parts() if self._plain is not None else self.feedback.timed_parts()

    def arms(self) -> Iterator[Any]:
        """Base, tuned, rewired, rewired after tuning."""
        yield from self.feedback.arms(self.tuned)
        for name in self.rewired:
            yield RewiredArm(self, name, None)
        for first, second in self.chains:
            yield RewiredArm(self, second, first)

    def close(self) -> None:
        """Take every adapter off the model."""
        self.feedback.close()


class RewiredArm:
    """An arm of the rewiring backend, on the model or on the model with a recipe's adapter merged in."""

    def __init__(self, backend: BothBackend, method: str, recipe: str | None) -> None:
        self.backend, self.method, self.row = backend, method, ARMS[method]
        if recipe:
            row, before = self.row, f"{recipe}{THEN}"
            self.row = replace(
                row,
                name=before + row.name,
                title=f"{FEEDBACK_ARMS[recipe].title} then {row.title}",
                control_of=row.control_of and before + row.control_of,
                version=row.version - 1 + FEEDBACK_ARMS[recipe].version,
            )
        self.tuned = FeedbackArm(backend.feedback, recipe) if recipe else None
        self._inner: Any = None

    @property
    def inner(self) -> Any:
        """The rewiring backend's arm, made (and the adapter trained and merged) when first needed."""
        if self._inner is None:
            cfg = self.backend._of_rewiring(self.backend.cfg, self.method)
            if self.tuned is not None:
                cfg = replace(cfg, model=merged_model(self.tuned, cfg.model))
            made = RewiringBackend(cfg, self.backend.tasks)
            self._inner = next(arm for arm in made.arms() if arm.row.name == self.method)
        return self._inner

    def identity(self) -> dict[str, Any]:
        """Of tuning and of rewiring; and the chat template, where lm-eval would not ask so by itself."""
        tuned = self.tuned.identity() if self.tuned else FeedbackArm(self.backend.feedback, "base").identity()
        template = template_identity(self.backend.feedback.session)
        return {"tuned": tuned, "rewired": self.inner.identity(), **template}

    def settings(self) -> dict[str, Any]:
        """The method's columns, and the tuning's with a prefix."""
        tuned = self.tuned.settings() if self.tuned else {}
        return {**self.inner.settings(), **{f"tuned_{key}": value for key, value in tuned.items()}}

    def prepare(self) -> None:
        """Read the references with the model to be rewired: while the arm waited, others worked on that model."""
        self._inner = None
        self.inner.prepare()

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Stock items as the rewired model answers them.

        Feedback prompts by the same chat template as everybody.
        """
        asked = [self._as_chat(item) if item.metadata else item for item in items]
        answers = self.inner.answer(asked)
        prompts = [item.prompt for item in items if item.metadata]
        baselines = self.backend.feedback.session.baselines(prompts) if prompts else {}
        return [
            self._compared(item, chat, answer, baselines[item.prompt]) if item.metadata else answer
            for item, chat, answer in zip(items, asked, answers, strict=True)
        ]

    def _as_chat(self, item: Item) -> Item:
        """The prompt as a chat in tokens, with those that end an answer: of text and EOS, others would be made."""
        subject = self.backend.feedback.session.context.subject
        ids = prompt_ids(subject.tokenizer, item.prompt)
        stops = stop_ids(subject.tokenizer, subject.model)
        return replace(
            item, prompt=subject.tokenizer.decode(ids), prompt_ids=tuple(ids), stop_ids=tuple(stops)
        )

    @staticmethod
    def _compared(item: Item, chat: Item, answer: Answer, baseline: Any) -> Answer:
        """The answer to `item`, asked as `chat`, beside the base model's, as feedback arms record it, without drift."""
        asked = answer.details.get("rendered", [chat.prompt])
        text, tokens = (answer.text or "").strip(), len(answer.token_ids)
        details = compared(item, text, tokens < int(item.decoding["max_gen_toks"]), tokens, baseline)
        return replace(answer, text=text, details={**answer.details, **details, "rendered": asked})

    def cost(self) -> Cost:
        """The rewiring's; training is the tuned arm's."""
        return self.inner.cost()

    def report(self) -> Report:
        """The rewiring's."""
        return self.inner.report()

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """The same feedback scores as every arm, and what the rewiring's arm adds."""
        rows, more = self.inner.finish(rows)
        rows, scores = FeedbackArm(self.backend.feedback, "base").finish(rows)
        return rows, {**more, **scores}

    def close(self) -> None:
        """Nothing stays in the model."""
        self.inner.close()


def template_identity(session: FeedbackSession) -> dict[str, Any]:
    """An example of a prompt's ids, and those that end an answer.

    Nothing where text and the EOS token say the same.
    """
    subject = session.context.subject
    ids, stops = prompt_ids(subject.tokenizer, "?"), stop_ids(subject.tokenizer, subject.model)
    text = subject.tokenizer.decode(ids)
    same = stops == [subject.tokenizer.eos_token_id] and list(subject.tokenizer(text).input_ids) == ids
    return {} if same else {"asked": [ids, stops]}


class Merged(TypedDict):
    """merged.json: written last into the folder of a merged model."""

    arm: str
    model: str
    files: dict[str, str]  # checksums


def _is_whole(done: Path) -> bool:
    """Whether a merged model is there, and no file of it is missing or damaged."""
    record = read_sealed(done, Merged)
    lost = lost_file(done.parent, record["files"]) if record else None
    if lost:
        log.warning("%s is missing or damaged: it is made anew", done.parent / lost)
    return record is not None and not lost


def merged_model(arm: FeedbackArm, model: ModelConfig) -> ModelConfig:
    """The config of the model with the arm's adapter merged in, saved once in the cache as a Hugging Face folder."""
    folder = arm.session.context.folder / "merged" / arm.adapter_name()
    done = folder / "merged.json"
    if not _is_whole(done):
        peft_model, adapters = arm.tuned_model()  # before the lock: the ranks of a run train together
        with exclusive_lock(folder):
            if not _is_whole(done):
                log.info("merging the adapter of %s into the model", arm.row.name)
                tuned = peft_model.merge_and_unload(adapter_names=sorted(set(adapters.values())))
                with writing(arm.session.context.folder, "feedback.cache_dir"):
                    tuned.save_pretrained(folder)
                    arm.session.context.subject.tokenizer.save_pretrained(folder)
                    arm.session.context.subject.forget()
                    files = file_checksums(folder, skip=(done.name,))
                    write_sealed(done, {"arm": arm.row.name, "model": arm.backend.model_hash, "files": files})
    return replace(
        model, name=f"{model.name}+{arm.row.name}", kind="hf", path=str(Path(folder)), revision=None
    )
