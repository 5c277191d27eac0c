"""`method.tune=reference`: learning rate and mixing chosen on held-out reference items, never on the test.

The paper names no protocol for its choices, and all its ablations are on the test benchmarks. Here some
references play
the test: their labels are hidden from NGD and used only to compare settings. One choice serves every arm that
descends, controls and oracle included, so that no arm has an advantage.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from c3po_bench.contract import Item, Phase
from c3po_bench.errors import UserError
from c3po_bench.registry import load
from c3po_bench.rewiring.arms import ARMS
from c3po_bench.rewiring.bank import ReferenceBank
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.embedders import embedder_identity
from c3po_bench.rewiring.rewirer import Rewirer, Rewiring
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.console import Progress
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.runtime.meter import Meter
from c3po_bench.store.identity import content_hash
from c3po_bench.store.records import read_sealed, write_sealed
from c3po_bench.store.schema import Phase as PhaseRecord
from c3po_bench.tasks.duplicates import question_hash

log = logging.getLogger(__name__)
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
MIXINGS = ("dense", "hard", "straight_through")
HELD_OUT = 48


class Tuned(TypedDict):
    """A file of `results_dir/tuned`."""

    learning_rate: float
    mixing: str
    losses: dict[str, float]
    held_out: int
    phase: PhaseRecord


@dataclass(frozen=True)
class Tuning:
    """The chosen method; `losses` by setting (mean cross-entropy over the choices of held-out references)."""

    method: MethodConfig
    losses: dict[str, float]
    held_out: int
    phase: Phase

    @property
    def note(self) -> str:
        """What a reader of the numbers should know."""
        tried = {name: loss for name, loss in self.losses.items() if name != "base"}
        return (
            f"tune=reference: learning rate {self.method.learning_rate:g}, mixing {self.method.mixing}, chosen on "
            f"{self.held_out} held-out references (choice loss {min(tried.values()):.3f}; {self.losses['base']:.3f} "
            "without rewiring); of all tried: "
            + "; ".join(f"{name}: {loss:.3f}" for name, loss in tried.items())
        )


def tune(backend: Workbench) -> Tuning:
    """Choose the rate at the given mixing, then the mixing at that rate.

    The result is kept in `results_dir/tuned`.
    """
    cfg = backend.cfg
    items = [
        item for item in backend.reference_items[0] if question_hash(item.question) not in backend.test_hashes
    ]
    drawn = sorted(items, key=lambda i: hashlib.sha256(f"{cfg.seed}:{i.id[0]}:{i.id[1]}".encode()).digest())
    held_out = drawn[: min(HELD_OUT, len(items) // 5)]
    if not held_out:
        raise UserError(
            f"method.tune=reference needs at least 5 references, of which it hides a fifth; there are {len(items)}"
        )
    data = [[*item.id, item.question, item.requests, item.gold, item.lengths] for item in items]
    identity = [
        backend.model_hash,
        cfg.model.dtype,
        asdict(cfg.method),
        asdict(cfg.references),
        embedder_identity(cfg.embedder),
        data,
    ]
    path = Path(cfg.results_dir) / "tuned" / f"{content_hash([*identity, cfg.seed])}.json"
    with exclusive_lock(path.parent, f"{path.name}.lock"):
        found = read_sealed(path, Tuned)
        if found is None:
            found = _search(backend, held_out)
            write_sealed(path, found)
    method = replace(cfg.method, learning_rate=found["learning_rate"], mixing=found["mixing"])
    return Tuning(method, found["losses"], found["held_out"], Phase(**found["phase"]))


def _search(backend: Workbench, held_out: Sequence[Item]) -> dict[str, Any]:
    cfg, meter, answering, losses = backend.cfg, Meter(), Meter(), {}
    bank = without(backend.bank, {item.id for item in held_out})
    progress, total = Progress(), 1 + len(RATES) + len(MIXINGS) - 1

    def loss_of(method: MethodConfig | None) -> float:
        """Its loss on the held-out references, computed once."""
        name = "base" if method is None else f"lr={method.learning_rate:g}, mixing={method.mixing}"
        if name not in losses:
            losses[name] = round(_loss(backend, bank, method, held_out, answering), 6)
            progress("tuning on held-out references", len(losses), total)
        return losses[name]

    with meter.phase("tune"):
        loss_of(None)
        best = min((replace(cfg.method, learning_rate=rate) for rate in RATES), key=loss_of)
        mixings = [replace(best, mixing=mixing) for mixing in MIXINGS if mixing != best.mixing]
        best = min([best, *mixings], key=loss_of)
        meter.count("tune", sum(answering.flops.values()) - answering.cached_flops)
    log.info("tuned on %d held-out references: %s", len(held_out), losses)
    return {
        "learning_rate": best.learning_rate,
        "mixing": best.mixing,
        "losses": losses,
        "held_out": len(held_out),
        "phase": asdict(meter.cost().phases["tune"]),
    }


def without(bank: ReferenceBank, hidden: set[tuple[str, int]]) -> ReferenceBank:
    """The bank less some of its items."""
    kept = [i for i, entry in enumerate(bank.items) if entry.item.id not in hidden]
    return replace(
        bank,
        items=[bank.items[i] for i in kept],
        embeddings=bank.embeddings[kept],
        pathways=bank.pathways[kept],
    )


def _loss(
    backend: Workbench,
    bank: ReferenceBank,
    method: MethodConfig | None,
    held_out: Sequence[Item],
    meter: Meter,
) -> float:
    """Mean cross-entropy of the right option over the options' log-likelihoods; without rewiring if method is None."""
    cfg, ngd = backend.cfg, ARMS["ngd"]
    rewirer = Rewirer(
        backend.engine,
        backend.tokenizer,
        method or cfg.method,
        None if method is None else Rewiring(ngd, load(ngd.factory)),
        bank=bank,
        embedder=backend.question_embedder,
        seed=cfg.seed,
        meter=meter,
    )
    unlabelled = [replace(item, gold=None, key=question_hash(item.question)) for item in held_out]
    total = 0.0
    for start in range(0, len(held_out), cfg.batch_size):
        answers = rewirer.answer(unlabelled[start : start + cfg.batch_size])
        for answer, item in zip(answers, held_out[start : start + cfg.batch_size], strict=True):
            assert item.gold is not None
            total -= float(torch.tensor([score for score, _ in answer.scores]).log_softmax(-1)[item.gold])
    return total / len(held_out)
