"""What the parts of the program promise each other: an item goes in, an answer comes out.

A task is rendered once into items. An arm answers items, a chunk at a time, and an answer holds everything
that the arm knows about its item. Nothing here knows a model, a backend or lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

CHOICES, TEXT = "choices", "text"
"""The two kinds of items: options that are scored, and a prompt that is continued."""


@dataclass(frozen=True)
class Item:
    """One question as its task renders it. Evaluated items and references are the same class.

    Attributes:
        id: the task and the number of the document in it, whatever the limit, the shard or the rendering.
        kind: `CHOICES` or `TEXT`. A task that asks both ways makes two items of a document.
        key: hash of what is asked. Everything that is drawn for the item is drawn with a seed made of it.
        question: the text that retrieval embeds: no examples, no options, never the label.
        requests: `CHOICES`: (context, continuation) pairs, as lm-eval renders them.
        n_choices: how many of the requests are the options, in order. Further requests belong to a metric,
            such as the options without their context for mutual information.
        lengths: what the scoring rule divides each option's log-likelihood by; empty where it divides by
            nothing.
        prompt: `TEXT`: what is to be continued.
        decoding: `TEXT`: lm-eval's generation settings (`until`, `max_gen_toks`, `temperature`, ...).
        prompt_ids: `TEXT`: the prompt in tokens, where it is a rendered chat; `prompt` is then for reading
            only.
        stop_ids: the tokens that end the answer to such a chat.
        metadata: what the task says besides, such as a feedback's id and scope. Not part of the key.
        gold: which option is right. None on evaluated items, except for arms that declare to read labels.
    """

    id: tuple[str, int]
    kind: str
    key: str
    question: str
    requests: tuple[tuple[str, str], ...] = ()
    n_choices: int = 0
    lengths: tuple[float, ...] = ()
    prompt: str = ""
    decoding: Mapping[str, Any] = field(default_factory=dict, hash=False)
    prompt_ids: tuple[int, ...] | None = None
    stop_ids: tuple[int, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    gold: int | None = None

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """The requests that are options, without those that only a metric asks for."""
        return self.requests[: self.n_choices]

    def with_context(self, examples: Sequence[str]) -> Item:
        """The item behind `examples`, each set off by an empty line; for arms that show demonstrations."""

        def behind(context: str) -> str:
            return "\n\n".join([*examples, context])

        requests = tuple((behind(context), continuation) for context, continuation in self.requests)
        return replace(self, requests=requests, prompt=behind(self.prompt) if self.kind == TEXT else "")


@dataclass(frozen=True)
class Answer:
    """What an arm says to an item.

    Attributes:
        scores: `CHOICES`: of each request the log-likelihood in nats, and whether it is what greedy decoding
            writes.
        text: `TEXT`: what was written, without the stop string.
        token_ids: `TEXT`: the tokens written, without the one that ended the answer.
        finished: `TEXT`: false where the token limit cut the answer.
        details: what the record keeps beside the score; JSON that survives the journal unchanged.
    """

    scores: tuple[tuple[float, bool], ...] = ()
    text: str | None = None
    token_ids: tuple[int, ...] = ()
    finished: bool = True
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """Seconds and floating-point operations of one phase of an arm.

    `flops` is None where no formula covers it.
    """

    seconds: float = 0.0
    flops: float | None = 0


@dataclass(frozen=True)
class Cost:
    """What an arm has cost so far.

    Attributes:
        phases: by name: embed, retrieve, read, optimize, score, train, generate, ...
        peak_memory_bytes: the most memory in use, of the GPU where one is used.
        cached_seconds: seconds that an earlier arm spent on work which this one took over. They are added to
            the clock's. Negative for work that all arms share, which is on no arm's account.
    """

    phases: dict[str, Phase] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    cached_seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """What an arm has to say of its run besides scores.

    Attributes:
        counts: of references and the like.
        curves: means by step.
        notes: for a reader of the numbers.
        movement: how far it moved pathways (`store.schema.Movement`); empty where it moved none.
        tuning: what was chosen on held-out references (`store.schema.Tuning`); empty where nothing was.
    """

    counts: dict[str, int] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    movement: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmRow:
    """An arm's line in its backend's table. Rows are read without loading torch.

    Attributes:
        name: what `arms=[...]` calls it.
        title: what a reader calls it.
        role: base, method, baseline, control, ceiling or repeat (base once more: what it changes is noise).
        about: what it does, in one line, for docs.
        control_of: the arm that it is a control of.
        change: a control: what it does otherwise than that arm, such as "random neighbors".
        not_due_to: a control: what a gain is then not due to, such as "retrieval".
        factory: `module:function`, imported when the arm is built; a plugin gives the function itself.
        builds: what the factory gives: `solver` (a function from queries to pathways), `arm`, or `recipe`.
        kinds: the kinds of items that it can answer.
        place: of a control: its place among those of its arm, the strictest first.
        losses_over: what its losses are listed by: `steps` of a descent, or `shares` of the original pathway
            tried.
        reads_labels: whether evaluated items come with their label.
        references: which references it learns from: `retrieved`, `random`, `all`, `training`, `own` (the item
            itself, with its label) or `none`.
        shuffled_labels: whether the references' labels are drawn at random.
        permuted_options: whether the references list their options in another order.
        reads: the options of the method that can change its numbers; None where all of them can.
        solution: `store` where other arms take over its solutions, `reuse` where it takes over another's.
        uses_learning_rate: whether `method.tune` concerns it.
        passes: forward passes over the question that an item costs on top of the base model's.
        version: raised whenever the arm's numbers can change; part of its runs' identity. Our own arms have
            theirs from `store.versions`.
        other_batches: whether its items are answered in batches of another size and order than everybody's.
    """

    name: str
    title: str
    role: str
    about: str = ""
    control_of: str | None = None
    change: str = ""
    not_due_to: str = ""
    factory: str | Callable[..., Any] = ""
    builds: str = "arm"
    kinds: tuple[str, ...] = (CHOICES, TEXT)
    place: int = 0
    losses_over: str = "steps"
    reads_labels: bool = False
    references: str = "none"
    shuffled_labels: bool = False
    permuted_options: bool = False
    reads: tuple[str, ...] | None = None
    solution: str = ""
    uses_learning_rate: bool = False
    passes: float = 1.2
    other_batches: bool = False
    version: int = 1

    @property
    def trains(self) -> bool:
        """Whether the arm trains weights, so that a training seed decides its answers."""
        return self.builds == "recipe" or self.references == "training"

    def visible(self, item: Item) -> Item:
        """What the arm may see of an evaluated item: all but its label, unless the row declares that it reads labels."""
        return item if self.reads_labels else replace(item, gold=None)

    def record(self) -> dict[str, Any]:
        """What a run keeps of the row: all that analysis and report know of an arm."""
        names = (
            "name",
            "title",
            "role",
            "about",
            "control_of",
            "change",
            "not_due_to",
            "place",
            "losses_over",
        )
        return {name: getattr(self, name) for name in names}


class Arm(Protocol):
    """One way of answering.

    State never crosses items: what an item is answered depends on no other item, on no order and on no limit.
    An arm that derives from this class has a `finish` that adds nothing and a `close` that does nothing.
    """

    row: ArmRow

    def identity(self) -> dict[str, Any]:
        """Everything that can change this arm's numbers beside model, data and tasks: it names the run folder."""
        ...

    def settings(self) -> dict[str, Any]:
        """Flat columns for the ablation table."""
        ...

    def prepare(self) -> None:
        """Train, load, insert.

        Called once on every rank before the first chunk, also on one without a share.
        """
        ...

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Answer one chunk of items of one kind, in order."""
        ...

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """Once, on the merged rows of all ranks and shards: the rows, and further metrics by task."""
        return rows, {}

    def cost(self) -> Cost:
        """What it has cost in this process so far."""
        ...

    def report(self) -> Report:
        """Counts, curves and notes for the result."""
        ...

    def close(self) -> None:
        """Give the shared model back: from then on its logits are bit for bit the base model's."""


