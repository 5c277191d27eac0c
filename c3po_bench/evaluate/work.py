"""What an experiment has to do, in tokens: the cost formula of forecasts, budgets and sweep plans.

A question is read once by the base model. An arm reads it again so many times as its row says
(`ArmRow.passes`, for ten steps over three neighbors). References are read and embedded once, for the first
arm that needs them; a training reads its rows several times. Rates of a machine (`Rates`) turn this into
seconds. No torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from c3po_bench.config import Config
from c3po_bench.contract import ArmRow
from c3po_bench.feedback.arms import ARMS as FEEDBACK_ARMS
from c3po_bench.feedback.arms import PROMPT_VARIANTS, plan_of
from c3po_bench.feedback.training.recipes import Plan
from c3po_bench.rewiring.arms import ARMS as REWIRING_ARMS
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.store.identity import content_hash

ALL_REFERENCES = 34000
"""References of the six benchmarks together, where `references.limit` is null."""
TRAINED_ROW = 10.0
"""Passes over a reference that a training step costs: forward, backward, and a share of the evaluations."""
READ_AGAIN, REUSED = 0.3, 0.1
"""What costs less the second time: a prompt whose states are kept, and a descent that is taken over."""
TRIALS, HELD_OUT = 20, 300
"""Settings that `method.tune` tries at most, and the references that each is tried on."""
CHAT_TOKENS = 45
"""A prompt about feedback, in its chat template."""
USUAL_ANSWER = 0.75
"""An answer of a chat model ends before its token limit: the share of it that is written, in the mean."""
DRIFT = 4.0
"""Drift reads prompt and answer under two models, and compares whole distributions of the vocabulary."""
PAIR_PASSES, ROW_PASSES = 4.0, 3.0
"""Passes that a training row costs: forward, twice as much backward, and of pairs the reference model."""


@dataclass(frozen=True)
class Work:
    """Tokens that the model reads, tokens that it writes, questions that the embedder embeds."""

    read: float = 0.0
    written: float = 0.0
    embedded: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.read + other.read, self.written + other.written, self.embedded + other.embedded)

    def __mul__(self, factor: float) -> Work:
        return Work(self.read * factor, self.written * factor, self.embedded * factor)


@dataclass(frozen=True)
class Rates:
    """Seconds for a token read, a token written and a question embedded.

    `basis` says where they come from.
    """

    read: float
    written: float
    embedded: float
    basis: str = "measured on this machine"

    def seconds(self, work: Work) -> float:
        """How long the work takes."""
        return work.read * self.read + work.written * self.written + work.embedded * self.embedded


@dataclass(frozen=True)
class TaskSize:
    """A leaf task: its number of items, and the mean tokens of one: prompt and all options; answer."""

    name: str
    items: int
    read: float
    written: float = 0.0
    about_feedback: bool = False

    def chosen(self, limit: int | None) -> int:
        """Items that an experiment with this limit asks."""
        return self.items if limit is None else min(limit, self.items)


@dataclass(frozen=True)
class ArmWork:
    """What an arm does before its first item, and for an item of each task."""

    arm: str
    once: Work
    items: tuple[Work, ...]

    def total(self, tasks: Sequence[TaskSize], limit: int | None) -> Work:
        """All of it, for the first `limit` items of each task."""
        return sum(
            (each * task.chosen(limit) for each, task in zip(self.items, tasks, strict=True)), self.once
        )


def works(cfg: Config, tasks: Sequence[TaskSize]) -> list[ArmWork]:
    """The work of each arm, base first; what arms share is charged to the first that needs it."""
    return works_of_cells([cfg], tasks)


def works_of_cells(
    cells: Sequence[Config], tasks: Sequence[TaskSize], shared: set[str] | None = None
) -> list[ArmWork]:
    """The same for the cells of a sweep; a run that several cells share counts once.

    `shared` names what is not counted, `references` and the `questions` that are embedded, and has `alone` in
    it where each arm runs in a process of its own.
    """
    shared, known, found = set() if shared is None else shared, set[str](), []
    kept = frozenset(shared)
    for cfg in cells:
        shared -= {"read", "solutions", "questions"} - kept  # each cell reads and embeds its questions anew
        for name in dict.fromkeys(["base", *cfg.arms]):
            if (key := run_key(cfg, name)) not in known:
                known.add(key)
                found += _of_arm(cfg, name, tasks, shared)
    return found


def run_key(cfg: Config, arm: str) -> str:
    """Equal for two cells of a sweep that share the run of an arm."""
    values = asdict(cfg)
    keys = ["model", "tasks", "limit", "scoring", "shard"]
    if arm != "base":
        keys += ["method", "references", "embedder", "seed", "engine", "feedback"]
    return content_hash([arm, {key: values[key] for key in keys}, arm != "base" and cfg.arm_options.get(arm)])


def _of_arm(cfg: Config, name: str, tasks: Sequence[TaskSize], shared: set[str]) -> Iterator[ArmWork]:
    recipe, then, method = name.partition("_then_")
    tuned = cfg.backend.name != "rewiring" and recipe in FEEDBACK_ARMS
    if then:
        tuning, rewiring = _tuned(cfg, recipe, tasks, set()), _rewired(cfg, method, tasks, set())
        yield ArmWork(name, tuning.once + rewiring.once, rewiring.items)
    elif tuned:
        seeds = len(cfg.seeds) if FEEDBACK_ARMS[name].trains and cfg.seeds else 1
        yield from (_tuned(cfg, name, tasks, shared) for _ in range(seeds))
    else:
        trains = name in REWIRING_ARMS and REWIRING_ARMS[name].trains
        yield from (
            _rewired(cfg, name, tasks, shared) for _ in range(len(cfg.seeds) if trains and cfg.seeds else 1)
        )


def references(cfg: Config) -> int:
    """How many references are read."""
    return int(cfg.references.limit or ALL_REFERENCES) if cfg.references.tasks else 0


def _rewired(cfg: Config, name: str, tasks: Sequence[TaskSize], shared: set[str]) -> ArmWork:
    row = REWIRING_ARMS[name] if name in REWIRING_ARMS else ArmRow(name, name, "method")
    stock = [task for task in tasks if not task.about_feedback] or list(tasks)
    length = sum(task.read for task in stock) / max(1, len(stock))
    once, embeds = Work(), row.references in ("retrieved", "all") and row.name != "base"
    if row.references in ("retrieved", "random", "all") and "references" not in shared:
        shared.add("references")
        once += Work(read=length, embedded=1.0) * references(cfg)
    if row.permuted_options:
        once += Work(read=length, embedded=1.0) * references(cfg)
    options = {"steps": 30, "batch_size": 8, "shots": 5} | cfg.arm_options.get(name, {})
    if row.references == "training":
        seen = float(options["steps"]) * float(options["batch_size"])
        once += Work(read=length * TRAINED_ROW) * seen
    passes = row.passes * _share_of_descent(cfg, row)
    if name == "icl":
        passes = 2.0 * float(options["shots"])
    if cfg.method.tune != "none" and row.role != "base" and f"tuned {row.control_of or name}" not in shared:
        shared.add(f"tuned {row.control_of or name}")
        once += Work(read=length * passes) * (TRIALS * min(HELD_OUT, references(cfg) / 2))
    own, together = 1.0, "alone" not in shared
    if name == "knn_vote":  # it asks the model nothing
        own = passes = 0.0
    elif together and row.builds == "solver" and "read" in shared:
        own = READ_AGAIN
    if together and row.solution == "reuse" and "solutions" in shared:
        passes *= REUSED
    shared |= {"read"} | ({"solutions"} if row.solution == "store" else set())
    first = embeds and "questions" not in shared
    if embeds:
        shared.add("questions")
    items = (Work(task.read * (own + passes), task.written, float(first)) for task in tasks)
    return ArmWork(name, once, tuple(items))


def _share_of_descent(cfg: Config, row: ArmRow) -> float:
    """What a descent costs beside one of the schema's default steps and neighbors; 1 for arms without."""
    usual, method = MethodConfig(), cfg.method
    steps = method.steps / usual.steps if row.solution or row.role == "ceiling" else 1.0
    near = method.neighbors.k / usual.neighbors.k if row.references == "retrieved" else 1.0
    return max(0.2, steps * near) if row.uses_learning_rate else 1.0


