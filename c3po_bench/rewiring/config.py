"""Options of the rewiring backend (conf/method, conf/embedder): what the paper says, what it leaves open.

Sources: paper = arXiv 2504.07964; equation numbers are those of its section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class KernelConfig:
    """How a neighbor's distance becomes its weight in the surrogates (paper Table 6)."""

    name: str = field(
        default="gaussian", metadata={"help": "gaussian, linear, polynomial, matern12, matern32 or matern52 (paper: gaussian)"}
    )
    bandwidth: str = field(
        default="median",
        metadata={"help": "length scale: 'median' (of the neighbors' distances) or a number (the paper names none)"},
    )
    degree: int = field(default=3, metadata={"help": "degree of the polynomial kernel"})


@dataclass
class NeighborsConfig:
    """Which reference items are the neighbors of a test item (paper Table 4)."""

    kind: str = field(default="knn", metadata={"help": "knn, or epsilon for all within a distance (paper: knn)"})
    k: int = field(default=3, metadata={"help": "number of nearest neighbors (paper: 3)"})
    epsilon: float = field(default=0.5, metadata={"help": "radius of the epsilon ball, in distance of unit embeddings (paper Table 4)"})
    epsilon_most: int = field(default=16, metadata={"help": "most neighbors kept from an epsilon ball, nearest first (no limit in the paper)"})
    max_similarity: float = field(
        default=0.95,
        metadata={"help": "references more similar than this to the test item are dropped and counted (paper: 0.95)"},
    )


@dataclass
class MethodConfig:
    """Pathway and optimization choices shared by all rewiring arms."""

    layers: str = field(
        default="last:5", metadata={"help": "critical layers: last:N, first:N, middle:N, all, a sum like first:2+last:3, or 0,3,7 (paper: last:5)"}
    )
    experts: str = field(
        default="top:20",
        metadata={"help": "core experts a layer, by the model's own routing score: top:N or all (paper: top:20)"},
    )
    position: str = field(
        default="last",
        metadata={"help": "tokens overridden: last (of the prompt), continuation (last and every answer token) (paper: last)"},
    )
    parameterization: str = field(
        default="logits",
        metadata={"help": "what the optimizer moves: logits (softmax keeps the simplex) or probabilities (clipped, renormalized); open in the paper"},
    )
    mixing: str = field(
        default="dense",
        metadata={"help": "experts mixed while optimizing: hard (top-k, re-selected each step), dense (all core experts), straight_through; open in the paper"},
    )
    final_mixing: str = field(
        default="hard",
        metadata={"help": "experts mixed when the answer is scored: hard (top-k, as the model) or dense (all core experts)"},
    )
    mass: str = field(
        default="model",
        metadata={"help": "total weight of the selected experts: model (what the pathway gives) or preserved (the original's, undoing flattening)"},
    )
    optimizer: str = field(default="adam", metadata={"help": "sgd (paper eq. 1) or adam (code of the predecessor R2-T2)"})
    learning_rate: float = field(
        default=0.1, metadata={"help": "first learning rate; the paper prints '10e-2', read here as 0.1 (the other reading is 0.01)"}
    )
    final_learning_rate: float = field(default=1e-4, metadata={"help": "last learning rate of the cosine schedule (paper '10e-5')"})
    schedule: str = field(default="cosine", metadata={"help": "cosine, fixed or step (halved every third of the steps) (paper: cosine)"})
    steps: int = field(default=10, metadata={"help": "gradient steps of NGD and the oracle (paper: 10)"})
    loss: str = field(
        default="nll",
        metadata={"help": "loss on a neighbor: nll (mean negative log-likelihood of the gold answer) or choice (cross-entropy over the choices)"},
    )
    neighbors: NeighborsConfig = field(default_factory=NeighborsConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    tune: str = field(default="none", metadata={"help": "none, or reference: choose the learning rate on held-out reference items"})


@dataclass
class EmbedderConfig:
    """What turns a question into the vector that neighbors are sought by (paper Table 13)."""

    name: str = field(default="minilm", metadata={"help": "minilm, hidden_states or sentence_transformers (paper: NV-Embed-V2)"})
    model: str | None = field(default=None, metadata={"help": "sentence-transformers id or folder, for name=sentence_transformers"})
    batch_size: int = field(default=32, metadata={"help": "questions embedded at once"})


@dataclass
class ReferencesConfig:
    """The reference set: labelled items of other tasks that rewiring may learn from (paper Table 7)."""

    tasks: list[str] = field(default_factory=list, metadata={"help": "tasks whose training items are the references"})
    limit: int | None = field(default=None, metadata={"help": "most reference items, spread over the tasks; null = all"})
    only_correct: bool = field(
        default=True, metadata={"help": "keep only items that the model itself answers correctly (paper section 3)"}
    )


ArmOptions = dict[str, dict[str, Any]]
