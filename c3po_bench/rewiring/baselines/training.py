"""Training a baseline on the references, once.

Seeded, cached beside the results, the shared model left as it was.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from safetensors.torch import load_file, save_file

from c3po_bench.contract import Answer, ArmRow, Cost, Item, Phase, Report
from c3po_bench.errors import UserError, finite
from c3po_bench.models.flops import counting, shape_of, trained_part
from c3po_bench.models.placement import is_spread
from c3po_bench.rewiring.baselines.arm import BaselineArm, training_set
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.engines.batching import pad_right
from c3po_bench.rewiring.rewirer import Rewirer
from c3po_bench.rewiring.tokens import TokenizedItem
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.console import Progress
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.runtime.meter import Meter
from c3po_bench.store.files import replacing
from c3po_bench.store.identity import content_hash
from c3po_bench.store.records import file_checksum, lost_file, read_sealed, write_sealed
from c3po_bench.store.schema import Phase as PhaseRecord

log = logging.getLogger(__name__)
HELD_OUT = 32
MAX_TOKENS = 512
Weights = dict[str, torch.Tensor]
Answering = Callable[[Sequence[Item]], list[Answer]]


class Trained(TypedDict):
    """What a training leaves behind."""

    train_loss: list[float]
    held_out_loss: list[float]
    parameters: int
    seen: int
    phase: PhaseRecord
    files: dict[str, str]  # checksums


@dataclass
class Opened:
    """A model with trainable parts.

    `call(input_ids=, attention_mask=)` gives its output, `parameters` are what moves, `room` is how many
    tokens it reads where something else stands before them.
    """

    call: Callable[..., Any]
    parameters: dict[str, torch.nn.Parameter]
    room: int = 1 << 30


class Adapter(Protocol):
    """What is trained, and how it gets into the model and out again."""

    def opened(self, seed: int) -> AbstractContextManager[Opened]:
        """The model with fresh trainable parts; on leaving, the model is as it was."""
        ...

    def answering(self, weights: Weights, meter: Meter) -> Answering:
        """What answers items by the trained model, on the arm's account.

        Between calls the model is as it was.
        """
        ...


class TrainedArm(BaselineArm):
    """A baseline that is trained when it is first asked; the weights are kept in `results_dir/trained`.

    Options that every trained baseline has: steps, batch_size, learning_rate. `more` is whatever else the
    training depends on, by name.
    """

    def __init__(
        self, backend: Workbench, row: ArmRow, options: dict[str, Any], adapter: Adapter, **more: Any
    ):
        super().__init__(backend, row, options)
        if is_spread(backend.loaded.model):
            raise UserError(
                f"arm {row.name} trains, which a model under model.device_map does not: leave it out"
            )
        self.adapter = adapter
        self.more = more

    @cached_property
    def training(self) -> tuple[list[Item], dict[str, int]]:
        """What it is trained on, and counts."""
        return training_set(self.backend)

    def identity(self) -> dict[str, Any]:
        """With whatever else matters."""
        return super().identity() | self.more

    def settings(self) -> dict[str, Any]:
        """Steps and learning rate in the columns that the rewirings use."""
        found = super().settings()
        del found["option_steps"], found["option_learning_rate"]
        return found | {"steps": self.options["steps"], "lr": self.options["learning_rate"]}

    def prepare(self) -> None:
        """Train, where nobody has."""
        self._answering = self.adapter.answering(self.weights(), self.meter)

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """By the trained model."""
        return self._answering(items)

    @cached_property
    def folder(self) -> Path:
        """Where the weights are: named by everything that can change them."""
        cfg = self.backend.cfg
        data = [[*item.id, item.requests, item.gold] for item in self.training[0]]
        identity = [
            self.row.name,
            self.options,
            self.seed,
            self.backend.model_hash,
            cfg.model.dtype,
            next(iter(self.more.values()), None),
            content_hash(data),
        ]
        return Path(cfg.results_dir) / "trained" / f"{self.row.name}-{content_hash(identity)}"

    def weights(self) -> Weights:
        """Load the trained weights; train first if nobody has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.folder.parent, f"{self.folder.name}.lock"):
            self.__dict__.pop("record", None)  # another process may have trained it meanwhile
            if self.record is None:
                weights, record = self._train()
                with replacing(path := self.folder / "adapter.safetensors") as temporary:
                    save_file(weights, temporary)
                # last: its presence means done
                files = {path.name: file_checksum(path)}
                write_sealed(self.folder / "training.json", record | {"files": files})
                self.__dict__.pop("record")
        return load_file(self.folder / "adapter.safetensors")

    def _train(self) -> tuple[Weights, dict[str, Any]]:
        options, seed = self.options, self.seed
        questions = [self.backend.tokenizer(item) for item in self.training[0]]
        random.Random(seed).shuffle(questions)
        spared = min(HELD_OUT, len(questions) // 5)
        held_out, seen = questions[:spared], questions[spared:]
        log.info("%s: training on %d references for %d steps", self.row.name, len(seen), options["steps"])
        progress = Progress()
        with self.adapter.opened(seed) as model:
            base = self.backend.loaded.model
            shape, trained = shape_of(base), trained_part(model.parameters, base.config.hidden_size)
            before = mean_loss(model, held_out, options["batch_size"])
            losses = []
            optimizer = torch.optim.AdamW(
                model.parameters.values(), lr=options["learning_rate"], weight_decay=0.0
            )
            for step, chunk in enumerate(batches(seen, options["batch_size"], options["steps"], seed)):
                for group in optimizer.param_groups:
                    group["lr"] = options["learning_rate"] * (1 - step / options["steps"])
                with self.meter.phase("train"), counting(base, shape, trained) as flops:
                    optimizer.zero_grad()
                    loss = question_losses(model, chunk).mean()
                    loss.backward()
                    optimizer.step()
                    self.meter.count("train", sum(flops))
                losses.append(finite(loss.item(), f"{self.row.name}: the training loss", step + 1))
                progress(f"{self.row.name}: training", step + 1, options["steps"])
            after = mean_loss(model, held_out, options["batch_size"])
            weights = {name: p.detach().cpu().contiguous().clone() for name, p in model.parameters.items()}
            for name, value in weights.items():
                finite(value.sum().item(), f"{self.row.name}: a weight of {name}", options["steps"])
        record = {
            "train_loss": [round(value, 6) for value in losses],
            "held_out_loss": [] if before is None or after is None else [round(before, 6), round(after, 6)],
            "parameters": sum(p.numel() for p in weights.values()),
            "seen": min(len(seen), options["steps"] * options["batch_size"]),
            "phase": asdict(self.meter.cost().phases.get("train", Phase())),
        }
        return weights, record

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """What the training left behind, if it is done and nothing of it is damaged."""
        record = read_sealed(self.folder / "training.json", Trained)
        if record and (lost := lost_file(self.folder, record["files"])):
            log.warning("%s is missing or damaged: it is trained anew", self.folder / lost)
            return None
        return record

    def cost(self) -> Cost:
        """Training counts once, whichever process did it."""
        cost, record = super().cost(), self.record
        if record is not None:
            cost.phases["train"] = Phase(**record["phase"])
        return cost

    def report(self) -> Report:
        """Training curves, and the loss on held-out references before and after."""
        notes = [*self.backend.reference_items[1], *self.meter.notes, *self.cut_notes()]
        record = self.record
        if record is None:
            return Report(self.training[1], {}, notes)
        counts = self.training[1] | {
            "trained_parameters": record["parameters"],
            "references_seen": record["seen"],
        }
        curves = {"train_loss": record["train_loss"], "held_out_loss": record["held_out_loss"]}
        if record["held_out_loss"]:
            before, after = record["held_out_loss"]
            notes.append(
                f"{self.row.name}: loss on held-out references {before:.3f} before training, {after:.3f} after"
            )
        return Report(counts, curves, notes)


def batches(
    questions: Sequence[TokenizedItem], size: int, steps: int, seed: int
) -> Iterator[list[TokenizedItem]]:
    """`steps` batches: epochs over the questions, each in a new seeded order."""
    queue: list[TokenizedItem] = []
    for step in range(steps):
        if len(queue) < size:
            order = list(questions)
            random.Random(f"{seed}:{step}").shuffle(order)
            queue += order
        yield [queue.pop(0) for _ in range(min(size, len(queue)))]


def question_losses(model: Opened, questions: Sequence[TokenizedItem]) -> torch.Tensor:
    """Mean negative log-likelihood of the right answer's tokens of each question, [questions]."""
    pairs = []
    for question in questions:
        prompt, answer = question.gold_row
        context, target = question.prompts[prompt].context, question.prompts[prompt].continuations[answer]
        pairs.append((context[-min(MAX_TOKENS, model.room + 1 - len(target)) :], target))
    device = next(iter(model.parameters.values())).device
    ids, lengths = pad_right([context + target[:-1] for context, target in pairs], device)
    mask = (torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]).long()
    logits = model.call(input_ids=ids, attention_mask=mask).logits[
        :, -ids.shape[1] :
    ]  # virtual tokens come first
    losses = []
    for row, (context, target) in enumerate(pairs):
        places = logits[row, len(context) - 1 : len(context) - 1 + len(target)].float()
        losses.append(torch.nn.functional.cross_entropy(places, torch.tensor(target, device=device)))
    return torch.stack(losses)