MakeTasks = Callable[[Mapping[str, dict[str, dict[str, Any]]] | None], Any]
"""Makes the `TaskSet` of an experiment, given tasks of the backend's own: name -> leaf task -> lm-eval config."""


@dataclass(frozen=True)
class TimedParts:
    """What a forecast times: the model, its tokenizer, what embeds questions, and how many references are read.

    `embedder` is None where nothing is embedded, and `references` 0 where no arm needs any.
    """

    model: Any
    tokenizer: Any
    embedder: Callable[[list[str]], Any] | None = None
    references: int = 0


class Backend(Protocol):
    """Builds the arms of an experiment, base first.

    `cfg` is a `config.Config`, `tasks` a `tasks.taskset.TaskSet`.
    """

    model_hash: str
    tasks: Any

    @classmethod
    def open(cls, cfg: Any, make_tasks: MakeTasks) -> Backend:
        """The backend of a checked config. It has its tasks made, with those that it brings itself."""
        ...

    @staticmethod
    def check(cfg: Any) -> None:
        """Refuse with a `UserError` what can be seen to be wrong before anything is loaded."""
        ...

    def check_items(self, items: Iterable[Item]) -> dict[str, tuple[int, int]]:
        """Put all items in tokens before any is answered; of each task the number of its items, and of those cut.

        Raises:
            UserError: for an item or a reference that leaves no token, or too many.
        """
        ...

    def timed_parts(self) -> TimedParts:
        """What a forecast times."""
        ...

    def arms(self) -> Iterator[Arm]:
        """The arms that `cfg.arms` names, base first."""
        ...

    def close(self) -> None:
        """Let go of what the arms shared."""
        ...