def _tuned(cfg: Config, name: str, tasks: Sequence[TaskSize], shared: set[str]) -> ArmWork:
    section, variant = cfg.feedback, PROMPT_VARIANTS.get(name)
    written = section.answers.max_new_tokens * USUAL_ANSWER
    answer, row = Work(CHAT_TOKENS, written), CHAT_TOKENS + written
    plan = plan_of(name, section, cfg.arm_options)
    pieces, prompts = len(section.pieces), section.n_in + section.n_near + section.n_out
    once = Work()
    if (plan is not None or variant is not None and variant.stored == "revised") and "data" not in shared:
        shared.add("data")
        once += answer * (pieces * prompts * (1 - section.test_share))
    if plan is not None:
        once += _training(plan, row) * pieces
    items = []
    for task in tasks:
        if not task.about_feedback:
            items.append(Work(task.read, task.written))
            continue
        own = Work(read=0.5)
        if "answers" not in shared:  # the base model's, which every arm is compared with
            own += answer
        if variant is None or not variant.stored:
            longer = variant.length if variant is not None else 1
            wrapped = 2.0 if variant is not None and variant.wrap is not None else 1.0
            drift = 0.0 if variant is not None and variant.read else DRIFT * row
            own += Work(CHAT_TOKENS * wrapped + drift * wrapped, written * longer)
        items.append(own)
    shared.add("answers")
    return ArmWork(name, once, tuple(items))


def _training(plan: Plan, row: float) -> Work:
    """What an adapter costs: its steps, each of pairs or rows in scope and of what is kept outside."""
    cfg, train = plan.cfg, plan.cfg.train
    pairs = plan.recipe.objective == "pairs"
    steps = train.steps if pairs else train.sft_steps
    inside = cfg.n_in * (1 - cfg.test_share)
    rows = train.batch_size * train.gradient_accumulation_steps
    steps = steps or max(1.0, train.epochs * inside / rows)
    scopes = int(plan.recipe.near) + int(plan.recipe.out)
    kept = scopes * train.constraint_batch_size * train.gradient_accumulation_steps
    step = rows * (2 * PAIR_PASSES if pairs else ROW_PASSES) + kept * (
        PAIR_PASSES if plan.constraint == "kl" else ROW_PASSES
    )
    before = _training(plan.start, row) if plan.start else Work()
    return Work(read=steps * step * row) + before


def total(parts: Sequence[ArmWork], tasks: Sequence[TaskSize], limit: int | None) -> Work:
    """The work of all arms on the first `limit` items of each task."""
    return sum((part.total(tasks, limit) for part in parts), Work())