@torch.no_grad()
def mean_loss(model: Opened, questions: Sequence[TokenizedItem], size: int) -> float | None:
    """Mean loss over `questions`; None if there are none."""
    if not questions:
        return None
    losses = [question_losses(model, questions[i : i + size]) for i in range(0, len(questions), size)]
    return float(torch.cat(losses).mean())


def engine_answering(
    backend: Workbench, meter: Meter, inserted: Callable[[], AbstractContextManager[Any]]
) -> Answering:
    """Answers by an engine of its own, what was trained being inserted: the shared one remembers the unchanged model."""
    cfg = backend.cfg
    engine = load_engine(cfg.engine, backend.loaded.model, backend.layers, cfg.method.position)
    rewirer = Rewirer(engine, backend.tokenizer, cfg.method, meter=meter)

    def answer(items: Sequence[Item]) -> list[Answer]:
        with inserted():
            return rewirer.answer(items)

    return answer


@contextmanager
def swapped(model: torch.nn.Module, weights: Weights) -> Iterator[None]:
    """Within the block, parameters of `model` named in `weights` have these values.

    Afterwards their own, bit for bit.
    """
    parameters = dict(model.named_parameters())
    saved = {name: parameters[name].data for name in weights}
    try:
        for name, value in weights.items():
            parameters[name].data = value.to(saved[name])
        yield
    finally:
        for name, value in saved.items():
            parameters[name].data = value
